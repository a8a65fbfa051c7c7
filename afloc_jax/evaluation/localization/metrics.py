"""The table of localisation metrics, which scores, tables, the page and the model card read.

A new metric is a function of a `Comparison` (one heat map and the mask of one sample) and a row of `METRICS`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.task import CardTable
from afloc_jax.heatmaps import normalise


class Overlap(NamedTuple):
    """The overlap of the thresholded map with the mask, at each of K thresholds; 0/0 is NaN."""

    iou: Float[np.ndarray, " K"]
    dice: Float[np.ndarray, " K"]
    predicted: Int[np.ndarray, " K"]  # number of predicted pixels


@dataclass(frozen=True)
class Comparison:
    """One heat map and the mask of one sample, both cut to the scored region.

    Attributes:
        boxes: the number of boxes of the phrase that cover each pixel; 0 is outside.
        raw: the un-normalised map.
        options: the options of the protocol.
    """

    boxes: Shaped[np.ndarray, "s s"]
    raw: Float[np.ndarray, "s s"]
    options: ProtocolOptions

    @cached_property
    def inside(self) -> Bool[np.ndarray, "s s"]:
        """The mask of the finding."""
        return self.boxes > 0

    @cached_property
    def scaled(self) -> Float[np.ndarray, "s s"]:
        """The map scaled to [-1, 1]; a constant map becomes -1."""
        return np.asarray(normalise(self.raw, -1.0, 1.0))

    @cached_property
    def overlap(self) -> Overlap:
        """The overlap at the protocol's thresholds."""
        return overlaps(self.scaled, self.inside, self.options.thresholds)

    def of_predictions(self, values: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
        """The values with NaN if there is no truth, and in compatible scores also where nothing is predicted."""
        scored = self.overlap.predicted > 0 if self.options.compatible else np.ones(len(values), bool)
        return np.where(scored & self.inside.any(), values, np.nan)


def overlaps(
    scaled: Shaped[np.ndarray, "h w"], inside: Bool[np.ndarray, "h w"], thresholds: Sequence[float]
) -> Overlap:
    """The overlap at all thresholds. Pixels with `scaled` above (>) a threshold are predicted.

    >>> scaled, inside = np.array([[0.9, 0.6], [0.2, -0.5]]), np.array([[True, False], [True, False]])
    >>> overlap = overlaps(scaled, inside, [0.0, 0.5])
    >>> overlap.predicted, overlap.iou.round(3), overlap.dice
    (array([3, 2]), array([0.667, 0.333]), array([0.8, 0.5]))
    """
    within = scaled[inside]
    predicted, hit = (np.array([np.count_nonzero(part > t) for t in thresholds]) for part in (scaled, within))
    truth = within.size
    with np.errstate(invalid="ignore"):
        return Overlap(hit / (predicted + truth - hit), 2 * hit / (predicted + truth), predicted)


def contrast_to_noise(
    heatmap: Float[np.ndarray, "s s"], inside: Bool[np.ndarray, "s s"], outside: Bool[np.ndarray, "s s"]
) -> float:
    """(mean inside - mean outside) / sqrt(variance inside + variance outside), signed; 0 if both variances are 0.

    It does not depend on an offset or a positive factor of the map. NaN if no pixel is inside, or none outside.
    """
    within, without = heatmap[inside], heatmap[outside]
    if not (within.size and without.size):
        return float("nan")
    noise = np.sqrt(within.var() + without.var())
    return float((within.mean() - without.mean()) / noise) if noise > 0 else 0.0


def pointing_game(heatmap: Float[np.ndarray, "h w"], inside: Bool[np.ndarray, "h w"]) -> float:
    """1 if the maximum of the map lies inside the mask, else 0; NaN if the mask is empty.

    If several pixels have the maximum, the result is the share of them that lies inside.

    >>> inside = np.array([[True, False], [True, False]])
    >>> pointing_game(np.array([[0.9, 0.6], [0.2, 0.0]]), inside), pointing_game(np.ones((2, 2)), inside)
    (1.0, 0.5)
    """
    return float(inside[heatmap == heatmap.max()].mean()) if inside.any() else float("nan")


def _cnr(pair: Comparison) -> float:
    # The release does not count pixels in several boxes as inside.
    inside = pair.boxes == 1 if pair.options.compatible else pair.inside
    return contrast_to_noise(pair.scaled, inside, ~pair.inside)


def stability(predicted: Int[np.ndarray, " K"]) -> float:
    """The mean IoU of the regions at neighbouring thresholds: near 1 if the outline hardly depends on the threshold.

    The region at a higher threshold lies within that at a lower one, so their IoU is the ratio of their pixels. Pairs
    of empty regions are left out; NaN if no pair is left.
    """
    lower, higher = predicted[:-1], predicted[1:]
    return float(np.mean(higher[lower > 0] / lower[lower > 0])) if lower.any() else float("nan")


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    Attributes:
        name: the key in files.
        title, about: the title and the explanation on the page.
        function: returns the value of one comparison: an array [K] with one value per threshold, or a number; NaN if
            there is no score. None if a protocol computes the metric from all samples.
        published: whether compatible scores have the metric.
        highest: the end of the scale on charts; None for the largest value.
    """

    name: str
    title: str
    about: str
    function: Callable[[Comparison], Float[np.ndarray, " K"] | float] | None = None
    published: bool = True
    highest: float | None = None


METRICS = (
    Metric("iou", "IoU", "overlap of the thresholded map with the truth", lambda p: p.of_predictions(p.overlap.iou)),
    Metric("iou_true_positive", "IoU, true positives", "overlap where both truth and prediction show the finding"),
    Metric("dice", "Dice", "the same overlap as an F-score", lambda p: p.of_predictions(p.overlap.dice)),
    Metric("cnr", "CNR", "contrast between inside and outside of the truth, in pooled standard deviations", _cnr),
    Metric(
        "pointing",
        "Pointing game",
        "share of samples whose maximum lies inside the truth",
        lambda p: pointing_game(p.raw, p.inside),
        highest=1.0,
    ),
    Metric(
        "stability",
        "Stability",
        "overlap of the map's regions at neighbouring thresholds: how little the outline depends on the threshold",
        lambda p: stability(p.overlap.predicted) if p.inside.any() else float("nan"),
        published=False,
    ),
    # The rest belongs to protocol generalised alone.
    Metric("f1", "F1", "F1 of boxes matched one to one at IoU 0.5; 1 if none is drawn and none belongs", highest=1.0),
    Metric("f1_exact", "F1 = 1", "share of prompts whose boxes are all right", highest=1.0),
    Metric("f1_present", "F1, with box", "F1 of prompts that have a box", highest=1.0),
    Metric("n_acc", "N-acc", "share of prompts without a box for which none is drawn", highest=1.0),
    Metric("t_acc", "T-acc", "share of prompts with a box for which one is drawn", highest=1.0),
)
BY_NAME = {metric.name: metric for metric in METRICS}
LEADING = "pointing"  # the metric that is shown first
FOR_READERS = sorted(METRICS, key=lambda metric: metric.name != LEADING)
CARD = CardTable(
    "Localisation without annotations, mean over categories",
    {m.name: m.title for m in FOR_READERS},
    {"location_prior": "location prior, no model", "prompt_prior": "prompt prior, no model"},
)
