"""Bootstrap intervals of means and of any statistic of weighted samples, all columns and resamples at once.

A resample draws as many units as there are, with replacement. A unit is a sample, or all samples of one cluster (a
patient), which are drawn together because they resemble each other. How often each unit was drawn is its weight: every
resample of every column of means is one matrix product, and any other statistic is a function of weights. The same
seed gives the same draws for two systems on the same samples: the difference of what they give is a paired difference.

Intervals: percentile limits, or BCa (bias-corrected and accelerated; Efron 1987, doi 10.1080/01621459.1987.10478410).
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import ndtr, ndtri

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.statistics.jackknife import LeftOut

RESAMPLES = 1000
CONFIDENCE = 0.95
METHODS = ("percentile", "bca")
UNITS = ("sample", "patient")
BLOCK = 4_000_000  # draws held at a time: bounds the memory, whatever the number of samples


@dataclass(frozen=True)
class Interval:
    """A value on the data (mostly a mean) and the limits of its confidence interval; NaN where nothing was scored."""

    mean: float
    lower: float
    upper: float

    def to_dict(self) -> dict[str, float | None]:
        """JSON knows no NaN: an undefined number becomes None."""
        return {
            name: float(value) if np.isfinite(value) else None
            for name, value in (("mean", self.mean), ("lower", self.lower), ("upper", self.upper))
        }


@dataclass(frozen=True)
class Replicates:
    """A statistic (an array, or one number) on the data and on what intervals are made from.

    Attributes:
        point: [*m] on the data.
        resampled: [R, *m] on every resample.
        left_out: one [U, *m] for each group that units are drawn within: the statistic without each unit in turn
            (jackknife). Empty where it was not asked for; BCa intervals need it.
    """

    point: np.ndarray
    resampled: np.ndarray
    left_out: tuple[np.ndarray, ...] = ()

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Replicates":
        """The same of `function`, which must act on the trailing axes *m alone."""
        return Replicates(
            function(self.point), function(self.resampled), tuple(function(part) for part in self.left_out)
        )

    def __getitem__(self, index: Any) -> "Replicates":
        """The element or column `index` of the last axis."""
        return self.map(lambda values: values[..., index])

    def __sub__(self, other: "Replicates") -> "Replicates":
        """The paired difference: both must come from the same draws."""
        left_out = tuple(first - second for first, second in zip(self.left_out, other.left_out, strict=True))
        return Replicates(self.point - other.point, self.resampled - other.resampled, left_out)

    def interval(self, method: str = "percentile", confidence: float = CONFIDENCE) -> Interval:
        """The interval of one number ([R] resamples). Raises `ValueError` for BCa without `left_out`."""
        if method == "bca":
            lower, upper = bca_limits(self.point, self.resampled, self.left_out, confidence)
        elif method == "percentile":
            lower, upper = limits(self.resampled, confidence)
        else:
            raise ValueError(f"unknown interval {method!r}; there are {', '.join(METHODS)}")
        return Interval(float(self.point), float(lower), float(upper))


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: `interval` is one of `METHODS`, `unit` one of `UNITS`."""

    resamples: int = RESAMPLES
    seed: int = 0
    interval: str = "percentile"
    unit: str = "sample"

    def __post_init__(self) -> None:
        for name, value, known in (("interval", self.interval, METHODS), ("unit", self.unit, UNITS)):
            if value not in known:
                raise UsageError(f"unknown {name} {value!r} of the bootstrap; there are {', '.join(known)}")
        if self.resamples < 1:
            raise UsageError(f"{self.resamples} resamples make no interval; give at least 1")

    def clusters(self, names: Sequence[str]) -> np.ndarray | None:
        """The clusters to draw; None draws samples. Raises UserError where a sample does not name its `unit`."""
        if self.unit == "sample":
            return None
        missing = sum(not name for name in names)
        if missing:
            raise UserError(
                f"{missing} of {len(names)} samples name no {self.unit}; draw samples instead, or add the {self.unit}s"
            )
        return np.asarray(names)

    @property
    def leave_out(self) -> bool:
        """Whether the intervals need the statistic without each unit."""
        return self.interval == "bca"

    def resample(
        self, statistic: Callable[[Any], np.ndarray], samples: int, clusters: np.ndarray | None
    ) -> "Replicates":
        """`resample` with these settings."""
        return resample(statistic, samples, self.resamples, self.seed, clusters, self.leave_out)

    def limits_of(self, replicates: "Replicates") -> Interval:
        """The interval of one number."""
        return replicates.interval(self.interval)

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        return {**asdict(self), "confidence": CONFIDENCE}


