"""What the images of each data set are, for the first lines of pages. Drawings are told from images of patients."""

from collections.abc import Mapping, Sequence

DRAWN = "phantom"  # the data set that this program draws
DRAWN_SIDE = 224  # pixels; drawings are squares of this side

IMAGES: Mapping[str, str] = {
    DRAWN: "drawings of chests made by this program (phantoms), not images of patients",
    "pairs": "the user's own images with texts",
    "masks": "the user's own images with masks",
    "mimic_cxr": "chest radiographs of patients (MIMIC-CXR)",
    "open_i": "chest radiographs of patients (Indiana University, Open-i)",
    "padchest": "chest radiographs of patients (PadChest)",
    "padchest_gr": "chest radiographs of patients (PadChest-GR, from PadChest)",
    "roco": "figures of published articles, of many kinds of imaging (ROCO)",
    "ms_cxr": "chest radiographs of patients (MS-CXR, from MIMIC-CXR)",
    "rsna": "chest radiographs of patients (RSNA Pneumonia, from NIH ChestX-ray14)",
    "chexlocalize": "chest radiographs of patients (CheXlocalize, from CheXpert)",
    "covid_rural": "chest radiographs of patients (COVID Rural)",
    "siim": "chest radiographs of patients (SIIM-ACR, from NIH ChestX-ray14)",
    "nih": "chest radiographs of patients (NIH ChestX-ray14)",
    "vindr_cxr": "chest radiographs of patients (VinDr-CXR)",
    "chestx_det": "chest radiographs of patients (ChestX-Det, from NIH ChestX-ray14)",
    "chexpert": "chest radiographs of patients (CheXpert)",
    "cxr_lt": "chest radiographs of patients (CXR-LT, from MIMIC-CXR)",
    "idrid": "photographs of the retina of patients (IDRiD)",
    "sicapv2": "microscopy of prostate tissue (SICAPv2)",
    "wsss4luad": "microscopy of lung tissue (WSSS4LUAD)",
    "dhmc_luad": "whole slides of lung tissue (DHMC-LUAD)",
}


def images_of(dataset: str) -> str:
    """A description of the images of a data set."""
    return IMAGES.get(dataset, f"those of {dataset}; what they show is not known to this program")


def only_drawings(trained_on: Sequence[str]) -> bool:
    """Whether a model that was trained on these data sets has seen drawings alone; False if they are not known."""
    return bool(trained_on) and set(trained_on) == {DRAWN}


def warning_on_drawings(trained_on: Sequence[str], height: int, width: int) -> str:
    """A warning if a model has seen drawings alone and an image is none; empty otherwise.

    Drawings are squares of `DRAWN_SIDE`. An image of that size may be one.
    """
    if not only_drawings(trained_on) or (height, width) == (DRAWN_SIDE, DRAWN_SIDE):
        return ""
    return (
        "the model was trained on drawings of chests (phantoms) alone, and this image is none: on images of patients "
        "its maps, boxes and numbers mean nothing"
    )
