"""The localisation protocol against the release's numbers, a plain reference, and maps that are broken on purpose."""

import itertools
import json

import numpy as np
import pytest
from reference import numpy_localization

from afloc_jax.errors import UserError
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.scores import score, score_sample
from afloc_jax.evaluation.truth.read import read_truth
from afloc_jax.evaluation.truth.sample import Truth

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
WHOLE = ProtocolOptions(margin=0)


def truth(mask, category="effusion", sample_id="a#1"):
    return Truth(sample_id, "phrase", category, np.asarray(mask, np.uint8))


def square_mask(size=20, rows=slice(5, 10), columns=slice(6, 12)):
    mask = np.zeros((size, size), np.uint8)
    mask[rows, columns] = 1
    return mask


@pytest.mark.parametrize("margin", [14, 0])
def test_samples_equal_the_release(goldens, margin):
    data = np.load(goldens / "localization.npz")
    truths = read_truth(goldens / "grounding_coco.json")
    scores = score(truths, data["heatmaps"], ProtocolOptions(margin=margin, compatible=True))
    expected = data["per_sample"][data["per_sample"][:, 0] == (margin > 0)]
    np.testing.assert_array_equal(expected[:, 1], np.arange(len(truths)))
    np.testing.assert_allclose(scores["iou"], expected[:, 2:7], rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores["cnr"], expected[:, 7], rtol=1e-6, atol=0)


def test_samples_and_masks_are_read_as_the_release_reads_them(goldens):
    truths = read_truth(goldens / "grounding_coco.json")
    listed = json.loads((goldens / "grounding_samples.json").read_text())
    assert [t.image for t in truths] == listed["path"]
    assert [t.label_text.lower() for t in truths] == listed["label_text"]
    assert [t.category for t in truths] == listed["category"]
    np.testing.assert_array_equal(np.stack([t.mask for t in truths]), np.load(goldens / "localization.npz")["masks"])


