"""Properties of scores and statistics, against sets of pixels, all pairs, and samples left out by hand."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from afloc_jax.evaluation.localization.metrics import contrast_to_noise, overlaps, pointing_game
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.evaluation.statistics.discrimination import auc

SIDE = 9
LEVELS = st.sampled_from([-1.0, -0.5, 0.0, 0.1, 0.2, 0.5, 0.75, 1.0])  # few, so that thresholds and ties are met
MAPS = arrays(np.float64, (SIDE, SIDE), elements=LEVELS)
MASKS = arrays(bool, (SIDE, SIDE))
THRESHOLDS = st.lists(LEVELS, min_size=1, max_size=5, unique=True).map(sorted)


@given(MAPS, MASKS, THRESHOLDS)
def test_overlaps_are_those_of_sets_of_pixels(heatmap, mask, thresholds):
    truth = set(zip(*np.nonzero(mask), strict=True))
    assume(truth)
    iou, dice, predicted = overlaps(heatmap, mask, thresholds)
    for k, threshold in enumerate(thresholds):
        said = set(zip(*np.nonzero(heatmap > threshold), strict=True))
        assert predicted[k] == len(said)
        assert iou[k] == pytest.approx(len(said & truth) / len(said | truth))
        assert dice[k] == pytest.approx(2 * len(said & truth) / (len(said) + len(truth)))


@given(MAPS, MASKS, st.floats(0.1, 10), st.floats(-5, 5))
def test_contrast_ignores_scale_and_offset_and_turns_with_the_sign(heatmap, mask, factor, offset):
    assume(mask.any() and not mask.all())
    contrast = contrast_to_noise(heatmap, mask, ~mask)
    assume(heatmap[mask].std() + heatmap[~mask].std() > 1e-6)
    assert contrast_to_noise(factor * heatmap + offset, mask, ~mask) == pytest.approx(contrast, rel=1e-6, abs=1e-9)
    assert contrast_to_noise(-heatmap, mask, ~mask) == pytest.approx(-contrast)
    assert contrast_to_noise(heatmap, ~mask, mask) == pytest.approx(-contrast)


@given(MAPS, MASKS)
def test_pointing_is_the_chance_of_a_hit(heatmap, mask):
    assume(mask.any())
    best = [place for place in np.ndindex(SIDE, SIDE) if heatmap[place] == heatmap.max()]
    assert pointing_game(heatmap, mask) == pytest.approx(sum(mask[place] for place in best) / len(best))
    assert pointing_game(heatmap, mask) + (pointing_game(heatmap, ~mask) if not mask.all() else 0) == pytest.approx(1)


SAMPLES = st.integers(2, 14).flatmap(
    lambda n: st.tuples(
        arrays(bool, n),
        arrays(np.float64, n, elements=st.integers(-3, 3)),
        arrays(np.float64, n, elements=st.integers(0, 4)),
    )
)


@given(SAMPLES)
def test_the_auc_is_the_share_of_pairs_in_the_right_order(sample):
    labels, scores, weights = sample
    pairs = [(p, n) for p in np.flatnonzero(labels) for n in np.flatnonzero(~labels)]
    total = sum(weights[p] * weights[n] for p, n in pairs)
    won = sum(weights[p] * weights[n] * ((scores[p] > scores[n]) + (scores[p] == scores[n]) / 2) for p, n in pairs)
    (found,) = auc(labels, scores, weights[None])
    if total == 0:
        assert np.isnan(found)
        return
    assert found == pytest.approx(won / total)
    assert auc(labels, -scores, weights[None])[0] == pytest.approx(1 - found)
    assert auc(~labels, scores, weights[None])[0] == pytest.approx(1 - found)
    assert auc(labels, np.exp(scores), weights[None])[0] == pytest.approx(found)


VALUES = st.integers(2, 10).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, (n, 2), elements=st.floats(-10, 10) | st.just(np.nan)),
        arrays(int, n, elements=st.integers(0, 2)),
        arrays(int, n, elements=st.integers(0, 3)),
    )
)


@given(VALUES, st.booleans(), st.booleans())
def test_means_without_each_unit_are_what_leaving_it_out_gives(sample, stratified, clustered):
    values, category, patient = sample
    clusters = patient if clustered else None
    found = Bootstrap(2, interval="bca").means(values, category, 3, clusters, stratified=stratified)
    units = patient if clustered else np.arange(len(values))

    def means(kept: np.ndarray) -> np.ndarray:
        rows = [values[kept & (category == index)] for index in range(3)]
        return np.array([[np.nanmean(c) if np.isfinite(c).any() else np.nan for c in row.T] for row in rows])

    np.testing.assert_allclose(found.point, means(np.ones(len(values), bool)), rtol=1e-9, atol=1e-9)
    rows = [np.flatnonzero(category == index) for index in range(3)]
    groups = rows if stratified and not clustered else [np.concatenate(rows)]
    parts = iter(found.left_out)
    for group in groups:
        if len(group):
            in_order = list(dict.fromkeys(units[group]))
            expected = [means(units != unit) for unit in in_order]
            np.testing.assert_allclose(next(parts), expected, rtol=1e-9, atol=1e-9)
    assert next(parts, None) is None
