"""A number with its confidence interval, and the two methods that compute limits from a bootstrap.

The limits are percentiles, or BCa (bias-corrected and accelerated; Efron 1987, doi 10.1080/01621459.1987.10478410).
They equal those of `scipy.stats.bootstrap`, which has neither clusters nor strata, and whose jackknife takes O(n^2).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri, stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A value on the data (mostly a mean) and the limits of its confidence interval; NaN if nothing was scored."""

    mean: float
    lower: float
    upper: float

    def __str__(self) -> str:
        """The text of a table's cell, such as `0.812 [0.790, 0.833]`, or `-` if the number is undefined."""
        mean, lower, upper = (f"{v:.3f}" if np.isfinite(v) else "-" for v in (self.mean, self.lower, self.upper))
        return mean if mean == "-" else f"{mean} [{lower}, {upper}]"


def of_few(values: Sequence[float]) -> Interval:
    """The mean of few independent values, such as those of seeds, with limits of Student's t (1908).

    They are mean -+ t s / sqrt(n), with s^2 = sum (x - mean)^2 / (n - 1) and t the 97.5 % quantile of n - 1 degrees of
    freedom. Values that are not finite are left out; a value alone has no limits.
    """
    finite = np.array([value for value in values if np.isfinite(value)], float)
    n = len(finite)
    if n < 2:
        return Interval(float(finite[0]) if n else np.nan, np.nan, np.nan)
    mean, half = finite.mean(), stdtrit(n - 1, 1 - (1 - CONFIDENCE) / 2) * finite.std(ddof=1) / np.sqrt(n)
    return Interval(float(mean), float(mean - half), float(mean + half))


def mean_of_finite(values: Float[np.ndarray, "*n"], axis: int | tuple[int, ...]) -> Float[np.ndarray, "*m"]:
    """The mean of the finite values; NaN (without NumPy's warning) if there is none."""
    finite = np.isfinite(values)
    count = finite.sum(axis=axis)
    total = np.where(finite, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def limits(resampled: Float[np.ndarray, "R *m"]) -> tuple[np.ndarray, np.ndarray]:
    """The percentile limits over the first axis. Resamples in which nothing was scored (NaN) are left out."""
    tail = 100 * (1 - CONFIDENCE) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)  # NaN is the right answer there
        lower, upper = np.nanpercentile(resampled, [tail, 100 - tail], axis=0)
    return lower, upper


def bca_limits(
    point: Float[np.ndarray, "*m"] | float,
    resampled: Float[np.ndarray, "R *m"],
    left_out: tuple[Float[np.ndarray, "_ *m"], ...],
) -> tuple[np.ndarray, np.ndarray]:
    """The BCa limits over the first axis: percentiles shifted for the bias and the skewness of the statistic.

    With z_t the normal quantile of a tail t (0.025 and 0.975), a limit is the quantile of the resamples at

        Phi(z0 + (z0 + z_t) / (1 - a (z0 + z_t))).

    The bias z0 is the normal quantile of the share of resamples below the value on the data, with ties counting half.
    The acceleration a is computed by the jackknife over all strata (Efron and Tibshirani 1993, chapters 14 and 22.5).
    Undefined resamples are left out. If all resamples are equal, both limits are the value. If the value lies outside
    all resamples, z0 is infinite, and the limits are percentiles. Raises ValueError without `left_out`.
    """
    if not left_out:
        raise ValueError("BCa limits need the statistic without each unit; draw with Bootstrap(interval='bca')")
    shape = np.shape(point)
    point, resampled = np.reshape(point, -1), np.reshape(resampled, (len(resampled), -1))
    acceleration = _acceleration([np.reshape(part, (len(part), -1)) for part in left_out])
    shares = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    tails = ndtri(np.array(shares))
    result = np.full((2, len(point)), np.nan)
    for m, value in enumerate(point):
        column = resampled[:, m][np.isfinite(resampled[:, m])]
        if not len(column) or not np.isfinite(value):
            continue
        below = ((column < value).sum() + (column <= value).sum()) / (2 * len(column))
        if np.ptp(column) == 0 or below in (0, 1):  # nothing varies, or the value lies outside all resamples
            result[:, m] = np.quantile(column, shares)
            continue
        shifted = ndtri(below) + tails
        result[:, m] = np.quantile(column, ndtr(ndtri(below) + shifted / (1 - acceleration[m] * shifted)))
    return result[0].reshape(shape), result[1].reshape(shape)


def _acceleration(left_out: list[Float[np.ndarray, "_ *m"]]) -> Float[np.ndarray, "*m"]:
    """The acceleration: a sixth of the skewness of the jackknife's influences; 0 if they are all equal."""
    cubes, squares = np.zeros(()), np.zeros(())
    for part in left_out:
        units = len(part)
        influence = (units - 1) * (mean_of_finite(part, axis=0) - part)
        influence = np.where(np.isfinite(influence), influence, 0.0)
        cubes = cubes + (influence**3).sum(axis=0) / units**3
        squares = squares + (influence**2).sum(axis=0) / units**2
    return np.where(squares > 0, cubes / np.maximum(6 * squares**1.5, 1e-300), 0.0)
