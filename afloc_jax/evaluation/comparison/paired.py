"""Tests of paired differences, and corrections for many of them."""

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

PERMUTATIONS = 10_000
EXACT_UNITS = 13  # up to this number of units all 2^n signs are tried, fewer than `PERMUTATIONS`
BLOCK = 4_000_000


def sign_flip_test(contributions: Float[np.ndarray, " n"], permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """The two-sided p of the sum of paired differences, if under the null hypothesis each sign is equally likely.

    This is Fisher's randomisation test: exact for few units, otherwise (hits + 1) / (permutations + 1), which is never
    0. NaN without any unit. `contributions` has one number per unit: its difference times its weight in the statistic
    (1/n for a mean).

    `scipy.stats.permutation_test` gives the same p up to sampling noise (tests). It is not used, because it has no
    tolerance for rounding in exact tests and draws other signs, so that p would change.

    >>> sign_flip_test(np.array([0.1, 0.2, 0.1, 0.3]))  # 2 of the 16 ways to sign them sum to as much
    0.125
    """
    contributions = np.asarray(contributions, np.float64)
    n = len(contributions)
    if not n:
        return float("nan")
    observed = abs(contributions.sum()) * (1 - 1e-12) - 1e-15  # sums in another order differ in the last digit
    if n <= EXACT_UNITS:
        every = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(every @ contributions) >= observed).mean())
    rng = np.random.default_rng(seed)
    hits, step = 0, max(1, BLOCK // n)
    for start in range(0, permutations, step):
        signs = 1.0 - 2.0 * rng.integers(0, 2, (min(step, permutations - start), n), dtype=np.int8)
        hits += int((np.abs(signs @ contributions) >= observed).sum())
    return (hits + 1) / (permutations + 1)


def mcnemar_test(net: Int[np.ndarray, " n"]) -> float:
    """The exact two-sided p of McNemar's test, by units; NaN without any unit.

    `net` has one number per unit (a sample, or all samples of a patient): the samples that only A has right minus those
    that only B has right. If the systems do not differ, those of a unit may be exchanged, so that each sign is equally
    likely. p is the share of all signs with a sum at least as far from 0, computed from binomial distributions: units
    of equal size have one, and their sums are convolved. Where every unit is one sample, this is McNemar's exact
    (binomial) test. The limit for many units is the square of the sum over the sum of squares, as chi-squared with one
    degree of freedom (Yang, Sun and Hardin 2010, doi 10.1002/bimj.201000035).

    >>> round(mcnemar_test(np.array([1, 1, 1, 1, -1, 0])), 9)  # as scipy.stats.binomtest(4, 5).pvalue
    0.375
    """
    if not len(net):
        return float("nan")
    ways = np.ones(1)  # the probability of k samples in favour of A
    for size, units in zip(*np.unique(np.abs(net[net != 0]), return_counts=True), strict=True):
        steps = np.zeros(size * units + 1)
        steps[::size] = scipy.stats.binom.pmf(np.arange(units + 1), units, 0.5)
        ways = np.convolve(ways, steps)
    sums = np.abs(2 * np.arange(len(ways)) - (len(ways) - 1))
    return float(min(1.0, ways[sums >= abs(net.sum())].sum()))


def wilcoxon_test(differences: Float[np.ndarray, " n"]) -> float:
    """The two-sided p of Wilcoxon's signed-rank test; 1 if all differences are 0, NaN without any unit."""
    differences = np.asarray(differences, np.float64)
    if not len(differences):
        return float("nan")
    if not differences.any():
        return 1.0
    return float(scipy.stats.wilcoxon(differences).pvalue)


def bootstrap_test(resampled: Float[np.ndarray, " R"]) -> float:
    """The two-sided p of a difference: twice the smaller of the shares of its resamples on either side of 0.

    This inverts the percentile interval (Efron and Tibshirani 1993, section 16.4); at least 2 / (R + 1).
    """
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return float("nan")
    tails = min((finite <= 0).sum(), (finite >= 0).sum())
    return float(min(1.0, 2 * (tails + 1) / (len(finite) + 1)))


def holm(p: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """p adjusted by Holm (1979) for the family-wise error rate, which SciPy lacks. NaN (no test) stays NaN.

    >>> holm(np.array([0.01, 0.04, 0.03, np.nan]))
    array([0.03, 0.06, 0.06,  nan])
    """
    result, tested = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = len(order) - np.arange(len(order))
    result[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return result


def benjamini_hochberg(p: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """p adjusted by Benjamini and Hochberg (1995) for the false discovery rate. NaN (no test) stays NaN."""
    result, tested = np.full(len(p), np.nan), np.isfinite(p)
    result[tested] = scipy.stats.false_discovery_control(p[tested])
    return result
