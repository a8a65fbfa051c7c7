"""The AFLoc localisation protocol: IoU and Dice at five thresholds, CNR and the pointing game, sample by sample.

Source: the paper (Nature Biomedical Engineering 2026, doi 10.1038/s41551-025-01574-7) and the behaviour of its public
release. Where the release has a plain defect, `ProtocolOptions.compatible` reproduces it and the default mends it:

    case                          default                        compatible
    empty prediction              a miss: IoU and Dice are 0     skipped
    boxes of one phrase overlap   inside is inside               CNR ignores the overlap
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, Shaped

from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth import Truth
from afloc_jax.inference.heatmaps import normalise

METRICS = ("iou", "dice", "cnr", "pointing")
REFERENCE_SIZE = 224  # the side of the square that `margin` refers to


@dataclass(frozen=True)
class ProtocolOptions:
    """What the protocol leaves open.

    Attributes:
        thresholds: ascending, on the map scaled to [-1, 1]; a pixel is predicted where the map is above (>).
        margin: border left unscored, in pixels of a 224 x 224 map; scaled to the map's size. 0 scores all of it.
        compatible: reproduce the release, defects included (see the module's docstring).
    """

    thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    margin: int = 14
    compatible: bool = False

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

    `iou` and `dice` are NaN where a sample has no truth in the scored region and, in compatible mode, where the
    prediction is empty. `cnr` is NaN without any pixel inside or outside, `pointing` without truth.
    """

    truths: tuple[Truth, ...] = field(repr=False)
    options: ProtocolOptions
    iou: Float[np.ndarray, "n K"]
    dice: Float[np.ndarray, "n K"]
    cnr: Float[np.ndarray, " n"]
    pointing: Float[np.ndarray, " n"]
    predicted_pixels: Int[np.ndarray, "n K"]
    truth_pixels: Int[np.ndarray, " n"]

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of the categories, in alphabetical order."""
        return tuple(sorted({truth.category for truth in self.truths}))

    @property
    def category_index(self) -> Int[np.ndarray, " n"]:
        """The index into `categories` of each sample."""
        index = {name: position for position, name in enumerate(self.categories)}
        return np.array([index[truth.category] for truth in self.truths], int)

    @property
    def empty_truth(self) -> np.ndarray:
        """[n] bool: no truth in the scored region; such a sample has no score."""
        return self.truth_pixels == 0

    @property
    def empty_prediction(self) -> np.ndarray:
        """[n, K] bool: nothing predicted at this threshold, though there is truth to be found."""
        return (self.predicted_pixels == 0) & ~self.empty_truth[:, None]


def _overlaps(
    scaled: np.ndarray, inside: np.ndarray, thresholds: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IoU, Dice and predicted pixels, each [K]; 0/0 gives NaN."""
    # How many thresholds lie below a pixel; a pixel is predicted at threshold k if that number exceeds k.
    passed = np.searchsorted(thresholds, scaled, side="left")
    bins = len(thresholds) + 1
    everywhere = np.bincount(passed.ravel(), minlength=bins)
    hits = np.bincount(passed[inside], minlength=bins)
    predicted, hit = (counts[::-1].cumsum()[::-1][1:] for counts in (everywhere, hits))
    truth = np.count_nonzero(inside)
    with np.errstate(invalid="ignore"):
        return hit / (predicted + truth - hit), 2 * hit / (predicted + truth), predicted


def _contrast_to_noise(scaled: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> float:
    """(mean inside - mean outside) / sqrt(variance inside + variance outside), signed; 0 if both variances are 0."""
    within, without = scaled[inside], scaled[outside]
    if not (within.size and without.size):
        return float("nan")
    noise = np.sqrt(within.var() + without.var())
    return float((within.mean() - without.mean()) / noise) if noise > 0 else 0.0


def score_sample(
    mask: Shaped[np.ndarray, "S S"], heatmap: Float[np.ndarray, "S S"], options: ProtocolOptions
) -> SampleScore:
    """Score one finite heat map against one mask (0 outside; inside, how many boxes cover the pixel).

    IoU, Dice and CNR are taken on the map scaled to [-1, 1] within the scored region; a constant map, which prefers
    nothing, becomes -1. The pointing game takes the maximum of the raw map in that region: 1 if it lies in the mask, 0
    if not; where several pixels share the maximum, the share of them in the mask (the chance of a random pick).
    """
    mask = options.scored_region(np.asarray(mask))
    raw = options.scored_region(np.asarray(heatmap, np.float64))
    scaled = np.asarray(normalise(raw, -1.0, 1.0))
    inside = mask > 0
    truth_pixels = int(np.count_nonzero(inside))
    iou, dice, predicted = _overlaps(scaled, inside, options.thresholds)
    if truth_pixels == 0:
        iou, dice = np.full_like(iou, np.nan), np.full_like(dice, np.nan)
    elif options.compatible:
        iou, dice = np.where(predicted > 0, iou, np.nan), np.where(predicted > 0, dice, np.nan)
    return SampleScore(
        iou=iou,
        dice=dice,
        cnr=_contrast_to_noise(scaled, mask == 1 if options.compatible else inside, ~inside),
        pointing=float(inside[raw == raw.max()].mean()) if truth_pixels else float("nan"),
        predicted_pixels=predicted,
        truth_pixels=truth_pixels,
    )


def _check(truth: Truth, heatmap: np.ndarray) -> np.ndarray:
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
        score_sample(truth.mask, _check(truth, heatmap), options)
        for truth, heatmap in zip(truths, heatmaps, strict=True)
    ]
    return Scores(
        truths=tuple(truths),
        options=options,
        **{
            name: np.array([getattr(sample, name) for sample in samples])
            for name in ("iou", "dice", "cnr", "pointing", "predicted_pixels", "truth_pixels")
        },
    )
