"""Category means with percentile bootstrap intervals, all columns and resamples at once.

A resample draws as many samples as there are, with replacement. Its mean is a weighted mean whose weights are how often
each sample was drawn, so that every resample of every column is one matrix product. The same seed gives the same draws
for two systems on the same samples: the difference of their resampled means is a paired difference.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

RESAMPLES = 1000
CONFIDENCE = 0.95
BLOCK = 4_000_000  # draws held at a time: bounds the memory, whatever the number of samples


@dataclass(frozen=True)
class Interval:
    """A mean and the limits of its confidence interval; NaN where nothing was scored."""

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
class CategoryMeans:
    """Means over the samples of each category, of the data themselves and of every resample."""

    point: Float[np.ndarray, "C M"]
    resampled: Float[np.ndarray, "R C M"]


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


def bootstrap(
    values: Float[np.ndarray, "n M"],
    category: Int[np.ndarray, " n"],
    categories: int,
    resamples: int = RESAMPLES,
    seed: int = 0,
    stratified: bool = True,
) -> CategoryMeans:
    """Means of every column within every category, for the data and for `resamples` resamples of samples.

    `category` is the index of each sample's category, in [0, categories). NaN values are left out of a mean, in a
    resample as in the data. The same seed gives the same draws, whatever the columns are.

    Stratified draws keep the size of every category, so that the mean over categories is never taken without a rare
    one. Otherwise samples are drawn from the whole table, as in the release; a category missed by a resample is NaN.
    """
    values = np.asarray(values, np.float64)
    category = np.asarray(category)
    if values.ndim != 2 or category.shape != values.shape[:1]:
        raise ValueError(f"values are [samples, columns] with a category each; got {values.shape} and {category.shape}")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; a bootstrap needs at least 1")
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(category == index) for index in range(categories)]
    present = [index for index in range(categories) if len(members[index])]
    groups = [[index] for index in present] if stratified else [present]
    point = np.full((categories, values.shape[1]), np.nan)
    resampled = np.full((resamples, categories, values.shape[1]), np.nan)
    for group in groups:  # samples are drawn within a group
        rows = np.concatenate([members[index] for index in group])
        stops = np.cumsum([len(members[index]) for index in group])
        step = max(1, BLOCK // len(rows))
        for start in range(0, resamples, step):
            counts = _draw_counts(rng, len(rows), min(step, resamples - start))
            for index, stop in zip(group, stops, strict=True):
                weights = counts[:, stop - len(members[index]) : stop]
                resampled[start : start + step, index] = _weighted_means(weights, values[members[index]])
    for index in present:
        point[index] = mean_of_finite(values[members[index]], axis=0)
    return CategoryMeans(point, resampled)


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
