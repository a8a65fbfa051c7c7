"""Heat maps against SciPy, PyTorch and the reference numbers of the release."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import torch

from afloc_jax import heatmaps


def relative_error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("shape", "sigma"),
    [((19, 19), 1.5), ((38, 38), 3.0), ((16, 16), 0.4), ((7, 10), 1.5), ((2, 3), 3.0), ((1, 1), 1.5), ((7, 10), 0.0)],
)
def test_smooth_equals_scipy_on_every_grid(shape, sigma):
    maps = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    expected = np.stack([scipy.ndimage.gaussian_filter(m.astype(np.float64), sigma) if sigma else m for m in maps])
    assert relative_error(heatmaps.smooth(maps, sigma), expected) < 1e-6


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((19, 19), (224, 224)),
        ((16, 9), (128, 97)),
        ((2, 3), (5, 300)),
        ((1, 5), (128, 97)),
        ((1, 1), (5, 5)),
        ((300, 40), (97, 128)),
        ((16, 9), (1, 1)),
    ],
)
def test_upsample_equals_torch_on_every_grid(shape, size):
    maps = np.random.default_rng(1).standard_normal((2, *shape)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps.astype(np.float64))[None], size=size, mode="bilinear", align_corners=False
    )[0].numpy()
    assert relative_error(heatmaps.upsample(maps, size), expected) < 1e-6


def test_a_sharpened_map_is_a_step_that_keeps_range_and_order():
    map = scipy.ndimage.gaussian_filter(np.random.default_rng(4).standard_normal((2, 60, 60)), (0, 6, 6)) * 7 - 3
    expected = []
    for m in map:
        step = scipy.special.expit(8.0 * ((m - m.mean()) / m.std() - 1.5))
        scaled = [(x - x.min()) / (x.max() - x.min()) for x in (step, m)]
        expected.append(m.min() + (m.max() - m.min()) * (0.99 * scaled[0] + 0.01 * scaled[1]))
    found = np.asarray(heatmaps.sharpened(map.astype(np.float32), 1.5, 8.0))
    assert relative_error(found, np.array(expected)) < 1e-5
    for before, after in zip(map, found, strict=True):
        assert after.argmax() == before.argmax() and np.count_nonzero(after == after.max()) == 1
    flat = np.full((3, 3), 2.0, np.float32)
    np.testing.assert_array_equal(heatmaps.sharpened(flat), flat)


def test_presence_is_a_soft_step_of_the_cosine_on_zero_vectors_too():
    rng = np.random.default_rng(3)
    regions, text = rng.standard_normal((2, 4, 5, 6)), rng.standard_normal((2, 6))
    regions[0, 1, 2] = 0
    expected = np.zeros((2, 4, 5))
    for place in np.ndindex(2, 4, 5):
        lengths = np.linalg.norm(regions[place]) * np.linalg.norm(text[place[0]])
        cosine = regions[place] @ text[place[0]] / lengths if lengths else 0.0
        expected[place] = 1 / (1 + np.exp(-9.0 * (cosine - 0.2)))
    found = heatmaps.presence_map(regions.astype(np.float32), text.astype(np.float32), 9.0, 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_step_of_a_presence_map_falls_with_the_extent_of_what_stands_out():
    text = np.array([1.0, 0.0], np.float32)
    cosines = np.full((3, 20, 20), -0.5)  # 4, 64 and 0 of 400 regions stand out
    cosines[0, :2, :2] = cosines[1, :8, :8] = 0.9
    cosines[:, 10, 10] = 0.3
    regions = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=-1).astype(np.float32)
    found = heatmaps.presence_map(regions, text, 8.0, 0.5, 0.1)
    for image, count in enumerate((4, 64, 0)):
        # 1 / (1 + exp(-40 (c - 0.5))) at 0.9, 0.3 and -0.5
        others = 399 - count
        extent = (count / (1 + np.exp(-16.0)) + 1 / (1 + np.exp(8.0)) + others / (1 + np.exp(40.0)) + 0.5) / 400
        step = 0.5 - 0.1 * np.log2(extent / 0.01)
        np.testing.assert_allclose(found[image], 1 / (1 + np.exp(-8 * (cosines[image] - step))), rtol=1e-4)
    assert found[1, 10, 10] > found[0, 10, 10] > found[2, 10, 10]
    same = heatmaps.presence_map(regions, text, 8.0, 0.5, 0.0)
    assert same[1, 10, 10] == same[0, 10, 10]


def test_settings_pick_similarity_filter_and_cells():
    rng = np.random.default_rng(4)
    regions, text = rng.standard_normal((8, 8, 6), np.float32), rng.standard_normal(6, np.float32)
    published = heatmaps.HeatmapSettings.read({})
    sigma = heatmaps.scaled_sigma(8)
    smoothed = heatmaps.smooth(heatmaps.similarity_map(regions, text), sigma)
    np.testing.assert_allclose(published.map(regions, text, 32, 64), heatmaps.upsample(smoothed, 32), rtol=1e-6)
    given = {"sigma": 0.0, "cells": "receptive_field", "similarity": "presence", "presence_threshold": 0.1}
    given["presence_growth"] = 0.05
    cells = heatmaps.presence_map(regions, text, 8.0, 0.1, 0.05)
    chosen = heatmaps.HeatmapSettings.read(given)
    np.testing.assert_allclose(chosen.map(regions, text, 32, 64), heatmaps.upsample(cells, 32, 64), rtol=1e-6)


def test_heatmap_equals_the_release(goldens):
    data = np.load(goldens / "localization.npz")
    for index in range(3):
        patches, text = data[f"map{index}/patches"], data[f"map{index}/text"]
        smoothed = heatmaps.smooth(heatmaps.similarity_map(patches, text))
        assert relative_error(smoothed, data[f"map{index}/smoothed"]) < 1e-6
        assert (
            relative_error(heatmaps.HeatmapSettings().map(patches, text, 224, 299), data[f"map{index}/heatmap"]) < 1e-6
        )


def test_a_batch_of_images_and_prompts_equals_one_at_a_time():
    rng = np.random.default_rng(2)
    regions = rng.standard_normal((3, 6, 5, 8)).astype(np.float32)
    texts = rng.standard_normal((2, 8)).astype(np.float32)
    settings = heatmaps.HeatmapSettings()
    both = jax.jit(lambda r, t: settings.map(r[:, None], t[None], 20, 64))(regions, texts)
    assert both.shape == (3, 2, 20, 20)
    for image in range(3):
        for prompt in range(2):
            alone = settings.map(regions[image], texts[prompt], 20, 64)
            np.testing.assert_allclose(both[image, prompt], alone, rtol=1e-5, atol=1e-5)


def test_low_precision_maps_are_filtered_in_float32():
    maps = jnp.asarray(np.random.default_rng(3).standard_normal((9, 9)), jnp.bfloat16)
    smoothed = heatmaps.smooth(maps)
    assert smoothed.dtype == jnp.float32
    assert relative_error(smoothed, scipy.ndimage.gaussian_filter(np.asarray(maps, np.float64), 1.5)) < 1e-6


def test_sigma_scales_with_the_grid():
    assert heatmaps.scaled_sigma(19) == 1.5
    assert heatmaps.scaled_sigma(38) == 3.0


def test_normalise_spans_the_range_and_sends_a_constant_map_to_its_low_end():
    maps = np.stack([np.arange(12.0).reshape(3, 4), np.full((3, 4), 7.0)])
    result = heatmaps.normalise(maps, -1, 1)
    assert result.dtype == np.float64
    assert (result[0].min(), result[0].max()) == (-1, 1)
    assert (result[1] == -1).all()


def test_boxes_are_those_of_scipys_connected_parts():
    """Equal parts keep the order of their first pixels."""
    rng = np.random.default_rng(0)
    for side in (1, 7, 40):
        mask = rng.random((side, side + 3)) < 0.4
        labels, count = scipy.ndimage.label(mask)
        pixels = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        parts = [scipy.ndimage.find_objects(labels)[k] for k in np.argsort(-pixels, kind="stable")]
        expected = [[x.start, y.start, x.stop - x.start, y.stop - y.start] for y, x in parts]
        assert heatmaps.boxes_from_map(mask.astype(float), 0.5).tolist() == expected


def test_boxes_surround_connected_parts_largest_first():
    map01 = np.zeros((10, 12))
    map01[5:9, 8:10] = 0.9
    map01[1:3, 2:7] = 0.6
    map01[9, 10] = 0.5  # touches the first part at a corner only
    assert heatmaps.boxes_from_map(map01, 0.3).tolist() == [[2, 1, 5, 2], [8, 5, 2, 4], [10, 9, 1, 1]]
    assert heatmaps.boxes_from_map(map01, 0.5).tolist() == [[2, 1, 5, 2], [8, 5, 2, 4]]
    assert heatmaps.boxes_from_map(map01, 0.3, minimum_pixels=9).tolist() == [[2, 1, 5, 2]]
    assert heatmaps.boxes_from_map(map01, 0.95).shape == (0, 4)
    assert heatmaps.boxes_from_map(np.full((10, 12), np.nan), 0.3).shape == (0, 4)


def test_wrong_shapes_and_values_are_refused(unchecked):
    with pytest.raises(ValueError, match="8 wide and the text 9"):
        heatmaps.similarity_map(np.zeros((2, 2, 8)), np.zeros(9))
    with pytest.raises(ValueError, match="sigma is -1"):
        heatmaps.smooth(np.zeros((2, 2)), -1)
    with pytest.raises(ValueError, match="sigma is nan"):
        heatmaps.smooth(np.zeros((2, 2)), float("nan"))
    with pytest.raises(ValueError, match="1 x 1"):
        heatmaps.upsample(np.zeros((2, 2)), 0)
    with pytest.raises(ValueError, match="one map"):
        heatmaps.boxes_from_map(np.zeros((1, 2, 2)), 0.5)


def test_cells_lie_where_a_strided_network_looks():
    """A point moved over the input: the smoothed answer of strided convolutions peaks at the point, not beside it."""
    for input_size, layers in ((112, 2), (299, 4)):
        kernel = torch.ones(1, 1, 3, 3) * torch.tensor([1.0, 2.0, 1.0]) * torch.tensor([[1.0], [2.0], [1.0]])
        for point in (32, 64, 80):
            x = torch.zeros(1, 1, input_size, input_size)
            x[..., point, point] = 1
            for _ in range(layers):
                x = torch.nn.functional.conv2d(x, kernel, stride=2, padding=1)
            map_ = x[0, 0].numpy()
            centre = {}
            for name, given in (("aligned", input_size), ("tiles", None)):
                up = np.asarray(heatmaps.upsample(map_, input_size, given), np.float64).sum(axis=0)
                centre[name] = (up * np.arange(input_size)).sum() / up.sum()
            assert abs(centre["aligned"] - point) < 0.05, (input_size, point, centre)
            assert centre["tiles"] - point > 1


def test_cells_that_no_stride_makes_are_refused():
    with pytest.raises(ValueError, match="stride"):
        heatmaps.upsample(np.zeros((5, 5)), 64, 64)


def test_boxes_are_those_of_labelled_regions():
    """The regions and their order as OpenCV labels them, for noise, smooth maps, holes and regions in holes."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        noise = rng.random(rng.integers(1, 60, 2)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), rng.choice([0.4, 1, 3]))
        map01 = cv2.resize(smooth, None, fx=rng.integers(1, 6), fy=rng.integers(1, 6))
        threshold, least = np.quantile(map01, rng.random()), int(rng.choice([1, 9]))
        parts = cv2.connectedComponentsWithStats((map01 > threshold).astype(np.uint8), connectivity=4)[2][1:]
        parts = parts[parts[:, 4] >= least]
        expected = parts[np.argsort(-parts[:, 4], kind="stable"), :4]
        np.testing.assert_array_equal(heatmaps.boxes_from_map(map01, threshold, least), expected)
