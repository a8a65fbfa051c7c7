"""Boxes of a map at the original size of an image, without the whole of that map, which is 30 MB of a film.

Between rows of the square the map is interpolated linearly, so no column of the map exceeds the largest value that it
interpolates. Only columns that may exceed the threshold, or that may hold an extreme, are computed.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from afloc_jax import heatmaps
from data_pipelines.images import Geometry

_ROUNDING = 4 * float(np.finfo(np.float32).eps)  # of an interpolated value, beside the largest that it interpolates


class Regions(NamedTuple):
    """What exceeds a threshold of a map at the original size of the image.

    Attributes:
        boxes: [K, 4] x, y, width, height in original pixels, see `heatmaps.boxes_from_map`.
        scores: [K] the largest value in each box.
        cut: the value of the map above which there are boxes.
        highest: the largest value of the map.
    """

    boxes: Int[np.ndarray, "K 4"]
    scores: Float[np.ndarray, " K"]
    cut: float
    highest: float


def regions_of(square: Float[np.ndarray, "S S"], geometry: Geometry, threshold: float) -> Regions:
    """The regions of `geometry.map_to_original(square)`, of which it computes a part.

    The threshold is that of the map scaled to [-1, 1] by its own minimum and maximum.
    """
    across = geometry.map_across(square)
    rounding = _ROUNDING * float(np.abs(across).max())
    above = across.max(axis=0) + rounding  # no value of a column exceeds it
    highest = _highest(across, above, geometry)
    lowest = -_highest(-across, rounding - across.min(axis=0), geometry)
    # The threshold is scaled instead of the map, which would need further arrays.
    cut = lowest + (threshold + 1) / 2 * (highest - lowest)
    chosen = _with_gaps(above > cut)
    if not len(chosen):
        return Regions(np.zeros((0, 4), int), np.zeros(0, np.float32), cut, highest)
    part = geometry.map_down(across[:, chosen])
    boxes = heatmaps.boxes_from_map(part, cut)
    scores = [part[y : y + height, x : x + width].max() for x, y, width, height in boxes]
    boxes[:, 0] = chosen[boxes[:, 0]]
    return Regions(boxes, np.array(scores, np.float32), cut, highest)


def _highest(across: Float[np.ndarray, "h W"], above: Float[np.ndarray, " W"], geometry: Geometry) -> float:
    """The largest value of the map, from the columns that may hold it."""
    found = float(geometry.map_down(across[:, [int(above.argmax())]]).max())
    others = across[:, above > found]
    return max(found, float(geometry.map_down(others).max())) if others.size else found


def _with_gaps(chosen: Bool[np.ndarray, " W"]) -> Int[np.ndarray, " K"]:
    """The numbers of the chosen columns, and after each run of them the next one, so that runs do not touch."""
    chosen = chosen.copy()
    chosen[1:] |= chosen[:-1]
    return np.flatnonzero(chosen)
