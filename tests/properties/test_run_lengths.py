"""Properties of regions: run lengths of any mask come back, and no text whatever does more than be refused."""

from itertools import groupby

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from data_pipelines.images import ImageError
from data_pipelines.regions import Box, CocoRuns, GapRuns, Polygon

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=24))
SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))


def runs_of(mask: np.ndarray) -> list[int]:
    """Lengths of 0 and 1 in turn, down the columns, beginning with 0."""
    runs = [len(list(same)) for _, same in groupby(mask.flatten(order="F"))]
    return [0, *runs] if mask[0, 0] else runs


@given(MASKS)
def test_coco_runs_come_back(mask):
    size = list(mask.shape)
    text = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    for counts in (runs_of(mask), text):
        region = CocoRuns({"size": size, "counts": counts})
        np.testing.assert_array_equal(region.mask(*size), mask)
        np.testing.assert_array_equal(region.runs(*size), runs_of(mask))
        assert region.empty == (not mask.any())


@given(MASKS)
def test_gap_runs_come_back(mask):
    runs = runs_of(mask)
    if len(runs) % 2:  # what lies behind the last run of 1 is not written
        runs.pop()
    assume(runs)
    np.testing.assert_array_equal(GapRuns(" ".join(map(str, runs))).mask(*mask.shape), mask)


COUNTS = st.text() | st.text("0123456789:;<=>?@PQRSTUVWXYZ[]_`ao") | st.lists(st.integers() | st.floats() | st.none())


@given(COUNTS, SIZES)
def test_any_coco_runs_are_a_mask_or_an_image_error(counts, size):
    region = CocoRuns({"size": list(size), "counts": counts})
    assert region.empty in (True, False)
    try:
        mask = region.mask(*size)
    except ImageError:
        return
    assert mask.shape == size and mask.dtype == bool


@given(st.text() | st.text("0123456789 -"), SIZES)
def test_any_gap_runs_are_a_mask_or_an_image_error(text, size):
    try:
        mask = GapRuns(text).mask(*size)
    except ImageError:
        return
    assert mask.shape == size and mask.sum() == sum(map(int, text.split()[1::2]))


@given(SIZES, st.integers(-5, 25), st.integers(-5, 25), st.integers(1, 30), st.integers(1, 30))
def test_boxes_and_polygons_cover_the_pixels_whose_centres_they_hold(size, x, y, width, height):
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    inside = (rows > y) & (rows < y + height) & (columns > x) & (columns < x + width)
    if not inside.any():
        try:
            Box(x, y, width, height).mask(*size)
        except ImageError:
            return
        raise AssertionError("a box outside its image was drawn")
    np.testing.assert_array_equal(Box(x, y, width, height).mask(*size), inside)
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    np.testing.assert_array_equal(Polygon(corners).mask(*size), inside)