@pytest.mark.parametrize("seed", range(12))
def test_scores_equal_plain_loops_over_pixels(seed):
    rng = np.random.default_rng(seed)
    size = (16, 32, 48)[seed % 3]
    mask = (rng.random((size, size)) < 0.2).astype(np.uint8)
    heatmap = rng.standard_normal((size, size)).astype(np.float32)
    if seed % 2:  # many ties, at the thresholds too
        heatmap = np.round(heatmap * 2) / 2
    result = score_sample(mask, heatmap, ProtocolOptions())
    iou, dice, cnr, pointing = numpy_localization.scores(mask, heatmap, THRESHOLDS, margin=size // 16)
    np.testing.assert_allclose(result["iou"], iou, rtol=1e-12)
    np.testing.assert_allclose(result["dice"], dice, rtol=1e-12)
    np.testing.assert_allclose([result["cnr"], result["pointing"]], [cnr, pointing], rtol=1e-9)


def test_overlapping_boxes_are_inside_by_default_and_ignored_by_the_compatible_cnr():
    mask = square_mask()
    mask[5:7, 6:8] = 2
    heatmap = np.random.default_rng(0).standard_normal((20, 20))
    default = score_sample(mask, heatmap, WHOLE)
    compatible = score_sample(mask, heatmap, ProtocolOptions(margin=0, compatible=True))
    inside, outside = heatmap[mask > 0], heatmap[mask == 0]
    once = heatmap[mask == 1]

    def cnr(a, b):
        return (a.mean() - b.mean()) / np.sqrt(a.var() + b.var())

    assert default["cnr"] == pytest.approx(cnr(inside, outside))  # CNR does not depend on the scale of the map
    assert compatible["cnr"] == pytest.approx(cnr(once, outside))
    np.testing.assert_array_equal(default["iou"], compatible["iou"])


def test_cnr_is_signed_and_scores_do_not_change_with_scale_and_offset():
    mask = square_mask()
    heatmap = mask + 0.3 * np.random.default_rng(1).standard_normal((20, 20))
    first, second, inverse = (score_sample(mask, m, WHOLE) for m in (heatmap, 7 * heatmap - 100, -heatmap))
    assert first["cnr"] > 1
    assert inverse["cnr"] == pytest.approx(-first["cnr"])
    assert second["cnr"] == pytest.approx(first["cnr"])
    np.testing.assert_array_equal(first["iou"], second["iou"])


def test_a_constant_map_predicts_nothing_and_points_at_random():
    for compatible in (False, True):
        mask = square_mask()
        result = score_sample(mask, np.full((20, 20), 0.7), ProtocolOptions(margin=0, compatible=compatible))
        assert (result.predicted_pixels == 0).all()
        assert result["cnr"] == 0
        assert result["pointing"] == mask.mean()
        np.testing.assert_array_equal(result["iou"], [np.nan] * 5 if compatible else [0] * 5)
        np.testing.assert_array_equal(result["dice"], [np.nan] * 5 if compatible else [0] * 5)


def test_an_empty_prediction_at_one_threshold_is_a_miss_by_default_and_skipped_in_compatible_mode():
    mask = square_mask()
    heatmap = mask * 0.0
    heatmap[5, 6] = 1.0
    options = ProtocolOptions(thresholds=(0.5, 1.0), margin=0)  # nothing lies above 1
    default = score([truth(mask)], [heatmap], options)
    np.testing.assert_allclose(default["iou"], [[1 / 30, 0]])
    np.testing.assert_array_equal(default.empty_prediction, [[False, True]])
    compatible = score([truth(mask)], [heatmap], ProtocolOptions((0.5, 1.0), 0, compatible=True))
    np.testing.assert_allclose(compatible["iou"], [[1 / 30, np.nan]])
    np.testing.assert_allclose(compatible["dice"], [[2 / 31, np.nan]])


def test_a_sample_without_truth_in_the_scored_region_has_no_score():
    in_the_margin = square_mask(224, slice(0, 10), slice(0, 224))
    heatmap = np.random.default_rng(2).standard_normal((224, 224))
    for options in (ProtocolOptions(), ProtocolOptions(compatible=True)):
        scores = score([truth(in_the_margin), truth(in_the_margin * 0)], [heatmap, heatmap], options)
        assert np.isnan(scores["iou"]).all() and np.isnan(scores["dice"]).all()
        assert np.isnan(scores["cnr"]).all() and np.isnan(scores["pointing"]).all()
        assert scores.empty_truth.all() and not scores.empty_prediction.any()


def test_a_perfect_map_with_no_variance_on_either_side_has_cnr_zero_as_published():
    mask = square_mask()
    result = score_sample(mask, mask * 2.0, WHOLE)
    np.testing.assert_array_equal(result["iou"], np.ones(5))
    assert (result["cnr"], result["pointing"]) == (0, 1)


def test_truth_everywhere_has_overlap_but_no_contrast():
    result = score_sample(np.ones((20, 20)), np.random.default_rng(3).random((20, 20)), WHOLE)
    assert np.isfinite(result["iou"]).all() and result["pointing"] == 1
    assert np.isnan(result["cnr"])


def test_the_pointing_game_looks_only_at_the_scored_region():
    mask = square_mask(224, slice(100, 120), slice(100, 120))
    heatmap = np.zeros((224, 224))
    heatmap[110, 110] = 1
    heatmap[3, 3] = 5  # in the margin
    assert score_sample(mask, heatmap, ProtocolOptions())["pointing"] == 1
    assert score_sample(mask, heatmap, WHOLE)["pointing"] == 0
    heatmap[50, 50] = heatmap[60, 60] = heatmap[70, 70] = 1  # four maxima, one of them inside
    assert score_sample(mask, heatmap, ProtocolOptions())["pointing"] == 0.25


def test_negative_thresholds_are_allowed_for_histopathology():
    mask = square_mask()
    heatmap = np.linspace(-1, 1, 400).reshape(20, 20)
    result = score_sample(mask, heatmap, ProtocolOptions((-1.0, -0.5, -0.1), margin=0))
    np.testing.assert_array_equal(result.predicted_pixels, [399, 300, 220])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_refused_by_the_name_of_its_sample(bad):
    heatmap = np.zeros((20, 20))
    heatmap[0, 0] = bad  # in the margin: still a sign of a broken system
    with pytest.raises(UserError, match="sample a#1 holds 1 NaN or infinite values of 400"):
        score([truth(square_mask())], [heatmap])


@pytest.mark.parametrize("heatmap", [np.zeros((19, 20)), np.zeros((21, 21)), np.zeros((1, 20, 20)), np.zeros(400)])
def test_a_map_of_another_shape_is_refused(heatmap):
    with pytest.raises(UserError, match=r"sample a#1 has shape .* its mask \(20, 20\)"):
        score([truth(square_mask())], [heatmap])


def test_maps_must_be_real_numbers_and_as_many_as_the_samples():
    with pytest.raises(UserError, match="real numbers"):
        score([truth(square_mask())], [np.zeros((20, 20), complex)])
    for count in (0, 2):
        with pytest.raises(ValueError, match="argument 2"):
            score([truth(square_mask())], [np.zeros((20, 20))] * count)
    with pytest.raises(UserError, match="no sample"):
        score([], [])


@pytest.mark.parametrize(
    "options", [{"thresholds": ()}, {"thresholds": (0.2, 0.1)}, {"thresholds": (2.0,)}, {"margin": -1}, {"margin": 112}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ProtocolOptions(**options)


def test_a_phrase_does_not_appear_when_a_truth_is_printed():
    assert "phrase" not in repr(truth(square_mask()))


def test_stability_is_the_mean_overlap_of_the_regions_at_neighbouring_thresholds():
    rng = np.random.default_rng(7)
    for shape in (0.3, 1.0, 4.0):
        heatmap = rng.random((20, 20)) ** shape
        scaled = 2 * (heatmap - heatmap.min()) / np.ptp(heatmap) - 1
        regions = [scaled > t for t in THRESHOLDS]
        pairs = [(a & b).sum() / (a | b).sum() for a, b in itertools.pairwise(regions) if (a | b).any()]
        assert score_sample(square_mask(), heatmap, WHOLE)["stability"] == pytest.approx(np.mean(pairs), rel=1e-12)


def test_stability_is_1_for_a_map_of_two_values_and_undefined_where_nothing_is_predicted_or_to_be_found():
    mask = square_mask()
    assert score_sample(mask, mask * 1.0, WHOLE)["stability"] == 1
    assert np.isnan(score_sample(mask, np.ones((20, 20)), WHOLE)["stability"])
    assert np.isnan(score_sample(mask, mask * 1.0, ProtocolOptions((0.5,), 0))["stability"])
    assert np.isnan(score_sample(0 * mask, mask * 1.0, WHOLE)["stability"])
    assert "stability" not in score_sample(mask, mask * 1.0, ProtocolOptions(compatible=True)).values
