"""Scores of one heat map against one mask (IoU and Dice at thresholds, CNR, the pointing game), and of many.

Source: the paper (Nature Biomedical Engineering 2026, doi 10.1038/s41551-025-01574-7) and the behaviour of its public
release. Where the release has a plain defect, `ProtocolOptions.compatible` reproduces it and the default mends it:

    case                          default                        compatible
    empty prediction              a miss: IoU and Dice are 0     skipped
    boxes of one phrase overlap   inside is inside               CNR ignores the overlap
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from afloc_jax.errors import UserError
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.evaluation.truth.sample import Truth
from afloc_jax.inference.heatmaps import normalise

METRICS = ("iou", "dice", "cnr", "pointing")
REFERENCE_SIZE = 224  # the side of the square that `margin` refers to


@dataclass(frozen=True)
class ProtocolOptions:
    """What a protocol leaves open.

    Attributes:
        thresholds: ascending, on the map scaled to [-1, 1]; a pixel is predicted where the map is above (>).
        margin: border left unscored, in pixels of a 224 x 224 map; scaled to the map's size. 0 scores all of it.
        compatible: reproduce the release, defects included (see the module's docstring).
        protocol: name of the protocol, for tables.
    """

    thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    margin: int = 14
    compatible: bool = False
    protocol: str = "afloc"

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.thresholds, self.thresholds[1:], strict=False))
        if not (self.thresholds and ascending and self.thresholds[0] >= -1 and self.thresholds[-1] <= 1):
            raise ValueError(f"thresholds are {self.thresholds}; they must ascend within [-1, 1], at least one of them")
        if not 0 <= self.margin < REFERENCE_SIZE // 2:
            raise ValueError(f"margin is {self.margin}; it must be in [0, {REFERENCE_SIZE // 2}) pixels")

    def scored_region(self, array: Shaped[np.ndarray, "S S"]) -> Shaped[np.ndarray, "s s"]:
        """The central part of a square that is scored."""
        size = array.shape[0]
        margin = round(self.margin * size / REFERENCE_SIZE)
        return array[margin : size - margin, margin : size - margin]


@dataclass(frozen=True)
class SampleScore:
    """Scores of one heat map against one mask; NaN where a score is not defined or was skipped."""

    iou: Float[np.ndarray, " K"]
    dice: Float[np.ndarray, " K"]
    cnr: float
    pointing: float
    predicted_pixels: Int[np.ndarray, " K"]
    truth_pixels: int


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
        return self["iou"].reshape(len(self.truths), -1).mean(axis=1)

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
    def empty_truth(self) -> np.ndarray:
        """[n] bool: no truth in the scored region; such a sample has no score."""
        return self.truth_pixels == 0

    @cached_property
    def empty_prediction(self) -> np.ndarray:
        """[n, K] bool: nothing predicted at this threshold, though there is truth to be found."""
        return (self.predicted_pixels == 0) & ~self.empty_truth[:, None]

    def threshold(self, sample: int, metric: str, k: int) -> str:
        """The threshold of one value, as tables show it; empty for a metric without."""
        return f"{self.options.thresholds[k]:g}" if self[metric].ndim == 2 else ""

    def chosen_threshold(self, sample: int, metric: str) -> str:
        """The threshold of one value in words, where the protocol chose it on other data; empty otherwise."""
        return ""

    def note(self, sample: int, metric: str, k: int) -> str:
        """Why one value is 0 or absent, where that needs a word."""
        if self.empty_truth[sample]:
            return "no truth in the scored region"
        if self[metric].ndim == 2 and self.empty_prediction[sample, k]:
            return "empty prediction"
        return "nothing inside or nothing outside" if np.isnan(self[metric][sample]).any() else ""

    @property
    def patients(self) -> list[str]:
        """The patient of each sample; empty where unknown."""
        return [truth.patient for truth in self.truths]

    def facts(self, bootstrap: Bootstrap) -> dict[str, Any]:
        """What the summary says of this protocol beside its metrics; plain numbers. `bootstrap`: of their intervals."""
        unscored = np.bincount(self.category_index[self.empty_truth], minlength=len(self.categories))
        return {
            "not_scored": dict(zip(self.categories, unscored.tolist(), strict=True)),
            "empty_predictions": {
                f"{threshold:g}": int(self.empty_prediction[:, k].sum())
                for k, threshold in enumerate(self.options.thresholds)
            },
            "empty_predictions_are": "skipped" if self.options.compatible else "misses",
            "thresholds": list(self.options.thresholds),
            "margin": self.options.margin,
        }


def overlaps(
    scaled: np.ndarray, inside: np.ndarray, thresholds: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IoU, Dice and predicted pixels, each [K]; 0/0 gives NaN. A pixel is predicted where `scaled` is above (>)."""
    # How many thresholds lie below a pixel; a pixel is predicted at threshold k if that number exceeds k.
    passed = np.searchsorted(thresholds, scaled, side="left")
    bins = len(thresholds) + 1
    everywhere = np.bincount(passed.ravel(), minlength=bins)
    hits = np.bincount(passed[inside], minlength=bins)
    predicted, hit = (counts[::-1].cumsum()[::-1][1:] for counts in (everywhere, hits))
    truth = np.count_nonzero(inside)
    with np.errstate(invalid="ignore"):
        return hit / (predicted + truth - hit), 2 * hit / (predicted + truth), predicted


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


def score_sample(
    mask: Shaped[np.ndarray, "S S"], heatmap: Float[np.ndarray, "S S"], options: ProtocolOptions
) -> SampleScore:
    """Score one finite heat map against one mask (0 outside; inside, how many boxes cover the pixel).

    IoU, Dice and CNR are taken on the map scaled to [-1, 1] within the scored region; a constant map, which prefers
    nothing, becomes -1. The pointing game takes the maximum of the raw map in that region.
    """
    mask = options.scored_region(np.asarray(mask))
    raw = options.scored_region(np.asarray(heatmap, np.float64))
    scaled = np.asarray(normalise(raw, -1.0, 1.0))
    inside = mask > 0
    truth_pixels = int(np.count_nonzero(inside))
    iou, dice, predicted = overlaps(scaled, inside, options.thresholds)
    if truth_pixels == 0:
        iou, dice = np.full_like(iou, np.nan), np.full_like(dice, np.nan)
    elif options.compatible:
        iou, dice = np.where(predicted > 0, iou, np.nan), np.where(predicted > 0, dice, np.nan)
    return SampleScore(
        iou=iou,
        dice=dice,
        cnr=contrast_to_noise(scaled, mask == 1 if options.compatible else inside, ~inside),
        pointing=pointing_game(raw, inside),
        predicted_pixels=predicted,
        truth_pixels=truth_pixels,
    )


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

    def column(name: str) -> np.ndarray:
        return np.array([getattr(sample, name) for sample in samples])

    return Scores(
        truths=tuple(truths),
        options=options,
        values={name: column(name) for name in METRICS},
        predicted_pixels=column("predicted_pixels"),
        truth_pixels=column("truth_pixels"),
    )
