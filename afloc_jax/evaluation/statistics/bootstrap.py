"""Bootstrap intervals of means and of any statistic of weighted samples, all columns and resamples at once.

A resample draws as many units as there are, with replacement. A unit is a sample, or all samples of one cluster (a
patient), which are drawn together because they are correlated. The weight of a unit is how often it was drawn. All
resamples of all columns of means are then one matrix product, and any other statistic is a function of weights. The
same seed gives the same draws for two systems on the same samples, so that differences between them are paired.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from afloc_jax.errors import UserError
from afloc_jax.evaluation.statistics import IntervalKind, Unit
from afloc_jax.evaluation.statistics.interval import CONFIDENCE, Interval, bca_limits, limits, mean_of_finite
from afloc_jax.evaluation.statistics.jackknife import LeftOut, Weights
from afloc_jax.settings import Json, Settings, at_least, setting

Statistic: TypeAlias = Callable[[Weights], np.ndarray]
"""A function from weights [R, n] to a statistic [R, *m] of each row. It may use the operations of `LeftOut` only."""

RESAMPLES = 1000
BLOCK = 4_000_000  # most weights in memory at a time


@dataclass(frozen=True)
class Replicates:
    """A statistic (an array, or one number) on the data, and on the resamples for its intervals.

    Attributes:
        point: [*m] the statistic on the data.
        resampled: [R, *m] the statistic on every resample.
        left_out: for each stratum [U, *m], the statistic without each unit in turn (jackknife), for BCa intervals;
            else empty.
    """

    point: np.ndarray
    resampled: np.ndarray
    left_out: tuple[np.ndarray, ...] = ()

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> "Replicates":
        """`function` applied to the statistic; it must act on the trailing axes *m alone."""
        return Replicates(function(self.point), function(self.resampled), tuple(map(function, self.left_out)))

    def __getitem__(self, index: int | slice) -> "Replicates":
        """The elements `index` of the last axis."""
        return self.map(lambda values: values[..., index])

    def __sub__(self, other: "Replicates") -> "Replicates":
        """The paired difference: both must come from the same draws."""
        left_out = tuple(first - second for first, second in zip(self.left_out, other.left_out, strict=True))
        return Replicates(self.point - other.point, self.resampled - other.resampled, left_out)

    def mean_over(self, axis: int) -> "Replicates":
        """The mean over a trailing axis (counted from the end), without undefined values."""
        return self.map(lambda values: mean_of_finite(values, axis=axis))

    def interval(self, method: Literal["percentile", "bca"] = "percentile") -> Interval:
        """The interval of a single number ([R] resamples). Raises ValueError for BCa without `left_out`."""
        if method == "bca":
            lower, upper = bca_limits(self.point, self.resampled, self.left_out)
        else:
            lower, upper = limits(self.resampled)
        return Interval(float(self.point), float(lower), float(upper))


@dataclass(frozen=True)
class Units:
    """The units that a bootstrap draws: their name, and the unit of each sample (None if samples are drawn)."""

    name: Unit
    clusters: np.ndarray | None

    def number(self, chosen: Bool[np.ndarray, " n"]) -> int:
        """The number of units with a chosen sample."""
        return int(chosen.sum()) if self.clusters is None else len(np.unique(self.clusters[chosen]))


@dataclass(frozen=True)
class Bootstrap(Settings, section="bootstrap"):
    """The settings of bootstrap intervals.

    Attributes:
        resamples: the number of resamples.
        seed: the seed of the draws.
        interval: the kind of interval, see `IntervalKind`.
        unit: the unit of resampling, see `Unit`.

    >>> dice = np.array([[0.1], [0.4], [0.35], [0.8]])  # four samples of one category
    >>> means = Bootstrap(resamples=1000).means(dice, np.zeros(4, int), categories=1)
    >>> print(means[0][0].interval())
    0.412 [0.175, 0.688]
    """

    resamples: int = setting(RESAMPLES, at_least(1, "an interval needs at least 1"))
    seed: int = 0
    interval: IntervalKind = "auto"
    unit: Unit = "auto"

    def units(self, patients: Sequence[str], images: Sequence[str]) -> Units:
        """The units to draw, from the patient (empty if unknown) and the image of each sample.

        With "auto" a sample without a patient belongs to its image. Raises UserError if a sample does not name the
        `unit` that these settings state.
        """
        if self.unit == "auto":
            shared = [name for name in patients if name]
            if len(set(shared)) < len(shared):
                both = zip(patients, images, strict=True)
                names = [f"patient {patient}" if patient else f"image {image}" for patient, image in both]
                return Units("patient", np.asarray(names))
            unit: Unit = "image" if len(set(images)) < len(images) else "sample"
        else:
            unit = self.unit
        if unit == "sample":
            return Units(unit, None)
        names = list(patients if unit == "patient" else images)
        missing = sum(not name for name in names)
        if missing:
            raise UserError(
                f"{missing} of {len(names)} samples name no {unit}; draw samples instead, or add the {unit}s"
            )
        return Units(unit, np.asarray(names))

    def as_released(self) -> "Bootstrap":
        """These settings with the release's choice, percentiles of samples, where they are "auto"."""
        interval: IntervalKind = "percentile" if self.interval == "auto" else self.interval
        return replace(self, interval=interval, unit="sample" if self.unit == "auto" else self.unit)

    def kind(self, of_auc: bool = False) -> Literal["percentile", "bca"]:
        """The kind of interval of an AUC, or of any other number."""
        if self.interval == "auto":
            return "bca" if of_auc else "percentile"
        return self.interval

    def means(
        self,
        values: Float[np.ndarray, "..."],
        category: Int[np.ndarray, "..."],
        categories: int,
        clusters: Shaped[np.ndarray, "..."] | None = None,
        *,
        stratified: bool = True,
    ) -> Replicates:
        """The means [C, M] of every column of `values` [n, M] in every category, on the data and on the resamples.

        Args:
            values: scores; NaN values are left out of a mean, in a resample as in the data.
            category: the index of each sample's category, in [0, categories).
            categories: C, the number of categories.
            clusters: the cluster of each sample; None draws samples.
            stratified: whether samples are drawn within each category. Every category then keeps its size, so that no
                resample misses a rare one. Otherwise samples are drawn from the complete table, as in the release, and
                a category that a resample misses is NaN. Clusters are always drawn from the complete table, because a
                patient may have findings of several categories.

        The same seed gives the same draws for any columns. The means without each unit, for BCa, are computed from
        sums, so that they cost as much as one resample per unit and category.
        """
        values = np.asarray(values, np.float64)
        category = np.asarray(category)
        if values.ndim != 2 or category.shape != values.shape[:1]:
            raise ValueError(
                f"values are [samples, columns] with a category each; got {values.shape} and {category.shape}"
            )
        cluster = cluster_index(clusters, len(values))
        rng = np.random.default_rng(self.seed)
        members = [np.flatnonzero(category == index) for index in range(categories)]
        present = [index for index in range(categories) if len(members[index])]
        point = np.full((categories, values.shape[1]), np.nan)
        for index in present:
            point[index] = mean_of_finite(values[members[index]], axis=0)
        resampled = np.full((self.resamples, categories, values.shape[1]), np.nan)
        left_out = []
        groups = [[index] for index in present] if stratified and clusters is None else [present]
        for group in groups if present else []:  # units are drawn within a group
            rows = np.concatenate([members[index] for index in group])
            unit = cluster_index(cluster[rows], len(rows))
            units = int(unit.max()) + 1
            stops = np.cumsum([len(members[index]) for index in group])
            unit_of = dict(zip(group, np.split(unit, stops[:-1]), strict=True))
            for block, counts in _blocks(rng, units, len(rows), self.resamples):
                for index in group:
                    resampled[block, index] = _weighted_means(counts[:, unit_of[index]], values[members[index]])
            if self.kind() == "bca":
                without = np.repeat(point[None], units, axis=0)
                for index in group:
                    without[:, index] = _means_without(values[members[index]], unit_of[index], units)
                left_out.append(without)
        return Replicates(point, resampled, tuple(left_out))

    def resample(
        self, statistic: Statistic, samples: int, clusters: Shaped[np.ndarray, " n"] | None = None
    ) -> Replicates:
        """Any statistic of weighted samples, on the data (weights of 1) and on resamples of samples or of clusters.

        For BCa `statistic` is also called with the weights of the jackknife, a `LeftOut`, which supports `@`,
        `sum(axis=1)` and `[:, columns]`, the operations that the metrics of discrimination.py use.
        """
        unit = cluster_index(clusters, samples)
        units = int(unit.max(initial=-1)) + 1
        point = statistic(np.ones((1, samples)))[0]
        resampled = np.full((self.resamples, *point.shape), np.nan)
        for block, counts in _blocks(np.random.default_rng(self.seed), units, samples, self.resamples):
            resampled[block] = statistic(counts[:, unit])
        return Replicates(
            point, resampled, (statistic(LeftOut(unit, units)),) if self.kind(of_auc=True) == "bca" else ()
        )

    def limits_of(self, replicates: Replicates, of_auc: bool = False) -> Interval:
        """The interval of a single number. `of_auc`: whether it is an AUC, or made of AUCs of one system."""
        return replicates.interval(self.kind(of_auc))

    def to_dict(self, units: Units | None = None) -> dict[str, Json]:
        """The settings in summary.json: as given, or, with the drawn units, as they were used."""
        used: dict[str, Json] = {}
        if units is not None:
            used = {"interval": self.kind(), "auc_interval": self.kind(of_auc=True), "unit": units.name}
        return {**self.plain(), **used, "confidence": CONFIDENCE}


