"""How well a confidence tells images that show a finding from images that do not: "nothing here"."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from afloc_jax.evaluation.discrimination import auc
from afloc_jax.evaluation.jackknife import LeftOut
from afloc_jax.evaluation.statistics import CONFIDENCE, Bootstrap, Replicates, mean_of_finite


def _aucs(
    confidence: np.ndarray,
    present: np.ndarray,
    members: Sequence[np.ndarray],
    bootstrap: Bootstrap,
    clusters: np.ndarray | None,
) -> Replicates:
    """[C], of every category; without clusters positives and negatives are drawn apart: no resample lacks either."""

    def statistic(weights: Any) -> np.ndarray:
        return np.stack([auc(present[rows], confidence[rows], weights[:, rows]) for rows in members], axis=1)

    if clusters is not None:
        return bootstrap.resample(statistic, len(present), clusters)
    point = statistic(np.ones((1, len(present))))[0]
    drawn = [_stratified_auc(confidence[rows], present[rows], bootstrap) for rows in members]
    left_out = []
    if bootstrap.leave_out:
        without = statistic(LeftOut(np.arange(len(present)), len(present)))  # each sample in turn
        left_out = [without[rows[present[rows] == side]] for rows in members for side in (True, False)]
    return Replicates(point, np.stack(drawn, axis=1), tuple(part for part in left_out if len(part)))


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
        bootstrap: of the AUC.
        clusters: the patient of each sample, to draw patients; positives and negatives are drawn apart without them.

    Returns:
        {"per_category": {name: numbers}, "overall": numbers} with `positives`, `negatives`, `auc` (mean and limits),
        `sensitivity`, `specificity`, `false_positive_area` and `false_positive_area_ungated` (means over negatives).
    """
    per_category: dict[str, dict[str, Any]] = {}
    members = [np.flatnonzero(category == index) for index in range(len(categories))]
    aucs = _aucs(confidence, present, members, bootstrap, clusters)
    for index, name in enumerate(categories):
        chosen = category == index
        yes, no = chosen & present, chosen & ~present
        per_category[name] = {
            "positives": int(yes.sum()),
            "negatives": int(no.sum()),
            "auc": bootstrap.limits_of(aucs[index]).to_dict(),
            "sensitivity": _mean(accepted[yes]),
            "specificity": _mean(~accepted[no]),
            "false_positive_area": _mean(area[no]),
            "false_positive_area_ungated": _mean(ungated_area[no]),
        }
    overall: dict[str, Any] = {"positives": int(present.sum()), "negatives": int((~present).sum())}
    overall["auc"] = bootstrap.limits_of(aucs.map(lambda values: mean_of_finite(values, axis=-1))).to_dict()
    for key in ("sensitivity", "specificity", "false_positive_area", "false_positive_area_ungated"):
        overall[key] = _mean(np.array([row[key] for row in per_category.values() if row[key] is not None]))
    return {"confidence_level": CONFIDENCE, "overall": overall, "per_category": per_category}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