def mean_of_finite(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Mean that leaves NaN out; NaN (without a warning) where nothing is left."""
    finite = np.isfinite(values)
    count = finite.sum(axis=axis)
    total = np.where(finite, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _weighted_means(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[R, n] weights and [n, M] values -> [R, M] means over the finite values."""
    finite = np.isfinite(values)
    total = weights @ np.where(finite, values, 0.0)
    count = weights @ finite.astype(np.float64)
    return np.where(count > 0, total / np.maximum(count, 1e-300), np.nan)


def _draw_counts(rng: np.random.Generator, samples: int, resamples: int) -> Float[np.ndarray, "R n"]:
    """How often each sample is drawn in each resample: rows are multinomial counts that sum to `samples`."""
    drawn = rng.integers(0, samples, (resamples, samples))
    flat = (drawn + samples * np.arange(resamples)[:, None]).ravel()
    return np.bincount(flat, minlength=resamples * samples).reshape(resamples, samples).astype(np.float64)


def cluster_index(clusters: Shaped[np.ndarray, " n"] | None, samples: int) -> Int[np.ndarray, " n"]:
    """The number of each sample's cluster, in order of appearance; without clusters every sample is its own."""
    if clusters is None:
        return np.arange(samples)
    clusters = np.asarray(clusters)
    if clusters.shape != (samples,):
        raise ValueError(f"{samples} samples but clusters of shape {clusters.shape}; each sample needs its cluster")
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def bootstrap(
    values: Float[np.ndarray, "n M"],
    category: Int[np.ndarray, " n"],
    categories: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
    stratified: bool = True,
    clusters: Shaped[np.ndarray, " n"] | None = None,
    leave_out: bool = False,
) -> Replicates:
    """Means [C, M] of every column within every category, for the data and for `resamples` resamples.

    `category` is the index of each sample's category, in [0, categories). NaN values are left out of a mean, in a
    resample as in the data. The same seed gives the same draws, whatever the columns are. `leave_out` adds the means
    without each unit, from sums: its cost is that of one resample per unit and category, not of n passes.

    Stratified draws keep the size of every category, so that the mean over categories is never taken without a rare
    one. Otherwise samples are drawn from the whole table, as in the release; a category missed by a resample is NaN.
    Clusters are always drawn from the whole table: one patient may have findings of several categories.
    """
    values = np.asarray(values, np.float64)
    category = np.asarray(category)
    if values.ndim != 2 or category.shape != values.shape[:1]:
        raise ValueError(f"values are [samples, columns] with a category each; got {values.shape} and {category.shape}")
    _check_resamples(resamples)
    cluster = cluster_index(clusters, len(values))
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(category == index) for index in range(categories)]
    present = [index for index in range(categories) if len(members[index])]
    point = np.full((categories, values.shape[1]), np.nan)
    for index in present:
        point[index] = mean_of_finite(values[members[index]], axis=0)
    resampled = np.full((resamples, categories, values.shape[1]), np.nan)
    left_out = []
    groups = [[index] for index in present] if stratified and clusters is None else [present]
    for group in groups if present else []:  # units are drawn within a group
        rows = np.concatenate([members[index] for index in group])
        unit = cluster_index(cluster[rows], len(rows))
        units = int(unit.max()) + 1
        stops = np.cumsum([len(members[index]) for index in group])
        unit_of = dict(zip(group, np.split(unit, stops[:-1]), strict=True))
        for block, counts in _blocks(rng, units, len(rows), resamples):
            for index in group:
                resampled[block, index] = _weighted_means(counts[:, unit_of[index]], values[members[index]])
        if leave_out:
            without = np.repeat(point[None], units, axis=0)
            for index in group:
                without[:, index] = _means_without(values[members[index]], unit_of[index], units)
            left_out.append(without)
    return Replicates(point, resampled, tuple(left_out))


def resample(
    statistic: Callable[[Any], Float[np.ndarray, "R *m"]],
    samples: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Shaped[np.ndarray, " n"] | None = None,
    leave_out: bool = False,
) -> Replicates:
    """Any statistic of weighted samples: on the data (weights of 1), and on resamples of samples or of clusters.

    `statistic` takes weights [R, n]. `leave_out` hands it the weights of the jackknife as well: `LeftOut`, which stands
    for a matrix and answers `@`, `sum(axis=1)` and `[:, columns]`, as the metrics of discrimination.py use it.
    """
    _check_resamples(resamples)
    unit = cluster_index(clusters, samples)
    units = int(unit.max(initial=-1)) + 1
    point = statistic(np.ones((1, samples)))[0]
    resampled = np.full((resamples, *point.shape), np.nan)
    for block, counts in _blocks(np.random.default_rng(seed), units, samples, resamples):
        resampled[block] = statistic(counts[:, unit])
    if not leave_out:
        return Replicates(point, resampled)
    return Replicates(point, resampled, (statistic(LeftOut(unit, units)),))


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; a bootstrap needs at least 1")


