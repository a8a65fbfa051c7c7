"""Bootstrap against plain resampling, theory, and the intervals the release wrote."""

import numpy as np
import pytest
import scipy.stats

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.statistics import bootstrap, interval
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap


def test_means_of_resamples_equal_plain_resampling_of_the_same_draws():
    rng = np.random.default_rng(0)
    values, category = rng.random((9, 2)), np.array([0, 1, 0, 1, 1, 0, 0, 1, 1])
    values[3, 1] = np.nan
    result = Bootstrap(50, 7).means(values, category, 2)
    draws = np.random.default_rng(7)
    for index in range(2):
        rows = values[category == index]
        for resample, picked in enumerate(draws.integers(0, len(rows), (50, len(rows)))):
            np.testing.assert_allclose(result.resampled[resample, index], np.nanmean(rows[picked], axis=0))
        np.testing.assert_allclose(result.point[index], np.nanmean(rows, axis=0))


def test_unstratified_draws_take_the_whole_table_and_may_miss_a_category():
    values, category = np.arange(6.0)[:, None], np.array([0, 0, 0, 0, 0, 1])
    result = Bootstrap(2000, 1).means(values, category, 2, stratified=False)
    missed = np.isnan(result.resampled[:, 1, 0]).mean()
    assert missed == pytest.approx((5 / 6) ** 6, abs=0.04)
    assert np.isfinite(interval.limits(result.resampled)[0]).all()


def test_limits_agree_with_the_normal_theory_of_a_mean():
    values = np.random.default_rng(2).normal(3.0, 2.0, (400, 1))
    result = Bootstrap(4000).means(values, np.zeros(400, int), 1)
    lower, upper = interval.limits(result.resampled[:, 0, 0])
    half = 1.96 * values.std() / 20
    assert lower == pytest.approx(values.mean() - half, abs=0.02)
    assert upper == pytest.approx(values.mean() + half, abs=0.02)


def test_the_seed_decides_and_the_columns_do_not():
    values, category = np.random.default_rng(3).random((30, 3)), np.arange(30) % 3
    first = Bootstrap(20, 5).means(values, category, 3)
    again = Bootstrap(20, 5).means(values[:, 1:2], category, 3)
    other = Bootstrap(20, 6).means(values, category, 3)
    np.testing.assert_allclose(first.resampled[..., 1:2], again.resampled, rtol=1e-12)
    assert not np.allclose(first.resampled, other.resampled)


def test_blocks_bound_the_memory_and_keep_every_resample(monkeypatch):
    values, category = np.random.default_rng(4).random((12, 2)), np.zeros(12, int)
    whole = Bootstrap(25, 8).means(values, category, 1)
    monkeypatch.setattr(bootstrap, "BLOCK", 60)
    blocks = Bootstrap(25, 8).means(values, category, 1)
    np.testing.assert_allclose(blocks.resampled, whole.resampled, rtol=1e-12)


def test_what_was_never_scored_is_undefined_without_a_warning():
    result = Bootstrap(10).means(np.full((4, 1), np.nan), np.zeros(4, int), 2)
    assert np.isnan(result.point).all() and np.isnan(result.resampled).all()
    assert np.isnan([*vars(result[0][0].interval()).values()]).all()


def test_no_variance_gives_an_interval_of_no_width():
    result = Bootstrap(100).means(np.full((5, 1), 0.25), np.zeros(5, int), 1)
    shown = result[0][0].interval()
    np.testing.assert_allclose([shown.lower, shown.mean, shown.upper], 0.25, rtol=1e-12)


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="samples, columns"):
        Bootstrap().means(np.zeros(3), np.zeros(3, int), 1)
    with pytest.raises(UsageError, match="resamples = 0"):
        Bootstrap(0)


# Against scipy.stats.bootstrap, which draws the same resamples from the same generator


def by_scipy(values, statistic, method, resamples=400, seed=11):
    found = scipy.stats.bootstrap(
        (values,), statistic, n_resamples=resamples, method=method, rng=np.random.default_rng(seed), axis=-1
    )
    return found.confidence_interval


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_of_a_mean_equal_scipy(method):
    values = np.random.default_rng(5).exponential(size=60)  # skewed: the two methods differ
    ours = Bootstrap(400, 11, interval="bca").means(values[:, None], np.zeros(60, int), 1)[0][0]
    found, theirs = ours.interval(method), by_scipy(values, np.mean, method)
    np.testing.assert_allclose([found.lower, found.upper], [theirs.low, theirs.high], rtol=1e-12)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_of_any_statistic_equal_scipy(method):
    values = np.random.default_rng(6).gamma(2.0, size=50)

    def weighted_deviation(weights):
        mean = weights @ values / weights.sum(axis=1)
        return np.sqrt(weights @ values**2 / weights.sum(axis=1) - mean**2)

    ours = Bootstrap(400, 11, interval="bca").resample(weighted_deviation, 50).interval(method)
    theirs = by_scipy(values, np.std, method)
    np.testing.assert_allclose([ours.lower, ours.upper], [theirs.low, theirs.high], rtol=1e-9)


