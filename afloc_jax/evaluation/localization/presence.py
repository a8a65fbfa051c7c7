"""Scores of samples of which some show the finding and some do not, and how well a confidence tells them apart.

Masks are predicted, or nothing is: "nothing here".
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from afloc_jax.evaluation.localization.scores import ProtocolOptions, Scores
from afloc_jax.evaluation.statistics.bootstrap import CONFIDENCE, Bootstrap, Replicates, mean_of_finite
from afloc_jax.evaluation.statistics.discrimination import auc
from afloc_jax.evaluation.statistics.jackknife import LeftOut


class PresenceScores(Scores):
    """`values` hold [n] arrays. Predicted pixels are [n, 1]; a sample without any says "nothing here"."""

    @cached_property
    def present(self) -> np.ndarray:
        """[n] bool: whether the image shows the finding."""
        return np.array([truth.present for truth in self.truths])

    def note(self, sample: int, metric: str, k: int) -> str:
        """What the system made of a sample, where a value of 0 or none leaves it open."""
        predicted = self.predicted_pixels[sample].any()
        if not self.truths[sample].present:
            return "false positive" if predicted else "true negative"
        if self.empty_truth[sample]:
            return "no truth in the scored region"
        return "" if predicted or metric == "pointing" else "empty prediction"

    def facts(self, bootstrap: Bootstrap) -> dict[str, Any]:
        """Counts of the four outcomes by category."""
        predicted = self.predicted_pixels.any(axis=1)
        outcomes = {
            "true positives": self.present & predicted,
            "missed": self.present & ~predicted,
            "false positives": ~self.present & predicted,
            "true negatives": ~self.present & ~predicted,
        }
        names, index = self.categories, self.category_index
        return {
            "margin": 0,
            "outcomes": {
                outcome: dict(zip(names, np.bincount(index[rows], minlength=len(names)).tolist(), strict=True))
                for outcome, rows in outcomes.items()
            },
        }


def presence_values(iou: np.ndarray, dice: np.ndarray, hit: np.ndarray, true_positive: np.ndarray) -> dict:
    """The metrics of such scores in the order of tables, [n] each: IoU over all, over true positives, Dice, hit."""
    return {"iou": iou, "iou_true_positive": np.where(true_positive, iou, np.nan), "dice": dice, "pointing": hit}


def presence_options(compatible: bool) -> ProtocolOptions:
    """The options of such scores: the whole image, and thresholds that are not the protocol's to say."""
    return ProtocolOptions(margin=0, compatible=compatible, protocol="chexlocalize")


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
