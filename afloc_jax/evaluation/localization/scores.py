"""Scores of heat maps against the masks of their samples.

Source: the paper (Nature Biomedical Engineering 2026, doi 10.1038/s41551-025-01574-7) and the behaviour of its public
release. Where the release has a defect, `ProtocolOptions.compatible` reproduces it and the default corrects it:

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
from afloc_jax.evaluation.sharing import gathered
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.evaluation.task import JsonObject
from afloc_jax.evaluation.truth.sample import Truth


class Outcome(StrEnum):
    """The reason why the value of a sample is 0 or missing, or that its image does not show the finding.

    The texts are those of the column `note` of per_sample.csv.
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
    """The scores of one heat map by metric: [K] for metrics with thresholds, [] for others.

    NaN stands for a score that is undefined or skipped.
    """

    values: Mapping[str, np.ndarray]
    predicted_pixels: Int[np.ndarray, " K"]
    truth_pixels: int

    def __getitem__(self, metric: str) -> np.ndarray:
        return self.values[metric]


@dataclass(frozen=True)
class Facts:
    """The results of a protocol beside its metrics: keys of summary.json, and the same as lines of summary.md."""

    json: JsonObject
    remarks: list[str]


@dataclass(frozen=True)
class Scores:
    """The scores of all samples, in the order of the truths. K is the number of thresholds.

    `values` maps the name of a metric to its scores, [n, K] for metrics with thresholds and [n] for others. NaN stands
    for no score: no truth in the scored region, in compatible mode also an empty prediction, and for CNR no pixel
    inside or none outside. Protocols with further results derive from this class.
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
        """The mean IoU over thresholds, by which samples are ranked. NaN if a threshold has no score."""
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
        """Whether nothing is predicted at a threshold, although there is truth."""
        return np.asarray((self.predicted_pixels == 0) & ~self.empty_truth[:, None])

    @property
    def patients(self) -> list[str]:
        """The patient of each sample; empty where unknown."""
        return [truth.patient for truth in self.truths]

    @property
    def images(self) -> list[str]:
        """The image of each sample; its id where the truth names no image."""
        return [truth.image or truth.id for truth in self.truths]

    def by_category(self, chosen: Bool[np.ndarray, " n"]) -> dict[str, int]:
        """The number of chosen samples in each category."""
        counts = np.bincount(self.category_index[chosen], minlength=len(self.categories))
        return dict(zip(self.categories, counts.tolist(), strict=True))

    def on(self, truths: Sequence[Truth]) -> "Scores":
        """The scores on `truths`: these samples, then further ones without the finding, on which nothing is predicted.

        A negative on which nothing is predicted has no score.
        """
        more = len(truths) - len(self.truths)
        if not more:
            return self
        return Scores(
            tuple(truths),
            self.options,
            {name: _longer(values, more, np.nan) for name, values in self.values.items()},
            _longer(self.predicted_pixels, more, 0),
            _longer(self.truth_pixels, more, 0),
        )

    def thresholded(self, metric: str) -> bool:
        """Whether a metric has one value per threshold."""
        return self[metric].ndim == 2

    def threshold(self, metric: str, k: int) -> str:
        """The threshold of one value as text; empty for a metric without thresholds."""
        return f"{self.options.thresholds[k]:g}" if self.thresholded(metric) else ""

    def chosen_threshold(self, sample: int, metric: str) -> str:
        """The threshold of one value as text, if the protocol chose it on other data; else empty."""
        return ""

    def outcome(self, sample: int, metric: str, k: int) -> Outcome:
        """The reason why one value is 0 or missing; `SCORED` if there is none."""
        if self.empty_truth[sample]:
            return Outcome.NO_TRUTH
        if self.thresholded(metric) and self.empty_prediction[sample, k]:
            return Outcome.EMPTY
        return Outcome.ONE_SIDED if np.isnan(self[metric][sample]).any() else Outcome.SCORED

    def facts(self, bootstrap: Bootstrap) -> Facts:
        """The numbers of samples without truth and of empty predictions. `bootstrap` is for intervals of subclasses."""
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


def _longer(values: Shaped[np.ndarray, "n *K"], more: int, value: float) -> Shaped[np.ndarray, "m *K"]:
    """The values with `more` rows of `value` after them."""
    return np.pad(values, [(0, more)] + [(0, 0)] * (values.ndim - 1), constant_values=value)


def score_sample(
    mask: Shaped[np.ndarray, "S S"], heatmap: Float[np.ndarray, "S S"], options: ProtocolOptions
) -> SampleScore:
    """The scores of one finite heat map against one mask, whose values are the number of boxes that cover each pixel.

    IoU, Dice and CNR are computed on the map scaled to [-1, 1] within the scored region. The pointing game takes the
    maximum of the raw map in that region.
    """
    boxes, raw = np.asarray(mask), np.asarray(heatmap, np.float64)
    pair = Comparison(options.scored_region(boxes), options.scored_region(raw), options)
    scored = [metric for metric in METRICS if metric.published or not options.compatible]
    values = {metric.name: np.asarray(metric.function(pair)) for metric in scored if metric.function is not None}
    return SampleScore(values, pair.overlap.predicted, int(np.count_nonzero(pair.inside)))


def check_map(truth: Truth, heatmap: np.ndarray) -> Shaped[np.ndarray, "S S"]:
    """The map as an array. Raises UserError unless it is a finite square of real numbers of its mask's shape."""
    heatmap = np.asarray(heatmap)
    if heatmap.shape != truth.mask.shape or heatmap.ndim != 2 or heatmap.shape[0] != heatmap.shape[1]:
        raise UserError(
            f"heat map of sample {truth.id} has shape {heatmap.shape}, its mask {truth.mask.shape}: "
            "both must be the same square"
        )
    return check_values(truth, heatmap)


def check_values(truth: Truth, heatmap: Shaped[np.ndarray, "H W"]) -> Shaped[np.ndarray, "H W"]:
    """The map. Raises UserError unless it holds finite real numbers."""
    if heatmap.dtype.kind not in "fiub":
        raise UserError(f"heat map of sample {truth.id} has type {heatmap.dtype}: it must hold real numbers")
    wrong = heatmap.size - np.count_nonzero(np.isfinite(heatmap))
    if wrong:
        raise UserError(
            f"heat map of sample {truth.id} holds {wrong} NaN or infinite values of {heatmap.size}: it cannot be scored"
        )
    return heatmap


def score(
    truths: Sequence[Truth], heatmaps: Iterable[np.ndarray | None], options: ProtocolOptions | None = None
) -> Scores:
    """The scores of one heat map per truth, in the same order. Maps may come from a generator and are read one by one.

    None stands for the map of a sample that another process scores.

    Raises UserError for a map that is not a finite square of its mask's shape, ValueError if the numbers differ.
    """
    options = options or ProtocolOptions()
    if not truths:
        raise UserError("there is no sample to score: the truth has none")
    own = [
        None if heatmap is None else score_sample(truth.mask, check_map(truth, heatmap), options)
        for truth, heatmap in zip(truths, heatmaps, strict=True)
    ]
    samples = gathered(own)
    return Scores(
        truths=tuple(truths),
        options=options,
        values={name: np.array([sample[name] for sample in samples]) for name in samples[0].values},
        predicted_pixels=np.array([sample.predicted_pixels for sample in samples]),
        truth_pixels=np.array([sample.truth_pixels for sample in samples]),
    )