def test_bca_and_percentile_differ_where_the_data_are_skewed():
    values = np.random.default_rng(7).exponential(size=(40, 1)) ** 2
    found = Bootstrap(interval="bca").means(values, np.zeros(40, int), 1)[0][0]
    assert found.interval("bca").lower > found.interval().lower  # the long tail is above
    assert found.interval("bca").upper > found.interval().upper


def test_acceleration_of_several_groups_is_that_of_scipy_for_two_samples():
    """The difference of two means, each group drawn on its own: scipy's multi-sample BCa."""
    rng = np.random.default_rng(8)
    first, second = rng.exponential(size=30), rng.exponential(2.0, size=45)
    values, category = np.concatenate([first, second])[:, None], np.repeat([0, 1], [30, 45])
    ours = Bootstrap(4000, 1, interval="bca").means(values, category, 2)[0]
    found = (ours[0] - ours[1]).interval("bca")
    theirs = scipy.stats.bootstrap(
        (first, second), lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=4000, method="BCa", rng=2
    ).confidence_interval
    np.testing.assert_allclose([found.lower, found.upper], [theirs.low, theirs.high], atol=0.04)
    # The acceleration itself, without resampling noise: Efron and Tibshirani, chapter 22, of a difference of means
    influences = [(x - x.mean()) * sign for x, sign in ((first, 1), (second, -1))]
    cubes, squares = (sum((i**power).sum() / len(i) ** power for i in influences) for power in (3, 2))
    acceleration = interval._acceleration([part @ [1.0, -1.0] for part in ours.left_out])
    assert acceleration == pytest.approx(cubes / (6 * squares**1.5), rel=1e-9)


def test_clusters_are_drawn_whole():
    """Equal values within a patient: the interval is that of the patients, not of three times as many samples."""
    patients = np.random.default_rng(9).normal(size=30)
    values, clusters = np.repeat(patients, 3)[:, None], np.repeat([f"p{k}" for k in range(30)], 3)
    category = np.zeros(90, int)
    by_patient = Bootstrap(500, 3, interval="bca").means(values, category, 1, clusters)
    alone = Bootstrap(500, 3, interval="bca").means(patients[:, None], np.zeros(30, int), 1)
    np.testing.assert_allclose(by_patient.resampled, alone.resampled, rtol=1e-10)
    np.testing.assert_allclose(by_patient.left_out[0], alone.left_out[0], rtol=1e-10)
    by_sample = Bootstrap(500, 3).means(values, category, 1)
    assert by_patient.resampled.std() > 1.5 * by_sample.resampled.std()


def test_clusters_of_unequal_size_equal_plain_resampling_of_patients():
    rng = np.random.default_rng(10)
    values, category, clusters = rng.random((9, 1)), np.array([0, 1, 0, 1, 1, 0, 0, 1, 1]), np.array(list("bbacccadb"))
    values[2] = np.nan
    found = Bootstrap(40, 4).means(values, category, 2, clusters)
    order = np.concatenate([np.flatnonzero(category == 0), np.flatnonzero(category == 1)])
    names = list(dict.fromkeys(clusters[order]))
    for r, picked in enumerate(np.random.default_rng(4).integers(0, 4, (40, 4))):
        rows = np.concatenate([np.flatnonzero(clusters == names[k]) for k in picked])
        for index in range(2):
            drawn = values[rows][category[rows] == index]
            expected = np.nanmean(drawn) if np.isfinite(drawn).any() else np.nan
            np.testing.assert_allclose(found.resampled[r, index, 0], expected)


def test_leaving_out_equals_doing_it():
    rng = np.random.default_rng(12)
    values, category = rng.random((8, 2)), np.array([0, 0, 1, 0, 1, 1, 1, 0])
    values[0, 0] = np.nan
    found = Bootstrap(5, interval="bca").means(values, category, 2)
    for index in range(2):
        rows = np.flatnonzero(category == index)
        for unit, row in enumerate(rows):
            expected = found.point.copy()
            expected[index] = np.nanmean(values[rows[rows != row]], axis=0)
            np.testing.assert_allclose(found.left_out[index][unit], expected)


def test_bca_without_the_jackknife_and_unknown_methods_are_refused():
    found = Bootstrap(10).means(np.arange(4.0)[:, None], np.zeros(4, int), 1)[0][0]
    with pytest.raises(ValueError, match="interval='bca'"):
        found.interval("bca")
    with pytest.raises(UsageError, match="percentile, bca"):
        Bootstrap(interval="student")
    with pytest.raises(ValueError, match="each sample needs its cluster"):
        Bootstrap().means(np.zeros((3, 1)), np.zeros(3, int), 1, np.zeros(2))
