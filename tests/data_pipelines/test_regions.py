"""Regions in every form equal a plain drawing of them, and malformed ones are refused."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from afloc_jax.errors import UserError
from data_pipelines import regions
from data_pipelines.images import Geometry, ImageError
from data_pipelines.regions import (
    Box,
    CocoRuns,
    GapRuns,
    MaskFile,
    Polygon,
    RelativeBox,
    decode_segmentation,
    run_lengths,
)

HEIGHT, WIDTH = 37, 23


def random_mask(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.random((6, 5)), (WIDTH, HEIGHT)) > 0.5


@pytest.mark.parametrize("seed", range(6))
def test_coco_runs_equal_pycocotools(seed):
    mask = random_mask(seed) if seed else np.zeros((HEIGHT, WIDTH), bool)
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = CocoRuns({"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()})
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.r_[False, flat, False]))  # where runs of 1 begin and end
    runs = np.diff(np.r_[0, edges, len(flat)]).tolist()
    for region in (text, CocoRuns({"size": [HEIGHT, WIDTH], "counts": runs})):
        np.testing.assert_array_equal(region.mask(HEIGHT, WIDTH), mask)
        assert region.empty == (not mask.any())


@pytest.mark.parametrize("seed", range(1, 5))
def test_gap_runs_equal_a_walk_down_the_columns(seed):
    mask = random_mask(seed)
    words, gap, length = [], 0, 0
    for value in mask.flatten(order="F"):
        if value:
            length += 1
        elif length:
            words, gap, length = [*words, gap, length], 1, 0
        else:
            gap += 1
    words += [gap, length] if length else []
    np.testing.assert_array_equal(GapRuns(" ".join(map(str, words))).mask(HEIGHT, WIDTH), mask)


def test_boxes_and_polygons_cover_the_same_pixels():
    box = Box(3, 5, 10, 20)
    corners = [(3, 5), (13, 5), (13, 25), (3, 25)]
    assert box.mask(HEIGHT, WIDTH).sum() == 200 and box.mask(HEIGHT, WIDTH)[5:25, 3:13].all()
    np.testing.assert_array_equal(Polygon(corners).mask(HEIGHT, WIDTH), box.mask(HEIGHT, WIDTH))
    relative = RelativeBox(3 / WIDTH, 5 / HEIGHT, 13 / WIDTH, 25 / HEIGHT)
    np.testing.assert_allclose(relative.box(HEIGHT, WIDTH).xywh, box.xywh)
    geometry = Geometry(HEIGHT, WIDTH, 64)
    x, y, width, height = geometry.box_to_square(box.xywh)
    square = np.zeros((64, 64), bool)
    square[y : y + height, x : x + width] = True
    np.testing.assert_array_equal(box.on_square(geometry), square)


def test_polygons_together_are_the_union_of_each(monkeypatch):
    random = np.random.default_rng(0)
    polygons = [random.uniform(-5, 45, 2 * random.integers(3, 9)).tolist() for _ in range(12)]
    expected = np.any([Polygon(polygon).mask(HEIGHT, WIDTH) for polygon in polygons], axis=0)
    np.testing.assert_array_equal(decode_segmentation(polygons, HEIGHT, WIDTH, "here"), expected)
    assert 0.2 < expected.mean() < 1
    monkeypatch.setattr(regions, "LONGEST_OUTLINE", 12)
    assert Polygon([(0, 0), (4, 0), (4, 2)]).mask(HEIGHT, WIDTH).any()  # 4 + 2 + 4 pixels
    with pytest.raises(UserError, match="here: polygons need an outline, of at most 12 pixels together"):
        decode_segmentation([[0, 0, 4, 0, 4, 2]] * 2, HEIGHT, WIDTH, "here")


def test_a_hundred_thousand_polygons_take_one_mask_of_their_image():
    """Each had a mask of its own before, of 25 MB here."""
    mask = decode_segmentation([[1, 1, 3, 1, 3, 3]] * 100_000, 5000, 5000, "here")
    assert mask.shape == (5000, 5000) and 0 < mask.sum() < 9


def test_label_images_are_read_by_value(tmp_path):
    values = np.random.default_rng(0).integers(0, 4, (HEIGHT, WIDTH)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "labels.png"), values)
    for value in range(4):
        found = MaskFile(tmp_path / "labels.png", value).mask(HEIGHT, WIDTH)
        np.testing.assert_array_equal(found, values == value)
    np.testing.assert_array_equal(MaskFile(tmp_path / "labels.png").mask(HEIGHT, WIDTH), values > 0)
    with pytest.raises(ImageError, match="the mask is 23 x 37 pixels, its image 23 x 38"):
        MaskFile(tmp_path / "labels.png").mask(HEIGHT + 1, WIDTH)


WRAPS = [2**63 - 1, 2**63 - 1, HEIGHT * WIDTH + 2]  # fills the image if their sum wraps at 64 bits


def packed(runs):
    """COCO's compressed form of run lengths of any size, which pycocotools limits to 32 bits."""
    text = ""
    for k, run in enumerate(runs):
        value, more = run - (runs[k - 2] if k > 2 else 0), True
        while more:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            text += chr(digit + 32 * more + 48)
    return text


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (Box(0, 0, 0, 5), "positive width"),
        (Box(float("nan"), 0, 5, 5), "finite corners"),
        (Box(1e9, 0, 5, 5), "finite corners"),
        (Box(23, 0, 5, 5), "lies outside"),
        (Box(-9, -9, 5, 5), "lies outside"),
        (Polygon([(0, 0), (1, 1)]), "three corners or more"),
        (Polygon([(0, 0), (1, 1), (float("inf"), 3)]), "three corners or more"),
        (Polygon([(0, 0), (1, 1), (1e30, 3)]), "each within 1,000,000 pixels"),
        (Polygon("abc"), "three corners or more"),
        (Polygon([(0, 0), (9e5, 0), (0, 9e5), (9e5, 9e5)] * 100_000), "at most 4,000,000 pixels together"),
        (CocoRuns({"counts": "1"}), "not a valid RLE"),
        (CocoRuns({"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}), "its image is"),
        (CocoRuns({"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}), "do not add up"),
        (GapRuns("1 2 3"), "pairs of gap and length"),
        (GapRuns(""), "pairs of gap and length"),
        (GapRuns(f"{HEIGHT * WIDTH} 1"), "fit into the image"),
        (GapRuns("99999999999999999999 1"), "fit into the image"),
        (GapRuns("9" * 4301 + " 1"), "whole numbers"),
        (GapRuns(f"{2**63 - 1} {2**63 - 1} 2 {HEIGHT * WIDTH}"), "fit into the image"),
        (CocoRuns({"size": [HEIGHT, WIDTH], "counts": WRAPS}), "do not add up"),
        (CocoRuns({"size": [HEIGHT, WIDTH], "counts": packed(WRAPS)}), "do not add up"),
        (CocoRuns({"size": [HEIGHT, WIDTH], "counts": "o" * 100_000 + "0"}), "not a valid RLE"),
        (CocoRuns({"size": [HEIGHT, WIDTH], "counts": [True, HEIGHT * WIDTH - 1]}), "do not add up"),
        (CocoRuns({"size": [HEIGHT, WIDTH], "counts": [0.0, float(HEIGHT * WIDTH)]}), "do not add up"),
        (CocoRuns({"size": [HEIGHT, WIDTH], "counts": {}}), "do not add up"),
    ],
)
def test_malformed_regions_are_refused(region, message):
    with pytest.raises(ImageError, match=message):
        region.mask(HEIGHT, WIDTH)


def test_the_packed_form_of_these_tests_is_that_of_pycocotools():
    mask = np.random.default_rng(3).random((HEIGHT, WIDTH)) > 0.6
    runs = CocoRuns({"size": [HEIGHT, WIDTH], "counts": run_lengths(mask)}).runs(HEIGHT, WIDTH).tolist()
    assert packed(runs) == run_lengths(mask)
    np.testing.assert_array_equal(CocoRuns({"size": [HEIGHT, WIDTH], "counts": runs}).mask(HEIGHT, WIDTH), mask)


def test_run_lengths_of_an_image_that_no_memory_holds_are_refused_before_it_is_taken():
    huge = {"size": [2**31, 2**31], "counts": [2**62]}
    with pytest.raises(ImageError, match="do not add up"):
        CocoRuns(huge).runs(2**31, 2**31)
