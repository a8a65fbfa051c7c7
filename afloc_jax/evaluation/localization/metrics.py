"""The metrics of localisation, a row each: scores, tables, the page and the model card read this one table.

A new metric is a function of a `Comparison`, which is one heat map beside one place, and a row of `METRICS`.
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
    """Overlap of the thresholded map with the place, at each of K thresholds; 0/0 is NaN."""

    iou: Float[np.ndarray, " K"]
    dice: Float[np.ndarray, " K"]
    predicted: Int[np.ndarray, " K"]  # pixels


@dataclass(frozen=True)
class Comparison:
    """One heat map beside one place, both cut to the scored region.

    Attributes:
        boxes: how many boxes of the phrase cover the pixel; 0 is outside.
        raw: the map as it came.
        options: of the protocol.
    """

    boxes: Shaped[np.ndarray, "s s"]
    raw: Float[np.ndarray, "s s"]
    options: ProtocolOptions

    @cached_property
    def inside(self) -> Bool[np.ndarray, "s s"]:
        """Where the finding is."""
        return self.boxes > 0

    @cached_property
    def scaled(self) -> Float[np.ndarray, "s s"]:
        """The map scaled to [-1, 1]; a constant map, which prefers nothing, becomes -1."""
        return np.asarray(normalise(self.raw, -1.0, 1.0))

    @cached_property
    def overlap(self) -> Overlap:
        """At the protocol's thresholds."""
        return overlaps(self.scaled, self.inside, self.options.thresholds)

    def of_predictions(self, values: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
        """Values at each threshold; NaN without a truth, and in compatible scores where nothing is predicted."""
        scored = self.overlap.predicted > 0 if self.options.compatible else np.ones(len(values), bool)
        return np.where(scored & self.inside.any(), values, np.nan)


def overlaps(scaled: np.ndarray, inside: np.ndarray, thresholds: Sequence[float]) -> Overlap:
    """Overlap at every threshold, in one pass; a pixel is predicted where `scaled` is above (>)."""
    # How many thresholds lie below a pixel; a pixel is predicted at threshold k if that number exceeds k.
    passed = np.searchsorted(thresholds, scaled, side="left")
    bins = len(thresholds) + 1
    everywhere = np.bincount(passed.ravel(), minlength=bins)
    hits = np.bincount(passed[inside], minlength=bins)
    predicted, hit = (counts[::-1].cumsum()[::-1][1:] for counts in (everywhere, hits))
    truth = np.count_nonzero(inside)
    with np.errstate(invalid="ignore"):
        return Overlap(hit / (predicted + truth - hit), 2 * hit / (predicted + truth), predicted)


def contrast_to_noise(heatmap: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> float:
    """(mean inside - mean outside) / sqrt(variance inside + variance outside), signed; 0 if both variances are 0.

    A shift and a positive factor of the map change nothing. NaN without any pixel inside or outside.
    """
    within, without = heatmap[inside], heatmap[outside]
    if not (within.size and without.size):
        return float("nan")
    noise = np.sqrt(within.var() + without.var())
    return float((within.mean() - without.mean()) / noise) if noise > 0 else 0.0


def pointing_game(heatmap: np.ndarray, inside: np.ndarray) -> float:
    """1 if the map's maximum lies inside, 0 if not; NaN where nothing is inside.

    Where several pixels share the maximum, the share of them that lies inside: the chance of a random pick.
    """
    return float(inside[heatmap == heatmap.max()].mean()) if inside.any() else float("nan")


def _cnr(pair: Comparison) -> float:
    # The release leaves the pixels that several boxes cover out of the inside.
    inside = pair.boxes == 1 if pair.options.compatible else pair.inside
    return contrast_to_noise(pair.scaled, inside, ~pair.inside)


def stability(predicted: Int[np.ndarray, " K"]) -> float:
    """How little the predicted region changes from one threshold to the next: the mean IoU of neighbouring regions.

    The region at a higher threshold lies within that at a lower one, so their IoU is the ratio of their pixels. Pairs
    of empty regions are left out; NaN where no pair is left.
    """
    lower, higher = predicted[:-1], predicted[1:]
    return float(np.mean(higher[lower > 0] / lower[lower > 0])) if lower.any() else float("nan")


@dataclass(frozen=True)
class Metric:
    """A row of the table.

    Attributes:
        name: its key in files.
        title, about: for readers.
        function: its value from one comparison: an array [K] with one value per threshold, or a number; NaN is no
            score. None: a protocol computes it from all samples.
        published: whether compatible scores hold it.
        highest: the end of its scale on charts; None: from the data.
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
        "share of samples whose hottest pixel lies inside the truth",
        lambda p: pointing_game(p.raw, p.inside),
        highest=1.0,
    ),
    Metric(
        "stability",
        "Stability",
        "overlap of the map's regions at neighbouring thresholds: how little its outline hangs on the threshold",
        lambda p: stability(p.overlap.predicted) if p.inside.any() else float("nan"),
        published=False,
    ),
)
BY_NAME = {metric.name: metric for metric in METRICS}
LEADING = "pointing"  # stands first where people read
FOR_READERS = sorted(METRICS, key=lambda metric: metric.name != LEADING)
CARD = CardTable("Localisation without annotations, mean over categories", {m.name: m.name for m in FOR_READERS})
