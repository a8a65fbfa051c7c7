"""Paired tests and corrections against SciPy and plain definitions."""

import itertools

import numpy as np
import pytest
import scipy.stats

from afloc_jax.evaluation.comparison import paired


def mean(x, axis=-1):
    return np.mean(x, axis=axis)


def test_few_differences_are_tested_exactly():
    differences = np.array([0.3, -0.1, 0.25, 0.4, 0.05, 0.0, 0.2])
    plain = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=7)]
    expected = np.mean(np.array(plain) >= abs(differences.sum()) - 1e-12)
    assert paired.sign_flip_test(differences / 7) == pytest.approx(expected)
    scipys = scipy.stats.permutation_test((differences,), mean, permutation_type="samples", n_resamples=np.inf)
    assert paired.sign_flip_test(differences / 7) == pytest.approx(scipys.pvalue)


def test_many_differences_agree_with_scipy_to_sampling_noise():
    differences = np.random.default_rng(0).normal(0.12, 1, 200)
    ours = paired.sign_flip_test(differences / 200)
    theirs = scipy.stats.permutation_test((differences,), mean, permutation_type="samples", rng=1).pvalue
    assert ours == pytest.approx(theirs, abs=0.01)
    assert ours == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue, abs=0.02)


def test_blocks_do_not_change_the_test(monkeypatch):
    differences = np.random.default_rng(2).normal(0.1, 1, 50)
    whole = paired.sign_flip_test(differences, 1000)
    monkeypatch.setattr(paired, "BLOCK", 50 * 64)
    assert paired.sign_flip_test(differences, 1000) == pytest.approx(whole, abs=0.04)


def test_under_no_difference_one_in_twenty_is_called_one():
    rng = np.random.default_rng(3)
    called = [paired.sign_flip_test(rng.normal(size=12)) <= 0.05 for _ in range(400)]
    assert np.mean(called) == pytest.approx(0.05, abs=0.03)


def test_no_difference_and_no_sample():
    assert paired.sign_flip_test(np.zeros(40), 100) == 1
    assert paired.wilcoxon_test(np.zeros(40)) == 1
    assert np.isnan(paired.sign_flip_test(np.zeros(0))) and np.isnan(paired.wilcoxon_test(np.zeros(0)))
    assert np.isnan(paired.bootstrap_test(np.array([np.nan])))


def test_the_bootstrap_test_agrees_with_its_interval():
    rng = np.random.default_rng(4)
    above, across = rng.normal(3, 1, 2000), rng.normal(0.1, 1, 2000)
    assert paired.bootstrap_test(above) == pytest.approx(2 * scipy.stats.norm.cdf(-3), abs=0.004)
    assert paired.bootstrap_test(across) > 0.8
    assert paired.bootstrap_test(np.ones(999)) == pytest.approx(2 / 1000)


def test_corrections_equal_scipy_and_the_plain_definition():
    p = np.array([0.01, 0.04, 0.03, 0.005, 0.8, 0.04])
    expected = scipy.stats.false_discovery_control(p)
    np.testing.assert_allclose(paired.benjamini_hochberg(p), expected, rtol=1e-12)
    order, plain, largest = np.argsort(p), np.zeros(6), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, (6 - rank) * p[i])
        plain[i] = min(1, largest)
    np.testing.assert_allclose(paired.holm(p), plain, rtol=1e-12)


def test_what_was_not_tested_does_not_count():
    p = np.array([0.02, np.nan, 0.04])
    np.testing.assert_allclose(paired.holm(p), [0.04, np.nan, 0.04])
    np.testing.assert_allclose(paired.benjamini_hochberg(p), [0.04, np.nan, 0.04])


def test_mcnemar_of_single_samples_is_the_exact_binomial_test():
    for only_a, only_b, both in [(9, 2, 30), (1, 0, 0), (0, 7, 4), (5, 5, 1), (60, 31, 400), (700, 612, 10)]:
        net = np.repeat([1, -1, 0], [only_a, only_b, both])
        expected = scipy.stats.binomtest(only_a, only_a + only_b).pvalue
        assert paired.mcnemar_test(net) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_patients_is_the_share_of_all_exchanges():
    rng = np.random.default_rng(6)
    for _ in range(20):
        net = rng.integers(-3, 5, 10)
        plain = [abs(np.dot(signs, net)) for signs in itertools.product((1, -1), repeat=10)]
        assert paired.mcnemar_test(net) == pytest.approx(np.mean(np.array(plain) >= abs(net.sum())))


def test_mcnemar_of_many_patients_comes_to_the_statistic_of_yang_sun_and_hardin():
    net = np.random.default_rng(7).integers(-3, 4, 3000) + (np.arange(3000) % 40 == 0)
    expected = scipy.stats.chi2.sf(net.sum() ** 2 / (net**2).sum(), 1)
    assert 0.01 < expected < 0.5 and paired.mcnemar_test(net) == pytest.approx(expected, rel=0.05)


def test_mcnemar_without_a_sample_or_a_difference():
    assert np.isnan(paired.mcnemar_test(np.zeros(0, int))) and paired.mcnemar_test(np.zeros(9, int)) == 1


def test_mcnemar_by_patient_keeps_its_level_where_that_of_samples_does_not():
    rng = np.random.default_rng(8)
    signs = rng.choice([-1, 1], (400, 30))  # three samples of a patient that always agree
    assert np.mean([paired.mcnemar_test(3 * row) <= 0.05 for row in signs]) <= 0.06
    assert np.mean([paired.mcnemar_test(np.repeat(row, 3)) <= 0.05 for row in signs]) > 0.15
