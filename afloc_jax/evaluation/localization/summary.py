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

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.localization.scores import Scores
from afloc_jax.evaluation.statistics import bootstrap as statistics
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Interval, Replicates, mean_of_finite


def _columns(scores: Scores, metric: str) -> np.ndarray:
    """[n, K] for a metric with thresholds, [n, 1] for one without."""
    return scores[metric].reshape(len(scores.truths), -1)


def _thresholded(scores: Scores, metric: str) -> bool:
    """Whether a metric has one value per threshold."""
    return scores[metric].ndim == 2


def _skipped_as_zero(scores: Scores, metric: str) -> np.ndarray:
    """[n, 1]: the release's mean over thresholds of each sample."""
    return np.nan_to_num(_columns(scores, metric), nan=0.0).mean(axis=1, keepdims=True)


def _resample(scores: Scores, metric: str, bootstrap: Bootstrap) -> tuple[Replicates, Replicates]:
    """Category means per threshold [C, K], and over thresholds [C], which intervals are taken from."""
    columns = _columns(scores, metric)
    release = scores.options.compatible and _thresholded(scores, metric)
    if scores.options.compatible and (bootstrap.interval, bootstrap.unit) != ("percentile", "sample"):
        raise UsageError("compatible intervals are the release's: percentiles of resampled samples; leave one out")
    values = np.concatenate([columns, _skipped_as_zero(scores, metric)], axis=1) if release else columns
    means = statistics.bootstrap(
        values,
        scores.category_index,
        len(scores.categories),
        bootstrap.resamples,
        bootstrap.seed,
        stratified=not scores.options.compatible,
        clusters=bootstrap.clusters(scores.patients),
        leave_out=bootstrap.leave_out,
    )
    per_threshold = means[: columns.shape[1]]
    over_thresholds = per_threshold.map(lambda values: mean_of_finite(values, axis=-1))
    if release:
        over_thresholds = Replicates(over_thresholds.point, means.resampled[..., -1])
    return per_threshold, over_thresholds


def _overall(means: Replicates, bootstrap: Bootstrap, compatible: bool) -> Interval:
    """[C] -> the interval of the mean over categories."""
    if not compatible:
        return bootstrap.limits_of(means.map(lambda values: mean_of_finite(values, axis=-1)))
    lower, upper = statistics.limits(means.resampled)
    mean = mean_of_finite(means.point, axis=0)
    return Interval(float(mean), float(mean_of_finite(lower, 0)), float(mean_of_finite(upper, 0)))


def metric_table(scores: Scores, metric: str, bootstrap: Bootstrap) -> dict[str, Any]:
    """One entry of `metrics` in summary.json: `overall`, `per_category`, `per_threshold`, each with its limits."""
    means, over_thresholds = _resample(scores, metric, bootstrap)
    overall = _overall(over_thresholds, bootstrap, scores.options.compatible)
    # The published order: over samples, categories, thresholds (matters where values lack).
    if _thresholded(scores, metric):
        by_threshold = mean_of_finite(means.point, axis=0)
        overall = Interval(float(mean_of_finite(by_threshold, axis=0)), overall.lower, overall.upper)
    table: dict[str, Any] = {
        "overall": overall.to_dict(),
        "per_category": {
            name: bootstrap.limits_of(over_thresholds[c]).to_dict() for c, name in enumerate(scores.categories)
        },
        "per_threshold": {},
    }
    if _thresholded(scores, metric):
        table["per_category_per_threshold"] = {name: {} for name in scores.categories}
        for k, threshold in enumerate(scores.options.thresholds):
            shown = f"{threshold:g}"
            table["per_threshold"][shown] = _overall(means[k], bootstrap, scores.options.compatible).to_dict()
            for c, name in enumerate(scores.categories):
                value = Interval(means.point[c, k], np.nan, np.nan).to_dict()["mean"]
                table["per_category_per_threshold"][name][shown] = value
    return table


def summarise(scores: Scores, bootstrap: Bootstrap) -> dict[str, Any]:
    """The content of summary.json: plain numbers, None where nothing was scored.

    `metrics[name]` holds `overall`, `per_category` and `per_threshold`, each a mean with its 95 % bootstrap limits.
    What else there is to say, a protocol's `Scores.facts` says: samples without truth in the scored region, empty
    predictions (misses, or skipped in compatible mode), thresholds chosen on validation data.
    """
    samples = np.bincount(scores.category_index, minlength=len(scores.categories))
    stratified = bootstrap.unit == "sample" and not scores.options.compatible
    return {
        "protocol": scores.options.protocol,
        "compatible": scores.options.compatible,
        "n": len(scores.truths),
        "n_per_category": {name: int(samples[c]) for c, name in enumerate(scores.categories)},
        **scores.facts(bootstrap),
        "bootstrap": {
            **bootstrap.to_dict(),
            "drawn": "within each category" if stratified else "from the whole table",
        },
        "metrics": {name: metric_table(scores, name, bootstrap) for name in scores.metrics},
    }


def paired_difference(system: Scores, other: Scores, bootstrap: Bootstrap) -> dict[str, Any]:
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
        first, second = (_resample(side, metric, bootstrap)[1] for side in (system, other))
        difference = first - second
        overall = difference.map(lambda values: mean_of_finite(values, axis=-1))
        table[metric] = {
            "overall": bootstrap.limits_of(overall).to_dict(),
            "per_category": {
                name: bootstrap.limits_of(difference[c]).to_dict() for c, name in enumerate(system.categories)
            },
        }
    return table


def add_baselines(
    summary: Mapping[str, Any], scores: Scores, baselines: Mapping[str, Scores], bootstrap: Bootstrap
) -> dict[str, Any]:
    """The summary with, for each named baseline, its own metrics and `difference`: scores minus baseline, paired."""
    return {
        **summary,
        "baselines": {
            name: {
                "metrics": summarise(baseline, bootstrap)["metrics"],
                "difference": paired_difference(scores, baseline, bootstrap),
            }
            for name, baseline in baselines.items()
        },
    }