def _blocks(rng: np.random.Generator, units: int, samples: int, resamples: int):
    """Slices of the resamples with the counts [r, units] of their draws; no block holds more than `BLOCK` weights."""
    step = max(1, BLOCK // max(units, samples, 1))
    for start in range(0, resamples if units else 0, step):
        count = min(step, resamples - start)
        yield slice(start, start + count), _draw_counts(rng, units, count)


def _means_without(values: Float[np.ndarray, "n M"], unit: Int[np.ndarray, " n"], units: int) -> np.ndarray:
    """[U, M]: means over the finite values without those of each unit."""
    finite, without = np.isfinite(values), LeftOut(unit, units)
    total, count = without @ np.where(finite, values, 0.0), without @ finite
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def limits(resampled: Float[np.ndarray, "R *m"], confidence: float = CONFIDENCE) -> tuple[np.ndarray, np.ndarray]:
    """Percentile limits over the first axis; resamples in which nothing was scored (NaN) are left out."""
    tail = 100 * (1 - confidence) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)  # NaN is the right answer there
        lower, upper = np.nanpercentile(resampled, [tail, 100 - tail], axis=0)
    return lower, upper


def interval(point: float | np.ndarray, resampled: Float[np.ndarray, " R"], confidence: float = CONFIDENCE) -> Interval:
    """The interval of one number from its value on the data and its value on every resample."""
    lower, upper = limits(resampled, confidence)
    return Interval(float(point), float(lower), float(upper))


def bca_limits(
    point: Float[np.ndarray, "*m"],
    resampled: Float[np.ndarray, "R *m"],
    left_out: tuple[Float[np.ndarray, "U *m"], ...],
    confidence: float = CONFIDENCE,
) -> tuple[np.ndarray, np.ndarray]:
    """BCa limits over the first axis: percentiles moved for the bias and the skewness of the statistic.

    z0 is the normal quantile of the share of resamples below the value on the data (ties count half), the acceleration
    comes from the jackknife, groups taken together (Efron and Tibshirani 1993, chapters 14 and 22.5). Undefined
    resamples are left out. Where nothing varies, both limits are the value; where the value lies outside all resamples,
    z0 is infinite and the limits are percentiles.
    """
    if not left_out:
        raise ValueError("BCa limits need the statistic without each unit; call the bootstrap with leave_out=True")
    shape = np.shape(point)
    point, resampled = np.reshape(point, -1), np.reshape(resampled, (len(resampled), -1))
    acceleration = _acceleration([np.reshape(part, (len(part), -1)) for part in left_out])
    tails = ndtri(np.array([(1 - confidence) / 2, (1 + confidence) / 2]))
    found = np.full((2, len(point)), np.nan)
    for m, value in enumerate(point):
        column = resampled[:, m][np.isfinite(resampled[:, m])]
        if not len(column) or not np.isfinite(value):
            continue
        below = ((column < value).sum() + (column <= value).sum()) / (2 * len(column))
        if np.ptp(column) == 0 or below in (0, 1):  # nothing varies, or the value lies outside all resamples
            found[:, m] = np.quantile(column, [(1 - confidence) / 2, (1 + confidence) / 2])
            continue
        shifted = ndtri(below) + tails
        found[:, m] = np.quantile(column, ndtr(ndtri(below) + shifted / (1 - acceleration[m] * shifted)))
    return found[0].reshape(shape), found[1].reshape(shape)


def _acceleration(left_out: list[Float[np.ndarray, "U m"]]) -> Float[np.ndarray, " m"]:
    """A sixth of the skewness of the jackknife's influences; 0 where nothing varies."""
    cubes, squares = 0.0, 0.0
    for part in left_out:
        units = len(part)
        influence = (units - 1) * (mean_of_finite(part, axis=0) - part)
        influence = np.where(np.isfinite(influence), influence, 0.0)
        cubes = cubes + (influence**3).sum(axis=0) / units**3
        squares = squares + (influence**2).sum(axis=0) / units**2
    return np.where(np.asarray(squares) > 0, cubes / np.maximum(6 * np.asarray(squares) ** 1.5, 1e-300), 0.0)
