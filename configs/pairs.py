"""One's own radiographs and texts: a folder with a CSV, a small network from scratch, evaluation on lesion masks.

    python launch.py --config=configs/pairs.py --config.data.raw=FOLDER --workdir=runs/pairs

FOLDER holds `pairs.csv` with columns image, text and optionally patient, split, view. Without --config.data.raw the
development data is taken, and its lesion masks are scored where they lie beside it.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import demo

PAIRS = "../shared/data/cxr_pairs"
LESIONS = "../shared/data/covid_lesions"


def get_config() -> ConfigDict:
    """The demo's network and objective; a larger vocabulary, longer texts, light augmentation."""
    config = demo.get_config()
    config.name = "pairs"

    config.data.dataset = "pairs"
    config.data.raw = PAIRS
    # Frontal views, and those whose view the source does not say.
    config.data.builder = ConfigDict({"views": ("", "PA", "AP", "AP Supine")})
    config.data.sentences = "subset"  # few pairs: a new subset of sentences at every draw
    config.data.max_tokens = 97
    config.data.augment = True

    config.model.text.bert.vocab_size = 2000
    config.model.text.bert.max_position_embeddings = 97

    # The step of a presence map is set for the phantoms; nothing here says where it should lie.
    config.localization.similarity = "dot"

    config.training.steps = 600
    config.training.validate_every = 50
    config.training.early_stopping = 6

    lesions = {"name": "masks", "title": "COVID lesions", "directory": config.data.get_ref("directory")}
    config.evaluation.datasets = (ConfigDict({**lesions, "raw": LESIONS}),) if Path(LESIONS).is_dir() else ()
    return config
