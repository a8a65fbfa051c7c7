"""How well a confidence tells images that show a finding from images that do not: "nothing here"."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from afloc_jax.evaluation.discrimination import auc
from afloc_jax.evaluation.statistics import CONFIDENCE, Bootstrap, interval, mean_of_finite, resample

UNDEFINED = {"mean": None, "lower": None, "upper": None}


def _resampled_aucs(
    confidence: np.ndarray,
    present: np.ndarray,
    members: Sequence[np.ndarray],
    bootstrap: Bootstrap,
    clusters: np.ndarray | None,
) -> Float[np.ndarray, "R C"]:
    """Of every category; without clusters positives and negatives are drawn apart, so that no resample lacks either."""
    if clusters is None:
        drawn = [_stratified_auc(confidence[rows], present[rows], bootstrap) for rows in members]
        return np.stack(drawn, axis=1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.stack([auc(present[rows], confidence[rows], weights[:, rows]) for rows in members], axis=1)

    return resample(statistic, len(present), bootstrap.resamples, bootstrap.seed, clusters).resampled


def _stratified_auc(confidence: np.ndarray, present: np.ndarray, bootstrap: Bootstrap) -> Float[np.ndarray, " R"]:
    if present.all() or not present.any():
        return np.full(bootstrap.resamples, np.nan)
    rng = np.random.default_rng(bootstrap.seed)
    weights = np.empty((bootstrap.resamples, len(present)))
    for chosen in (present, ~present):
        count = int(chosen.sum())
        weights[:, chosen] = rng.multinomial(count, np.full(count, 1 / count), bootstrap.resamples)
    return auc(present, confidence, weights)


def presence_table(
    confidence: Float[np.ndarray, " n"],
    present: Bool[np.ndarray, " n"],
    accepted: Bool[np.ndarray, " n"],
    area: Float[np.ndarray, " n"],
    ungated_area: Float[np.ndarray, " n"],
    category: np.ndarray,
    categories: Sequence[str],
    bootstrap: Bootstrap,
    clusters: np.ndarray | None = None,
) -> dict[str, Any]:
    """Presence by category and overall (the mean of the categories), for summary.json.

    Args:
        confidence: of each sample.
        present: whether its image shows the finding.
        accepted: whether its confidence passes its category's operating point, chosen elsewhere.
        area: share of the map that is predicted after that.
        ungated_area: share that the mask threshold alone would predict.
        category: index of its category. The names follow in `categories`.
        bootstrap: of the AUC, whose limits are percentiles.
        clusters: the patient of each sample, to draw patients; positives and negatives are drawn apart without them.

    Returns:
        {"per_category": {name: numbers}, "overall": numbers} with `positives`, `negatives`, `auc` (mean and limits),
        `sensitivity`, `specificity`, `false_positive_area` and `false_positive_area_ungated` (means over negatives).
    """
    per_category: dict[str, dict[str, Any]] = {}
    points = []
    members = [np.flatnonzero(category == index) for index in range(len(categories))]
    drawn = _resampled_aucs(confidence, present, members, bootstrap, clusters)
    for index, name in enumerate(categories):
        chosen = category == index
        yes, no = chosen & present, chosen & ~present
        point = float(auc(present[chosen], confidence[chosen])[0]) if chosen.any() else float("nan")
        points.append(point)
        per_category[name] = {
            "positives": int(yes.sum()),
            "negatives": int(no.sum()),
            "auc": interval(point, drawn[:, index]).to_dict() if np.isfinite(point) else UNDEFINED,
            "sensitivity": _mean(accepted[yes]),
            "specificity": _mean(~accepted[no]),
            "false_positive_area": _mean(area[no]),
            "false_positive_area_ungated": _mean(ungated_area[no]),
        }
    overall: dict[str, Any] = {"positives": int(present.sum()), "negatives": int((~present).sum())}
    mean = float(mean_of_finite(np.array(points), axis=0))
    overall["auc"] = interval(mean, mean_of_finite(drawn, axis=1)).to_dict() if mean == mean else UNDEFINED
    for key in ("sensitivity", "specificity", "false_positive_area", "false_positive_area_ungated"):
        overall[key] = _mean(np.array([row[key] for row in per_category.values() if row[key] is not None]))
    return {"confidence_level": CONFIDENCE, "overall": overall, "per_category": per_category}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
