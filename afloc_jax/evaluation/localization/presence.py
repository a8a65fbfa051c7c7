"""Scores of samples with and without the finding, and how well a confidence separates the two.

A system predicts a mask, or nothing if it finds nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from afloc_jax.evaluation.files import json_of
from afloc_jax.evaluation.localization.scores import Facts, Outcome, Scores
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Replicates
from afloc_jax.evaluation.statistics.discrimination import auc
from afloc_jax.evaluation.statistics.interval import CONFIDENCE, Interval
from afloc_jax.evaluation.statistics.jackknife import LeftOut, Weights
from afloc_jax.evaluation.task import JsonObject


class PresenceScores(Scores):
    """Scores without thresholds: `values` are [n] and predicted pixels [n, 1]. No predicted pixel means "absent"."""

    @cached_property
    def present(self) -> Bool[np.ndarray, " n"]:
        """Whether the image shows the finding."""
        return np.array([truth.present for truth in self.truths])

    def outcome(self, sample: int, metric: str, k: int) -> Outcome:
        """The reason why the value of a sample is 0 or missing."""
        predicted = self.predicted_pixels[sample].any()
        if not self.truths[sample].present:
            return Outcome.FALSE_POSITIVE if predicted else Outcome.TRUE_NEGATIVE
        if self.empty_truth[sample]:
            return Outcome.NO_TRUTH
        return Outcome.SCORED if predicted or metric == "pointing" else Outcome.EMPTY

    def facts(self, bootstrap: Bootstrap) -> Facts:
        """The counts of the four outcomes by category."""
        predicted = self.predicted_pixels.any(axis=1)
        outcomes = {
            "true positives": self.present & predicted,
            "missed": self.present & ~predicted,
            "false positives": ~self.present & predicted,
            "true negatives": ~self.present & ~predicted,
        }
        counts = {outcome: self.by_category(chosen) for outcome, chosen in outcomes.items()}
        totals = ", ".join(f"{outcome} {sum(by_category.values())}" for outcome, by_category in counts.items())
        return Facts({"margin": 0, "outcomes": json_of(counts)}, [f"Outcomes: {totals}."])


def presence_values(
    iou: Float[np.ndarray, " n"],
    dice: Float[np.ndarray, " n"],
    hit: Float[np.ndarray, " n"],
    true_positive: Bool[np.ndarray, " n"],
) -> dict[str, Float[np.ndarray, " n"]]:
    """The metrics in the order of tables, each [n]: IoU over all, IoU over true positives, Dice, hit."""
    return {"iou": iou, "iou_true_positive": np.where(true_positive, iou, np.nan), "dice": dice, "pointing": hit}


def _aucs(
    confidence: Float[np.ndarray, " n"],
    present: Bool[np.ndarray, " n"],
    members: Sequence[Int[np.ndarray, " _"]],
    bootstrap: Bootstrap,
    clusters: np.ndarray | None,
) -> Replicates:
    """The AUC of every category [C]. Without clusters positives and negatives are resampled separately."""

    def statistic(weights: Weights) -> np.ndarray:
        return np.stack([auc(present[rows], confidence[rows], weights[:, rows]) for rows in members], axis=1)

    if clusters is not None:
        return bootstrap.resample(statistic, len(present), clusters)
    point = statistic(np.ones((1, len(present))))[0]
    drawn = [_stratified_auc(confidence[rows], present[rows], bootstrap) for rows in members]
    left_out = []
    if bootstrap.kind(of_auc=True) == "bca":
        without = statistic(LeftOut(np.arange(len(present)), len(present)))  # each sample in turn
        left_out = [without[rows[present[rows] == side]] for rows in members for side in (True, False)]
    return Replicates(point, np.stack(drawn, axis=1), tuple(part for part in left_out if len(part)))


def _stratified_auc(
    confidence: Float[np.ndarray, " n"], present: Bool[np.ndarray, " n"], bootstrap: Bootstrap
) -> Float[np.ndarray, " R"]:
    if present.all() or not present.any():
        return np.full(bootstrap.resamples, np.nan)
    rng = np.random.default_rng(bootstrap.seed)
    weights = np.empty((bootstrap.resamples, len(present)))
    for chosen in (present, ~present):
        count = int(chosen.sum())
        weights[:, chosen] = rng.multinomial(count, np.full(count, 1 / count), bootstrap.resamples)
    return auc(present, confidence, weights)


RATES = ("sensitivity", "specificity", "false_positive_area", "false_positive_area_ungated")


@dataclass(frozen=True)
class Presence:
    """How well samples with and without the finding are separated in one category, or in the mean of all.

    Attributes:
        positives, negatives: the numbers of samples with and without the finding. A rate without samples is None.
        auc: the AUC of the confidence.
        sensitivity, specificity: the rates at the operating point.
        false_positive_area: the predicted share of the map on negatives.
        false_positive_area_ungated: the share that the mask threshold alone would predict.
    """

    positives: int
    negatives: int
    auc: Interval
    sensitivity: float | None
    specificity: float | None
    false_positive_area: float | None
    false_positive_area_ungated: float | None


@dataclass(frozen=True)
class PresenceTable:
    """Presence in each category, and its mean over categories."""

    overall: Presence
    per_category: Mapping[str, Presence]

    def to_json(self) -> JsonObject:
        """The entry in summary.json."""
        return {"confidence_level": CONFIDENCE, **json_of(self)}


def presence_table(
    confidence: Float[np.ndarray, " n"],
    present: Bool[np.ndarray, " n"],
    accepted: Bool[np.ndarray, " n"],
    area: Float[np.ndarray, " n"],
    ungated_area: Float[np.ndarray, " n"],
    category: Int[np.ndarray, " n"],
    categories: Sequence[str],
    bootstrap: Bootstrap,
    clusters: np.ndarray | None = None,
) -> PresenceTable:
    """Presence by category.

    Args:
        confidence: the confidence of each sample.
        present: whether the image of each sample shows the finding.
        accepted: whether the confidence passes the category's operating point, which is chosen on other data.
        area: the predicted share of the map, 0 for samples that are not accepted.
        ungated_area: the share that the mask threshold alone predicts.
        category: the index of each sample's category.
        categories: the names of the categories.
        bootstrap, clusters: for the intervals of the AUC. Without clusters positives and negatives are resampled
            separately.
    """
    members = [np.flatnonzero(category == index) for index in range(len(categories))]
    aucs = _aucs(confidence, present, members, bootstrap, clusters)
    per_category = {}
    for index, name in enumerate(categories):
        chosen = category == index
        yes, no = chosen & present, chosen & ~present
        per_category[name] = Presence(
            positives=int(yes.sum()),
            negatives=int(no.sum()),
            auc=bootstrap.limits_of(aucs[index], of_auc=True),
            sensitivity=_mean(accepted[yes]),
            specificity=_mean(~accepted[no]),
            false_positive_area=_mean(area[no]),
            false_positive_area_ungated=_mean(ungated_area[no]),
        )

    def mean_of(rate: str) -> float | None:
        values = [getattr(row, rate) for row in per_category.values()]
        return _mean(np.array([value for value in values if value is not None]))

    overall = Presence(
        positives=int(present.sum()),
        negatives=int((~present).sum()),
        auc=bootstrap.limits_of(aucs.mean_over(-1), of_auc=True),
        **{rate: mean_of(rate) for rate in RATES},
    )
    return PresenceTable(overall, per_category)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
