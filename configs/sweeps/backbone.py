"""The paper's ablation of the image tower: residual and dense networks, and vision transformers of two kinds. Run:

afloc sweep --config=published --sweep=backbone --workdir=runs/backbone [--dry-run]

As the file stands, all towers start at random. Copy it and fill in WEIGHTS and TEXT to start from weights: a comparison
of towers needs weights of the same origin. Each side has records of its own, which are built from --config.data.raw.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from afloc_jax.settings import Json

SIDES = {"resnet18": 299, "resnet50": 299, "resnet101": 299, "densenet121": 299, "vit_base": 224, "dinov2_base": 518}
WEIGHTS: dict[str, str] = {}  # the file or folder of a tower, such as {"resnet50": "resnet50.pth"}
TEXT = ""  # that of the text tower, if WEIGHTS names any, such as "Bio_ClinicalBERT/"


def sweep(_: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    for backbone, side in SIDES.items():
        run: dict[str, Json] = {
            "name": backbone,
            "model.image.backbone": backbone,
            "model.image.input_size": side,
            "data.builder.image_size": side,
        }
        start = [path for path in (WEIGHTS.get(backbone, ""), TEXT) if path]
        yield {**run, "init_from": start[0] if len(start) == 1 else tuple(start) or ""}
