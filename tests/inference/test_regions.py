"""Boxes from a part of a map are those of the whole map, bit for bit."""

import cv2
import numpy as np
import pytest

from afloc_jax import heatmaps
from afloc_jax.inference.regions import regions_of
from data_pipelines.images import Geometry

SIZES = [(300, 254), (37, 501), (224, 224), (90, 41), (60, 1), (1, 60), (1, 1), (800, 610)]


def squares():
    """Noise, smooth maps, a flat one, one of two values, and one with a single point."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(64, 64)).astype(np.float32)
    point = np.zeros((64, 64), np.float32)
    point[32, 31] = 2
    yield from (noise, cv2.GaussianBlur(noise, (0, 0), 3), np.full((64, 64), -0.3, np.float32))
    yield from (np.float32(noise > 0.5), point, -point, cv2.GaussianBlur(noise, (0, 0), 9) * 1e-6 + 0.7)


@pytest.mark.parametrize("height,width", SIZES)
@pytest.mark.parametrize("threshold", [-0.9, 0.3, 0.95])
def test_regions_are_those_of_the_whole_map(height, width, threshold):
    geometry = Geometry(height, width, 64)
    for square in squares():
        whole = geometry.map_to_original(square)
        found = regions_of(square, geometry, threshold)
        low, high = float(whole.min()), float(whole.max())
        assert found.highest == high
        assert found.cut == low + (threshold + 1) / 2 * (high - low)
        boxes = heatmaps.boxes_from_map(whole, found.cut)
        np.testing.assert_array_equal(found.boxes, boxes)
        scores = [whole[y : y + h, x : x + w].max() for x, y, w, h in boxes]
        np.testing.assert_array_equal(found.scores, np.array(scores, np.float32))
