"""The paper's ablation of the text tower: encoders of the hub by name, without and with a head. Run:

afloc sweep --config=published --sweep=text_encoder --workdir=runs/text_encoder [--dry-run]

--config.init_from names the image tower, such as resnet50.pth; without it that starts at random. docs/weights.md tells
how names of the hub are found. The first three are 768 wide, so they need no projection.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from afloc_jax.settings import Json

CLINICAL, GENERAL = "emilyalsentzer/Bio_ClinicalBERT", "microsoft/BiomedVLP-CXR-BERT-general"
SPECIALIZED, MINILM = "microsoft/BiomedVLP-CXR-BERT-specialized", "sentence-transformers/all-MiniLM-L6-v2"
HEAD = 128  # the width of the projection head of CXR-BERT-specialized


def sweep(config: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    width = config.model.projection_dim
    image = config.init_from if isinstance(config.init_from, str) else ""  # weights of the image tower alone
    projected = {"model.text.projection": width}
    trained_head = {"model.text.projection": HEAD, "model.projection_dim": HEAD, "model.text.last_layers": 1}
    for name, source, changes in (
        ("bio_clinical_bert", CLINICAL, {}),
        ("cxr_bert_general", GENERAL, {}),
        ("cxr_bert_specialized", SPECIALIZED, {}),
        ("cxr_bert_specialized_head", SPECIALIZED, trained_head),
        ("minilm_random_head", MINILM, projected),
        ("bio_clinical_bert_random_head", CLINICAL, projected),  # what such a head does to an encoder of that width
    ):
        yield {"name": name, "init_from": (image, source) if image else source, **changes}
