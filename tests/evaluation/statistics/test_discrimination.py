"""Classification metrics against scikit-learn, weighted ones against repeating the samples."""

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics

from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.evaluation.statistics.jackknife import LeftOut


@pytest.fixture
def sample():
    """Labels, scores with many ties, and draws of resamples."""
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.3
    scores = np.round(np.clip(0.4 * labels + 0.6 * rng.random(200), 0, 1), 2)
    return labels, scores, rng.integers(0, 200, (6, 200))


def counts(draws):
    return np.stack([np.bincount(row, minlength=200) for row in draws]).astype(float)


def test_auc_equals_scikit_learn_with_ties_and_in_resamples(sample):
    labels, scores, draws = sample
    assert discrimination.auc(labels, scores)[0] == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    found = discrimination.auc(labels, scores, counts(draws))
    np.testing.assert_allclose(found, [metrics.roc_auc_score(labels[row], scores[row]) for row in draws], rtol=1e-12)
    untied = scores + 1e-6 * np.random.default_rng(1).random(200)
    found = discrimination.auc(labels, untied, counts(draws))
    np.testing.assert_allclose(found, [metrics.roc_auc_score(labels[row], untied[row]) for row in draws], rtol=1e-12)


def test_auc_is_half_for_constant_scores_and_undefined_for_one_class():
    assert discrimination.auc(np.array([True, False, False]), np.zeros(3))[0] == 0.5
    assert np.isnan(discrimination.auc(np.array([True, True]), np.arange(2.0))[0])


def test_decisions_equal_scikit_learn(sample):
    labels, scores, draws = sample
    predicted = scores >= 0.5
    found = discrimination.decisions(labels, predicted, counts(draws))
    for r, row in enumerate(draws):
        truth, guess = labels[row], predicted[row]
        expected = {
            "f1": metrics.f1_score(truth, guess),
            "accuracy": metrics.accuracy_score(truth, guess),
            "mcc": metrics.matthews_corrcoef(truth, guess),
            "balanced_accuracy": metrics.balanced_accuracy_score(truth, guess),
            "sensitivity": metrics.recall_score(truth, guess),
            "specificity": metrics.recall_score(~truth, ~guess),
        }
        assert {name: values[r] for name, values in found.items()} == pytest.approx(expected, abs=1e-12)


def test_decisions_without_a_positive_prediction_are_defined():
    found = discrimination.decisions(np.array([True, False, False]), np.array([False] * 3))
    assert found["f1"][0] == 0 and found["mcc"][0] == 0 and found["balanced_accuracy"][0] == 0.5
    assert np.isnan(discrimination.decisions(np.array([False]), np.array([False]))["sensitivity"][0])


def test_multiclass_decisions_equal_scikit_learn():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 200)
    predicted = np.where(rng.random(200) < 0.6, labels, rng.integers(0, 4, 200))
    draws = rng.integers(0, 200, (4, 200))
    found = discrimination.multiclass_decisions(labels, predicted, 4, counts(draws))
    for r, row in enumerate(draws):
        truth, guess = labels[row], predicted[row]
        assert found["accuracy"][r] == pytest.approx(metrics.accuracy_score(truth, guess))
        assert found["balanced_accuracy"][r] == pytest.approx(metrics.balanced_accuracy_score(truth, guess))
        assert found["f1"][r] == pytest.approx(metrics.f1_score(truth, guess, average="macro"))
        assert found["mcc"][r] == pytest.approx(metrics.matthews_corrcoef(truth, guess))


def test_brier_equals_scikit_learn_and_calibration_its_plain_definition(sample):
    labels, scores, draws = sample
    expected = metrics.brier_score_loss(labels, scores)
    assert discrimination.brier(labels, scores)[0] == pytest.approx(expected, abs=1e-12)
    found = discrimination.calibration_error(labels, scores, counts(draws))
    for r, row in enumerate(draws):
        truth, p, error = labels[row], scores[row], 0.0
        for b in range(10):
            inside = (p >= b / 10) & ((p < (b + 1) / 10) | (b == 9))
            if inside.any():
                error += inside.mean() * abs(truth[inside].mean() - p[inside].mean())
        assert found[r] == pytest.approx(error, abs=1e-9)


def test_the_reliability_table_adds_up_and_shows_empty_bins():
    labels, p = np.array([True, False, True, True]), np.array([0.05, 0.05, 0.95, 1.0])
    table = discrimination.reliability(labels, p)
    assert [row.n for row in table] == [2] + [0] * 8 + [2]
    assert table[0].observed == 0.5 and table[0].mean_probability == pytest.approx(0.05)
    assert table[4].observed is None and table[9].observed == 1.0
    assert table[9].mean_probability == pytest.approx(0.975)


def test_the_threshold_has_the_highest_f1_of_all(sample):
    labels, scores, _ = sample
    precision, recall, thresholds = metrics.precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    found = discrimination.best_threshold(labels, scores)
    assert found == thresholds[np.argmax(f1[:-1])]
    assert metrics.f1_score(labels, scores >= found) == pytest.approx(f1.max())
    assert np.isnan(discrimination.best_threshold(np.array([False, False]), np.arange(2.0)))


