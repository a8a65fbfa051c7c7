"""Tests of paired differences, and corrections for many of them."""

import numpy as np
import scipy.stats
from jaxtyping import Float

PERMUTATIONS = 10_000
EXACT_UNITS = 13  # up to this many, all 2^n signs are tried: fewer than `PERMUTATIONS`
BLOCK = 4_000_000


def sign_flip_test(contributions: Float[np.ndarray, " n"], permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """Two-sided p of the sum of paired differences, each of which could as well have had the other sign.

    Fisher's randomisation test: exact for few units, otherwise (hits + 1) / (permutations + 1), which is never 0. NaN
    without any unit. `scipy.stats.permutation_test` finds the same p but for sampling noise (tests); it is not used
    here because it gives the few exact cases no tolerance for rounding and draws other signs: p would change.

    `contributions` has one number per unit: its difference times its weight in the statistic (1/n for a mean).
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


def wilcoxon_test(differences: Float[np.ndarray, " n"]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; 1 where nothing differs, NaN without any unit."""
    differences = np.asarray(differences, np.float64)
    if not len(differences):
        return float("nan")
    if not differences.any():
        return 1.0
    return float(scipy.stats.wilcoxon(differences).pvalue)


def bootstrap_test(resampled: Float[np.ndarray, " R"]) -> float:
    """Two-sided p of a difference from its resamples: twice the smaller of the shares of them on either side of 0.

    This inverts the percentile interval (Efron and Tibshirani 1993, section 16.4); at least 2 / (R + 1).
    """
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return float("nan")
    tails = min((finite <= 0).sum(), (finite >= 0).sum())
    return float(min(1.0, 2 * (tails + 1) / (len(finite) + 1)))


def holm(p: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """p adjusted for the chance of any false alarm (Holm 1979), which SciPy lacks. NaN is no test and stays NaN."""
    result, tested = np.full(len(p), np.nan), np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = len(order) - np.arange(len(order))
    result[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return result


def benjamini_hochberg(p: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """p adjusted for the share of false alarms (Benjamini and Hochberg 1995). NaN is no test and stays NaN."""
    result, tested = np.full(len(p), np.nan), np.isfinite(p)
    result[tested] = scipy.stats.false_discovery_control(p[tested])
    return result