def _weighted_means(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The weighted means [R, M] of the finite `values` [n, M], for every row of `weights` [R, n]."""
    finite = np.isfinite(values)
    total = weights @ np.where(finite, values, 0.0)
    count = weights @ finite.astype(np.float64)
    return np.where(count > 0, total / np.maximum(count, 1e-300), np.nan)


def _draw_counts(rng: np.random.Generator, samples: int, resamples: int) -> Float[np.ndarray, "R n"]:
    """How often each resample draws each sample: rows are multinomial counts with the sum `samples`."""
    drawn = rng.integers(0, samples, (resamples, samples))
    flat = (drawn + samples * np.arange(resamples)[:, None]).ravel()
    return np.bincount(flat, minlength=resamples * samples).reshape(resamples, samples).astype(np.float64)


def cluster_index(clusters: Shaped[np.ndarray, "..."] | None, samples: int) -> Int[np.ndarray, " n"]:
    """The index of each sample's cluster, in order of appearance; without clusters every sample is its own."""
    if clusters is None:
        return np.arange(samples)
    clusters = np.asarray(clusters)
    if clusters.shape != (samples,):
        raise ValueError(f"{samples} samples but clusters of shape {clusters.shape}; each sample needs its cluster")
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _blocks(
    rng: np.random.Generator, units: int, samples: int, resamples: int
) -> Iterator[tuple[slice, Float[np.ndarray, "r U"]]]:
    """Slices of the resamples with the counts of their draws [r, units], in blocks of at most `BLOCK` weights."""
    step = max(1, BLOCK // max(units, samples, 1))
    for start in range(0, resamples if units else 0, step):
        count = min(step, resamples - start)
        yield slice(start, start + count), _draw_counts(rng, units, count)


def _means_without(values: Float[np.ndarray, "n M"], unit: Int[np.ndarray, " n"], units: int) -> np.ndarray:
    """The means [U, M] of the finite values without those of each unit."""
    finite, without = np.isfinite(values), LeftOut(unit, units)
    total, count = without @ np.where(finite, values, 0.0), without @ finite
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
