"""Segmentations as files hold them: run lengths (RLE, compressed or not), polygons, PNG files."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from afloc_jax.errors import UserError


def decode_segmentation(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """RLE (compressed or not) or polygons -> [height, width] uint8 of 0 and 1, equal to what pycocotools decodes.

    `where` names the entry in the `UserError` that a malformed one raises.
    """
    if isinstance(segmentation, Mapping):
        runs = runs_of_rle(segmentation, height, width, where)
        return np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(height, width, order="F")
    try:
        # Checked before it reaches pycocotools, whose C code meets NaN or far-off corners with all of the memory.
        polygons = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
        if not all(len(polygon) >= 3 and np.isfinite(polygon).all() for polygon in polygons):
            raise ValueError("a polygon needs three corners or more")
        inside = [np.clip(polygon, 0, [width, height]).ravel().tolist() for polygon in polygons]
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(inside, height, width)))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _malformed(where) from None


def runs_of_rle(rle: Mapping[str, Any], height: int, width: int, where: str) -> np.ndarray:
    """Lengths of the runs of 0 and 1 in turn, down the columns; they fill the image exactly.

    pycocotools reads past runs that do not, so nothing reaches it unchecked. Raises `UserError` naming `where`.
    """
    try:
        size, counts = list(rle["size"]), rle["counts"]
        runs = np.array(_runs_of_string(counts) if isinstance(counts, str) else counts)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _malformed(where) from None
    if size != [height, width]:
        raise UserError(f"{where}: its RLE is for {size}, its image [{height}, {width}]")
    if runs.ndim != 1 or runs.dtype.kind != "i" or (runs < 0).any() or runs.sum() != height * width:
        raise _malformed(where)
    return runs


def _malformed(where: str) -> UserError:
    return UserError(f"{where}: its segmentation is neither a valid RLE nor a list of polygons")


def _runs_of_string(text: str) -> list[int]:
    """COCO's compressed run lengths: base 32, least digit first; from the fourth on, difference to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise ValueError("not a character of a compressed RLE")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:  # more digits follow
            continue
        if digit & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs
