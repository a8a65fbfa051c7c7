"""Segmentations of truth files, run lengths (RLE, compressed or not) and polygons, drawn by data_pipelines.regions."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from afloc_jax.errors import UserError
from data_pipelines.images import ImageError
from data_pipelines.regions import CocoRuns, Polygon


def decode_segmentation(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """RLE (compressed or not) or polygons -> [height, width] uint8 of 0 and 1, equal to what pycocotools decodes.

    `where` names the entry in the `UserError` that a malformed one raises.
    """
    try:
        if isinstance(segmentation, Mapping):
            return CocoRuns(dict(segmentation)).mask(height, width).astype(np.uint8)
        parts = [Polygon(polygon).mask(height, width) for polygon in segmentation]
        return np.logical_or.reduce(parts, axis=0).astype(np.uint8)
    except ImageError as error:
        raise UserError(f"{where}: {error}") from None
    except (TypeError, ValueError):
        raise UserError(f"{where}: its segmentation is neither an RLE nor a list of polygons") from None