def test_delong_agrees_with_the_bootstrap_and_with_its_plain_definition(sample):
    labels, scores, _ = sample
    other = np.round(0.3 * labels + 0.7 * np.random.default_rng(3).random(200), 2)
    found = discrimination.delong(labels, np.stack([scores, other]))
    np.testing.assert_allclose(found.aucs, [metrics.roc_auc_score(labels, s) for s in (scores, other)], rtol=1e-12)

    def placements(s):  # V10 and V01 of the paper, by comparing all pairs
        wins = (s[labels][:, None] > s[~labels]) + 0.5 * (s[labels][:, None] == s[~labels])
        return wins.mean(axis=1), wins.mean(axis=0)

    (a10, a01), (b10, b01) = placements(scores), placements(other)
    plain = np.cov(a10, b10) / labels.sum() + np.cov(a01, b01) / (~labels).sum()
    np.testing.assert_allclose(found.covariance, plain, rtol=1e-10)

    def difference(weights):
        return discrimination.auc(labels, scores, weights) - discrimination.auc(labels, other, weights)

    spread = Bootstrap(2000).resample(difference, 200).resampled.std()
    assert spread == pytest.approx(np.sqrt([1, -1] @ found.covariance @ [1, -1]), rel=0.08)
    assert scipy.stats.mannwhitneyu(scores[labels], scores[~labels]).statistic == pytest.approx(
        found.aucs[0] * labels.sum() * (~labels).sum()
    )


def test_delong_needs_two_of_each():
    with pytest.raises(ValueError, match="1 positives and 3 negatives"):
        discrimination.delong(np.array([True, False, False, False]), np.zeros((1, 4)))


# The jackknife, in closed form and by leaving out


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("rounded", [1, 6])
def test_the_auc_without_each_unit_is_what_leaving_out_gives(clustered, rounded):
    rng = np.random.default_rng(rounded)
    labels, scores = rng.random(90) < 0.3, np.round(rng.random(90), rounded)  # one digit: almost all scores are tied
    unit = rng.integers(0, 13, 90) if clustered else np.arange(90)
    units = 14 if clustered else 90  # the last cluster has no sample here: nothing is left out
    found = discrimination.auc(labels, scores, LeftOut(unit, units))
    expected = [metrics.roc_auc_score(labels[unit != u], scores[unit != u]) for u in range(units)]
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_the_auc_without_the_only_positive_is_undefined():
    found = discrimination.auc(np.array([True, False, False]), np.array([0.5, 0.1, 0.9]), LeftOut(np.arange(3), 3))
    np.testing.assert_array_equal(found, [np.nan, 0, 1])
    assert np.isnan(discrimination.auc(np.array([False, False]), np.zeros(2), LeftOut(np.arange(2), 2))).all()


@pytest.mark.parametrize("clustered", [False, True])
def test_every_metric_takes_jackknife_weights_as_it_takes_the_matrix(sample, clustered):
    labels, scores, _ = sample
    unit = np.random.default_rng(4).permutation(np.arange(200) // 3) if clustered else np.arange(200)
    units = int(unit.max()) + 1
    lazy, matrix = LeftOut(unit, units), (unit[None] != np.arange(units)[:, None]).astype(float)
    predicted, known = scores >= 0.5, np.arange(200) % 5 > 0
    for chosen in (slice(None), known):
        binary = (labels[chosen], predicted[chosen])
        for metric in (discrimination.brier, discrimination.calibration_error, discrimination.auc):
            one, other = (metric(labels[chosen], scores[chosen], weights[:, chosen]) for weights in (lazy, matrix))
            np.testing.assert_allclose(one, other, rtol=1e-12)
        one, other = (discrimination.decisions(*binary, weights[:, chosen]) for weights in (lazy, matrix))
        for name in discrimination.DECISION_METRICS:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-12)
    grades, guesses = np.digitize(scores, [0.3, 0.6]), np.arange(200) % 3
    one, other = (discrimination.multiclass_decisions(grades, guesses, 3, weights) for weights in (lazy, matrix))
    for name, values in other.items():
        np.testing.assert_allclose(one[name], values, rtol=1e-12, atol=1e-15)


def test_the_bca_interval_of_an_auc_equals_scipy(sample):
    labels, scores, _ = sample

    def statistic(weights):
        return discrimination.auc(labels, scores, weights)

    found = Bootstrap(300, 5, interval="bca").resample(statistic, 200).interval("bca")
    rows = np.arange(200)
    expected = scipy.stats.bootstrap(
        (rows,),
        lambda picked: metrics.roc_auc_score(labels[picked], scores[picked]),
        n_resamples=300,
        method="BCa",
        vectorized=False,
        rng=np.random.default_rng(5),
    ).confidence_interval
    np.testing.assert_allclose([found.lower, found.upper], [expected.low, expected.high], rtol=1e-12)


def test_jackknife_weights_refuse_what_would_write_them_out():
    weights = LeftOut(np.arange(4), 4)
    with pytest.raises(TypeError):
        np.ones(4) * weights
    with pytest.raises(ValueError, match="axis is 0"):
        weights.sum(axis=0)
    with pytest.raises(IndexError, match="all units"):
        weights[:2, np.arange(4)]
