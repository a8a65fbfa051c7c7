"""Training on your own radiographs and texts: a folder with a CSV, a small network from scratch, and lesion masks.

    python launch.py --config=configs/pairs.py --config.data.raw=FOLDER --workdir=runs/pairs

FOLDER holds `pairs.csv` with the columns image, text and optionally patient, split, view. Without --config.data.raw the
development data are used. The model is evaluated on the lesion masks of the development data where they exist.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import demo

PAIRS = "../shared/data/cxr_pairs"
LESIONS = "../shared/data/covid_lesions"


def get_config() -> ConfigDict:
    """The network and objective of configs/demo.py, with a larger vocabulary, longer texts and light augmentation."""
    config = demo.get_config()
    config.name = "pairs"

    config.data.dataset = "pairs"
    config.data.raw = PAIRS
    # Frontal views, and images whose view is not stated.
    config.data.builder = ConfigDict({"views": ("", "PA", "AP", "AP Supine")})
    config.data.sentences = "subset"  # there are few pairs, so each draw takes another subset of sentences
    config.data.max_tokens = 97
    config.data.augment = True

    config.model.text.bert.vocab_size = 2000
    config.model.text.bert.max_position_embeddings = 97

    # The step of a presence map is tuned for the phantoms and may not suit other data.
    config.localization.similarity = "dot"

    config.training.steps = 600
    config.training.validate_every = 50
    config.training.early_stopping = 6

    lesions = {"name": "masks", "title": "COVID lesions", "directory": config.data.get_ref("directory")}
    config.evaluation.datasets = (ConfigDict({**lesions, "raw": LESIONS}),) if Path(LESIONS).is_dir() else ()
    return config
