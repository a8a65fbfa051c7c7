r"""MIMIC-CXR: trained on its frontal views, scored on MS-CXR and RSNA Pneumonia. Run:

    python launch.py --config=configs/mimic_cxr.py --config.data.directory=DATA --workdir=runs/mimic_cxr

DATA holds the records that `afloc prepare` made of `mimic_cxr`, `ms_cxr` and `rsna`; docs/training.md has every command
from the downloads to the table. As in configs/afloc.py the whole batch is contrasted and the towers start at random.
As published, from ImageNet and Bio_ClinicalBERT and in groups of 64:

    python launch.py --config=configs/mimic_cxr.py --config.data.directory=DATA --workdir=runs/mimic_cxr \
        --config.init_from="('resnet50.pth', 'Bio_ClinicalBERT/')" \
        --config.loss.contrast_group=64 --config.model.image.statistics_group=64

Not yet run on the real data.
"""

from ml_collections import ConfigDict

from configs import afloc

SCORED = {"ms_cxr": "MS-CXR", "rsna": "RSNA Pneumonia"}  # builder -> title; no patient of either is in training


def get_config() -> ConfigDict:
    """configs/afloc.py on MIMIC-CXR; an evaluation of each data set of `SCORED` that lies beside it."""
    config = afloc.get_config()
    config.name = "mimic_cxr"
    config.data.dataset = "mimic_cxr"
    # Neither has a training split; the location prior comes from the other evaluation images.
    config.evaluation.datasets = tuple(
        ConfigDict({"name": name, "title": title, "directory": config.data.get_ref("directory"), "prior_split": ""})
        for name, title in SCORED.items()
    )
    return config
