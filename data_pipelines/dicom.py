"""Grey values of DICOM images: tables, windows and padding, in little memory."""

from typing import Any

import numpy as np
from jaxtyping import Float64, Real, UInt8

_BLOCK = 1 << 20  # pixels that are computed in float64 at a time


def as_shown(pixels: Real[np.ndarray, "H W"], dataset: Any, interpretation: str) -> UInt8[np.ndarray, "H W"]:
    """The stored pixels of a grey DICOM image as they are shown, scaled from their minimum and maximum to 0..255.

    Windows and modality tables are applied, MONOCHROME1 is inverted, and pixels of padding become black. This happens
    in blocks of rows, once for the range and once for the pixels: a mammogram in float64 would take a gigabyte.

    Raises ValueError, and whatever pydicom raises, for a data set that cannot be shown.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    padding = dataset.get("PixelPaddingValue")
    shown = np.ones(pixels.shape, bool) if padding is None else pixels != padding
    if not shown.any():
        shown[:] = True
    step = max(1, _BLOCK // pixels.shape[1])
    blocks = [slice(start, start + step) for start in range(0, len(pixels), step)]

    def values(rows: slice) -> Float64[np.ndarray, "rows W"]:
        block = pixels[rows]
        if interpretation.startswith("MONOCHROME"):
            block = apply_voi_lut(apply_modality_lut(block, dataset), dataset)
        return np.asarray(block * -1.0 if interpretation == "MONOCHROME1" else block, np.float64)

    ranges = [(part.min(), part.max()) for rows in blocks if (part := values(rows)[shown[rows]]).size]
    low, high = float(np.min(ranges)), float(np.max(ranges))
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels that are no finite numbers")
    scaled = np.zeros(pixels.shape, np.uint8)
    for rows in blocks if high > low else ():
        part = np.where(shown[rows], values(rows), low)  # outside the collimator: black, and not part of the range
        scaled[rows] = np.rint((part - low) * (255.0 / (high - low)))
    return scaled
