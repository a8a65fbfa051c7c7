"""From per-sample scores to tables: category means, overall means, intervals, paired differences.

A number is averaged over the samples of a category, then over categories, then over thresholds. What the release does
otherwise for its intervals is kept by compatible scores:

    case                          default                              compatible
    samples are drawn             within each category                 from the whole table
    overall limits                percentiles of the overall mean      mean of the categories' limits (wider)
    skipped at one threshold      never skipped                        0 in the sample's mean over thresholds
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from afloc_jax.evaluation import statistics
from afloc_jax.evaluation.localization import Scores
from afloc_jax.evaluation.statistics import RESAMPLES, CategoryMeans, Interval, interval, mean_of_finite


def _columns(scores: Scores, metric: str) -> np.ndarray:
    """[n, K] for a metric with thresholds, [n, 1] for one without."""
    return scores[metric].reshape(len(scores.truths), -1)


def _thresholded(scores: Scores, metric: str) -> bool:
    """Whether a metric has one value per threshold."""
    return scores[metric].ndim == 2


def _skipped_as_zero(scores: Scores, metric: str) -> np.ndarray:
    """[n, 1]: the release's mean over thresholds of each sample."""
    return np.nan_to_num(_columns(scores, metric), nan=0.0).mean(axis=1, keepdims=True)


def _resample(scores: Scores, metric: str, resamples: int, seed: int) -> tuple[CategoryMeans, np.ndarray]:
    """Category means per threshold, and the resampled means over thresholds [R, C] that intervals are taken from."""
    columns = _columns(scores, metric)
    release = scores.options.compatible and _thresholded(scores, metric)
    values = np.concatenate([columns, _skipped_as_zero(scores, metric)], axis=1) if release else columns
    means = statistics.bootstrap(
        values,
        scores.category_index,
        len(scores.categories),
        resamples,
        seed,
        stratified=not scores.options.compatible,
    )
    per_threshold = CategoryMeans(means.point[:, : columns.shape[1]], means.resampled[..., : columns.shape[1]])
    over_thresholds = means.resampled[..., -1] if release else mean_of_finite(per_threshold.resampled, axis=2)
    return per_threshold, over_thresholds


def _overall(point: np.ndarray, resampled: np.ndarray, compatible: bool) -> Interval:
    """[C] and [R, C] -> the interval of the mean over categories."""
    mean = mean_of_finite(point, axis=0)
    if not compatible:
        return interval(mean, mean_of_finite(resampled, axis=1))
    lower, upper = statistics.limits(resampled)
    return Interval(float(mean), float(mean_of_finite(lower, 0)), float(mean_of_finite(upper, 0)))


def metric_table(scores: Scores, metric: str, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """One entry of `metrics` in summary.json: `overall`, `per_category`, `per_threshold`, each with its limits."""
    means, over_thresholds = _resample(scores, metric, resamples, seed)
    per_category = mean_of_finite(means.point, axis=1)
    overall = _overall(per_category, over_thresholds, scores.options.compatible)
    if _thresholded(
        scores, metric
    ):  # the published order: over samples, categories, thresholds (matters where values lack)
        by_threshold = mean_of_finite(means.point, axis=0)
        overall = Interval(float(mean_of_finite(by_threshold, axis=0)), overall.lower, overall.upper)
    table: dict[str, Any] = {
        "overall": overall.to_dict(),
        "per_category": {
            name: interval(per_category[c], over_thresholds[:, c]).to_dict() for c, name in enumerate(scores.categories)
        },
        "per_threshold": {},
    }
    if _thresholded(scores, metric):
        table["per_category_per_threshold"] = {name: {} for name in scores.categories}
        for k, threshold in enumerate(scores.options.thresholds):
            shown = f"{threshold:g}"
            table["per_threshold"][shown] = _overall(
                means.point[:, k], means.resampled[:, :, k], scores.options.compatible
            ).to_dict()
            for c, name in enumerate(scores.categories):
                value = Interval(means.point[c, k], np.nan, np.nan).to_dict()["mean"]
                table["per_category_per_threshold"][name][shown] = value
    return table


def summarise(scores: Scores, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """The content of summary.json: plain numbers, None where nothing was scored.

    `metrics[name]` holds `overall`, `per_category` and `per_threshold`, each a mean with its 95 % bootstrap limits.
    What else there is to say, a protocol's `Scores.facts` says: samples without truth in the scored region, empty
    predictions (misses, or skipped in compatible mode), thresholds chosen on validation data.
    """
    samples = np.bincount(scores.category_index, minlength=len(scores.categories))
    return {
        "protocol": scores.options.protocol,
        "compatible": scores.options.compatible,
        "n": len(scores.truths),
        "n_per_category": {name: int(samples[c]) for c, name in enumerate(scores.categories)},
        **scores.facts(resamples, seed),
        "bootstrap": {
            "resamples": resamples,
            "seed": seed,
            "confidence": statistics.CONFIDENCE,
            "drawn": "from the whole table" if scores.options.compatible else "within each category",
        },
        "metrics": {metric: metric_table(scores, metric, resamples, seed) for metric in scores.metrics},
    }


def paired_difference(system: Scores, other: Scores, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """`system` minus `other` on the same samples: {metric: {overall, per_category}} with 95 % limits.

    Both see the same resamples, so what makes a sample hard or easy for both cancels: an interval that excludes 0 says
    that the systems differ on such samples. A metric that one lacks is left out. Raises
    `ValueError` unless both scored the same samples alike.
    """
    if [t.id for t in system.truths] != [t.id for t in other.truths] or system.options != other.options:
        raise ValueError(
            "a paired difference needs scores of the same samples, in the same order, with the same options"
        )
    table: dict[str, Any] = {}
    for metric in [name for name in system.metrics if name in other.metrics]:
        first, first_resampled = _resample(system, metric, resamples, seed)
        second, second_resampled = _resample(other, metric, resamples, seed)
        point = mean_of_finite(first.point, axis=1) - mean_of_finite(second.point, axis=1)
        resampled = first_resampled - second_resampled
        table[metric] = {
            "overall": interval(mean_of_finite(point, axis=0), mean_of_finite(resampled, axis=1)).to_dict(),
            "per_category": {
                name: interval(point[c], resampled[:, c]).to_dict() for c, name in enumerate(system.categories)
            },
        }
    return table


def add_baselines(
    summary: Mapping[str, Any],
    scores: Scores,
    baselines: Mapping[str, Scores],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The summary with, for each named baseline, its own metrics and `difference`: scores minus baseline, paired."""
    return {
        **summary,
        "baselines": {
            name: {
                "metrics": summarise(baseline, resamples, seed)["metrics"],
                "difference": paired_difference(scores, baseline, resamples, seed),
            }
            for name, baseline in baselines.items()
        },
    }
