"""Scores of heat maps against the places of their samples.

Source: the paper (Nature Biomedical Engineering 2026, doi 10.1038/s41551-025-01574-7) and the behaviour of its public
release. Where the release has a plain defect, `ProtocolOptions.compatible` reproduces it and the default mends it:

    case                          default                        compatible
    empty prediction              a miss: IoU and Dice are 0     skipped
    boxes of one phrase overlap   inside is inside               CNR ignores the overlap
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from afloc_jax.errors import UserError
from afloc_jax.evaluation.files import json_of
from afloc_jax.evaluation.localization.metrics import METRICS, Comparison
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.evaluation.task import JsonObject
from afloc_jax.evaluation.truth.sample import Truth


class Outcome(StrEnum):
    """Why the value of a sample is 0 or absent, or that its image does not show the finding.

    The words are those of the column `note` of per_sample.csv.
    """

    SCORED = ""
    NO_TRUTH = "no truth in the scored region"
    EMPTY = "empty prediction"
    REJECTED = "confidence below the threshold"
    ONE_SIDED = "nothing inside or nothing outside"
    FALSE_POSITIVE = "false positive"
    TRUE_NEGATIVE = "true negative"


@dataclass(frozen=True)
class SampleScore:
    """Scores of one heat map against one place, by metric: [K] for one with thresholds, [] for one without.

    NaN is a score that is not defined or was skipped.
    """

    values: Mapping[str, np.ndarray]
    predicted_pixels: Int[np.ndarray, " K"]
    truth_pixels: int

    def __getitem__(self, metric: str) -> np.ndarray:
        return self.values[metric]


@dataclass(frozen=True)
class Facts:
    """What a protocol reports beside its metrics: keys of summary.json, and the same in lines of summary.md."""

    json: JsonObject
    remarks: list[str]


@dataclass(frozen=True)
class Scores:
    """Scores of all samples, in the order of the truths. K is the number of thresholds.

    `values` holds a metric's name and its scores, [n, K] for one with thresholds and [n] for one without. NaN is no
    score: no truth in the scored region, in compatible mode also an empty prediction, and for CNR no pixel inside or
    outside. Protocols that say more about a sample derive from this class.
    """

    truths: tuple[Truth, ...] = field(repr=False)
    options: ProtocolOptions
    values: Mapping[str, Float[np.ndarray, "n *K"]] = field(repr=False)
    predicted_pixels: Int[np.ndarray, "n K"] = field(repr=False)
    truth_pixels: Int[np.ndarray, " n"] = field(repr=False)

    def __getitem__(self, metric: str) -> np.ndarray:
        return self.values[metric]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the metrics, in the order of tables."""
        return tuple(self.values)

    @property
    def overlap(self) -> Float[np.ndarray, " n"]:
        """IoU, the mean over thresholds: what samples are ranked by. NaN where a threshold has no score."""
        return np.asarray(self["iou"].reshape(len(self.truths), -1).mean(axis=1))

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The names of the categories, in alphabetical order."""
        return tuple(sorted({truth.category for truth in self.truths}))

    @cached_property
    def category_index(self) -> Int[np.ndarray, " n"]:
        """The index into `categories` of each sample."""
        index = {name: position for position, name in enumerate(self.categories)}
        return np.array([index[truth.category] for truth in self.truths], int)

    @cached_property
    def empty_truth(self) -> Bool[np.ndarray, " n"]:
        """Whether there is no truth in the scored region; such a sample has no score."""
        return np.asarray(self.truth_pixels == 0)

    @cached_property
    def empty_prediction(self) -> Bool[np.ndarray, "n K"]:
        """Whether nothing is predicted at a threshold, though there is truth to be found."""
        return np.asarray((self.predicted_pixels == 0) & ~self.empty_truth[:, None])

    @property
    def patients(self) -> list[str]:
        """The patient of each sample; empty where unknown."""
        return [truth.patient for truth in self.truths]

    def by_category(self, chosen: Bool[np.ndarray, " n"]) -> dict[str, int]:
        """How many of the chosen samples each category has."""
        counts = np.bincount(self.category_index[chosen], minlength=len(self.categories))
        return dict(zip(self.categories, counts.tolist(), strict=True))

    def thresholded(self, metric: str) -> bool:
        """Whether a metric has one value per threshold."""
        return self[metric].ndim == 2

    def threshold(self, metric: str, k: int) -> str:
        """The threshold of one value, as tables show it; empty for a metric without."""
        return f"{self.options.thresholds[k]:g}" if self.thresholded(metric) else ""

    def chosen_threshold(self, sample: int, metric: str) -> str:
        """The threshold of one value in words, where the protocol chose it on other data; empty otherwise."""
        return ""

    def outcome(self, sample: int, metric: str, k: int) -> Outcome:
        """The reason why one value is 0 or absent; `SCORED` where there is none."""
        if self.empty_truth[sample]:
            return Outcome.NO_TRUTH
        if self.thresholded(metric) and self.empty_prediction[sample, k]:
            return Outcome.EMPTY
        return Outcome.ONE_SIDED if np.isnan(self[metric][sample]).any() else Outcome.SCORED

    def facts(self, bootstrap: Bootstrap) -> Facts:
        """Samples without truth in the scored region, and empty predictions. `bootstrap` makes intervals, if any."""
        not_scored = self.by_category(self.empty_truth)
        shown = [f"{threshold:g}" for threshold in self.options.thresholds]
        empty = dict(zip(shown, self.empty_prediction.sum(axis=0).tolist(), strict=True))
        counted = "skipped" if self.options.compatible else "misses"
        listed = ", ".join(f"{n} at {threshold}" for threshold, n in empty.items() if n)
        remarks = [
            f"Not scored (no truth in the scored region): {sum(not_scored.values())}.",
            f"Empty predictions, {counted}: {listed or 'none'}.",
        ]
        content: JsonObject = {"not_scored": json_of(not_scored), "empty_predictions": json_of(empty)}
        content |= {"empty_predictions_are": counted}
        content |= {"thresholds": list(self.options.thresholds), "margin": self.options.margin}
        return Facts(content, remarks)


def score_sample(
    mask: Shaped[np.ndarray, "S S"], heatmap: Float[np.ndarray, "S S"], options: ProtocolOptions
) -> SampleScore:
    """Score one finite heat map against one mask (0 outside; inside, how many boxes cover the pixel).

    IoU, Dice and CNR are taken on the map scaled to [-1, 1] within the scored region. The pointing game takes the
    maximum of the raw map in that region.
    """
    boxes, raw = np.asarray(mask), np.asarray(heatmap, np.float64)
    pair = Comparison(options.scored_region(boxes), options.scored_region(raw), options)
    scored = [metric for metric in METRICS if metric.published or not options.compatible]
    values = {metric.name: np.asarray(metric.function(pair)) for metric in scored if metric.function is not None}
    return SampleScore(values, pair.overlap.predicted, int(np.count_nonzero(pair.inside)))


def check_map(truth: Truth, heatmap: np.ndarray) -> np.ndarray:
    """The map as an array. Raises `UserError` unless it is a finite square of real numbers, of its mask's shape."""
    heatmap = np.asarray(heatmap)
    if heatmap.shape != truth.mask.shape or heatmap.ndim != 2 or heatmap.shape[0] != heatmap.shape[1]:
        raise UserError(
            f"heat map of sample {truth.id} has shape {heatmap.shape}, its mask {truth.mask.shape}: "
            "both must be the same square"
        )
    if heatmap.dtype.kind not in "fiub":
        raise UserError(f"heat map of sample {truth.id} has type {heatmap.dtype}: it must hold real numbers")
    wrong = heatmap.size - np.count_nonzero(np.isfinite(heatmap))
    if wrong:
        raise UserError(
            f"heat map of sample {truth.id} holds {wrong} NaN or infinite values of {heatmap.size}: it cannot be scored"
        )
    return heatmap


def score(truths: Sequence[Truth], heatmaps: Iterable[np.ndarray], options: ProtocolOptions | None = None) -> Scores:
    """Score one heat map per truth, in the same order. Maps may come from a generator: one is held at a time.

    Raises `UserError` for a map that is not a finite square of its mask's shape, `ValueError` for one too many or few.
    """
    options = options or ProtocolOptions()
    if not truths:
        raise UserError("there is no sample to score: the truth holds none")
    samples = [
        score_sample(truth.mask, check_map(truth, heatmap), options)
        for truth, heatmap in zip(truths, heatmaps, strict=True)
    ]
    return Scores(
        truths=tuple(truths),
        options=options,
        values={name: np.array([sample[name] for sample in samples]) for name in samples[0].values},
        predicted_pixels=np.array([sample.predicted_pixels for sample in samples]),
        truth_pixels=np.array([sample.truth_pixels for sample in samples]),
    )
