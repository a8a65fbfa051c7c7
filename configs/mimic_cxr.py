r"""Training on the frontal views of MIMIC-CXR, evaluation on MS-CXR and RSNA Pneumonia. Run:

    python launch.py --config=configs/mimic_cxr.py --config.data.directory=DATA --workdir=runs/mimic_cxr

DATA holds the records of `mimic_cxr`, `ms_cxr` and `rsna` from `afloc prepare`. docs/training.md has all commands, from
the downloads to the table of results. As in configs/afloc.py, the whole batch is contrasted and the towers start at
random. From ImageNet and Bio_ClinicalBERT and in groups of 64, as published (all of the release's training is
configs/published.py):

    python launch.py --config=configs/mimic_cxr.py --config.data.directory=DATA --workdir=runs/mimic_cxr \
        --config.init_from="('resnet50.pth', 'Bio_ClinicalBERT/')" \
        --config.loss.contrast_group=64 --config.model.image.statistics_group=64

This config has not been run on the real data yet.
"""

from ml_collections import ConfigDict

from configs import afloc

SCORED = {"ms_cxr": "MS-CXR", "rsna": "RSNA Pneumonia"}  # builder -> title; no patient of either is in training


def get_config() -> ConfigDict:
    """configs/afloc.py on MIMIC-CXR, with an evaluation on each data set of `SCORED` in the same directory."""
    config = afloc.get_config()
    config.name = "mimic_cxr"
    config.data.dataset = "mimic_cxr"
    # They have no training split, so the location prior comes from their other evaluation images.
    config.evaluation.datasets = tuple(
        ConfigDict({"name": name, "title": title, "directory": config.data.get_ref("directory"), "prior_split": ""})
        for name, title in SCORED.items()
    )
    return config
