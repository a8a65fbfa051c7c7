"""Properties of the map between an image and its padded square, for images of any size."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data_pipelines.images import Geometry

SIDES = st.integers(1, 4000)
GEOMETRIES = st.builds(Geometry, SIDES, SIDES, st.integers(8, 512))
SMALL = st.builds(Geometry, st.integers(1, 60), st.integers(1, 60), st.integers(8, 48))


@given(GEOMETRIES, arrays(np.float64, (5, 2), elements=st.floats(-100, 5000)))
def test_points_come_back(geometry, points):
    there = geometry.points_to_original(geometry.points_to_square(points))
    np.testing.assert_allclose(there, points, rtol=1e-9, atol=1e-9)


@given(GEOMETRIES)
def test_the_image_fills_the_square_along_one_side_and_lies_in_its_middle(geometry):
    height, width, side = geometry.inner_height, geometry.inner_width, geometry.side
    assert max(height, width) == side and min(height, width) >= 1
    below, right = side - height - geometry.top, side - width - geometry.left
    assert 0 <= below - geometry.top <= 1 and 0 <= right - geometry.left <= 1
    corners = geometry.points_to_square([[0, 0], [geometry.width, geometry.height]])
    expected = [[geometry.left, geometry.top], [geometry.left + width, geometry.top + height]]
    np.testing.assert_allclose(corners, expected, rtol=1e-12, atol=1e-9)
    # The shorter side is floored: never longer than the scale says, by less than a pixel shorter.
    exact = side * min(geometry.height, geometry.width) / max(geometry.height, geometry.width)
    assert min(height, width) <= max(exact, 1) + 1e-9 and min(height, width) > exact - 1 - 1e-9


@given(st.integers(1, 6), st.integers(8, 24), st.integers(1, 24), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_square_is_made_of_the_means_of_blocks(factor, side, shorter, upright, seed):
    shorter = min(shorter, side)
    size = (side, shorter) if upright else (shorter, side)
    image = np.random.default_rng(seed).random((size[0] * factor, size[1] * factor)).astype(np.float32)
    geometry = Geometry(*image.shape, side)
    square = geometry.to_square(image)
    blocks = image.reshape(size[0], factor, size[1], factor).mean(axis=(1, 3))
    np.testing.assert_allclose(geometry.inner(square), blocks, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(square.sum(dtype=np.float64), blocks.sum(dtype=np.float64), rtol=1e-5)  # padding is 0


@given(SMALL, st.data())
def test_no_lesion_disappears_and_nothing_appears(geometry, data):
    mask = data.draw(arrays(bool, (geometry.height, geometry.width)))
    square = geometry.mask_to_square(mask)
    assert square.any() == mask.any()
    rows, columns = np.nonzero(square)
    centres = geometry.points_to_original(np.stack([columns + 0.5, rows + 0.5], -1))
    reach = np.array([geometry.width / geometry.inner_width, geometry.height / geometry.inner_height]) / 2
    for x, y in centres:  # what a pixel of the square covers holds a pixel of the lesion
        left, right = np.floor(x - reach[0] + 1e-6), np.ceil(x + reach[0] - 1e-6)
        top, bottom = np.floor(y - reach[1] + 1e-6), np.ceil(y + reach[1] - 1e-6)
        assert mask[max(int(top), 0) : int(bottom) + 1, max(int(left), 0) : int(right) + 1].any()


@given(SMALL, st.floats(-1, 1, width=32))
def test_a_flat_map_stays_flat(geometry, value):
    heatmap = geometry.map_to_original(np.full((geometry.side, geometry.side), value, np.float32))
    assert heatmap.shape == (geometry.height, geometry.width)
    np.testing.assert_allclose(heatmap, value, rtol=1e-6, atol=1e-7)
