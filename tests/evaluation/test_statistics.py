"""Bootstrap against plain resampling, theory, and the intervals the release wrote."""

import numpy as np
import pytest

from afloc_jax.evaluation import statistics


def test_means_of_resamples_equal_plain_resampling_of_the_same_draws():
    rng = np.random.default_rng(0)
    values, category = rng.random((9, 2)), np.array([0, 1, 0, 1, 1, 0, 0, 1, 1])
    values[3, 1] = np.nan
    result = statistics.bootstrap(values, category, 2, resamples=50, seed=7)
    draws = np.random.default_rng(7)
    for index in range(2):
        rows = values[category == index]
        for resample, picked in enumerate(draws.integers(0, len(rows), (50, len(rows)))):
            np.testing.assert_allclose(result.resampled[resample, index], np.nanmean(rows[picked], axis=0))
        np.testing.assert_allclose(result.point[index], np.nanmean(rows, axis=0))


def test_unstratified_draws_take_the_whole_table_and_may_miss_a_category():
    values, category = np.arange(6.0)[:, None], np.array([0, 0, 0, 0, 0, 1])
    result = statistics.bootstrap(values, category, 2, resamples=2000, seed=1, stratified=False)
    missed = np.isnan(result.resampled[:, 1, 0]).mean()
    assert missed == pytest.approx((5 / 6) ** 6, abs=0.04)
    assert np.isfinite(statistics.limits(result.resampled)[0]).all()


def test_limits_agree_with_the_normal_theory_of_a_mean():
    values = np.random.default_rng(2).normal(3.0, 2.0, (400, 1))
    result = statistics.bootstrap(values, np.zeros(400, int), 1, resamples=4000)
    lower, upper = statistics.limits(result.resampled[:, 0, 0])
    half = 1.96 * values.std() / 20
    assert lower == pytest.approx(values.mean() - half, abs=0.02)
    assert upper == pytest.approx(values.mean() + half, abs=0.02)


def test_the_seed_decides_and_the_columns_do_not():
    values, category = np.random.default_rng(3).random((30, 3)), np.arange(30) % 3
    first = statistics.bootstrap(values, category, 3, 20, seed=5)
    again = statistics.bootstrap(values[:, 1:2], category, 3, 20, seed=5)
    other = statistics.bootstrap(values, category, 3, 20, seed=6)
    np.testing.assert_allclose(first.resampled[..., 1:2], again.resampled, rtol=1e-12)
    assert not np.allclose(first.resampled, other.resampled)


def test_blocks_bound_the_memory_and_keep_every_resample(monkeypatch):
    values, category = np.random.default_rng(4).random((12, 2)), np.zeros(12, int)
    whole = statistics.bootstrap(values, category, 1, 25, seed=8)
    monkeypatch.setattr(statistics, "BLOCK", 60)
    blocks = statistics.bootstrap(values, category, 1, 25, seed=8)
    np.testing.assert_allclose(blocks.resampled, whole.resampled, rtol=1e-12)


def test_what_was_never_scored_is_undefined_without_a_warning():
    result = statistics.bootstrap(np.full((4, 1), np.nan), np.zeros(4, int), 2, 10)
    assert np.isnan(result.point).all() and np.isnan(result.resampled).all()
    shown = statistics.interval(result.point[0, 0], result.resampled[:, 0, 0]).to_dict()
    assert shown == {"mean": None, "lower": None, "upper": None}


def test_no_variance_gives_an_interval_of_no_width():
    result = statistics.bootstrap(np.full((5, 1), 0.25), np.zeros(5, int), 1, 100)
    shown = statistics.interval(result.point[0, 0], result.resampled[:, 0, 0])
    np.testing.assert_allclose([shown.lower, shown.mean, shown.upper], 0.25, rtol=1e-12)


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="samples, columns"):
        statistics.bootstrap(np.zeros(3), np.zeros(3, int), 1)
    with pytest.raises(ValueError, match="resamples is 0"):
        statistics.bootstrap(np.zeros((3, 1)), np.zeros(3, int), 1, resamples=0)
