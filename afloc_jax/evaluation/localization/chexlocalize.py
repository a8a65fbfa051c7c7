"""The CheXlocalize protocol: thresholds of masks and of confidences are chosen on validation data for each class.

Source: Saporta et al., Nature Machine Intelligence 2022 (doi 10.1038/s42256-022-00536-x), and the documentation of its
code; the confidence is that of the AFLoc release:

1. On validation, per class, the mask threshold of the map scaled to [0, 1] is the one with the best mIoU of positives.
2. On validation, per class, the confidence threshold is the one with the best mIoU over all samples; below it nothing
   is predicted. Confidence is the maximum of the raw map, clipped to [0, 2] and halved.
3. On test, mIoU over all samples (a true negative has no IoU), mIoU over true positives, and the hit rate: whether the
   map's maximum is inside the mask.

    case                                    default                               compatible
    pixels that are compared                the square's; `at` the original's     the original's
    highest mask threshold                  0.7                                   0.8
    masks that choose the confidence        those at the chosen mask threshold    Otsu's
    mIoU that chooses the confidence        as it is; a confidence that equals    rounded to 3 decimals; a confidence
                                            the threshold is enough               must exceed the threshold there
    class without a validation positive     the thresholds of all classes         the first of each list
    shared maximum in the hit rate          the share inside                      the first pixel, row by row
    constant map on validation positives    a miss                                skipped for the mask threshold
    masks on the square                     half covered; small ones stay         rounded; small ones may vanish
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from afloc_jax.errors import UserError
from afloc_jax.evaluation.files import json_of
from afloc_jax.evaluation.localization.metrics import overlaps, pointing_game
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.presence import PresenceScores, PresenceTable, presence_table, presence_values
from afloc_jax.evaluation.localization.protocol import LocalizationProtocol, Samples
from afloc_jax.evaluation.localization.scores import Facts, Outcome, check_map, check_values
from afloc_jax.evaluation.sharing import gathered
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.evaluation.statistics.interval import mean_of_finite
from afloc_jax.evaluation.task import JsonObject
from afloc_jax.evaluation.truth.sample import Truth
from afloc_jax.heatmaps import normalise

MASK_THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
OFFICIAL_MASK_THRESHOLDS = (*MASK_THRESHOLDS, 0.8)  # those of compatible scores
CONFIDENCE_THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
CONFIDENCE_RANGE = (0.0, 2.0)  # range to which the maximum of the raw map is clipped, scaled to [0, 1]


@dataclass(frozen=True)
class OperatingPoint:
    """The thresholds of one class, and its scores on validation data, which are NaN without a validation sample."""

    mask_threshold: float
    confidence_threshold: float
    mask_miou: float  # over validation positives, with the mask threshold only
    miou: float  # over all validation samples, with both thresholds; compatible: of Otsu's masks
    positives: int
    chosen_on: str = "this class"


@dataclass(frozen=True)
class Measured:
    """The scores of n samples at K mask thresholds, from which thresholds are chosen.

    `otsu_iou` is the IoU of Otsu's masks; NaN if scores are not compatible, which do not need it.
    """

    truths: tuple[Truth, ...] = field(repr=False)
    confidence: Float[np.ndarray, " n"]
    iou: Float[np.ndarray, "n K"]
    dice: Float[np.ndarray, "n K"]
    hit: Float[np.ndarray, " n"]
    predicted_pixels: Int[np.ndarray, "n K"]
    truth_pixels: Int[np.ndarray, " n"]
    map_pixels: Int[np.ndarray, " n"]
    otsu_iou: Float[np.ndarray, " n"]
    saturated: Bool[np.ndarray, " n"]

    @property
    def category(self) -> np.ndarray:
        """The class of each sample [n]."""
        return np.array([truth.category for truth in self.truths])


def confidence_of(heatmap: Float[np.ndarray, "H W"]) -> float:
    """The confidence of a map, in [0, 1]: its maximum, clipped to [0, 2] and halved."""
    low, high = CONFIDENCE_RANGE
    return (min(max(float(np.max(heatmap)), low), high) - low) / (high - low)


def otsu_mask(scaled: Float[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The pixels above Otsu's threshold of a map scaled to [0, 1], in 8 bits (fractions of a level are cut off).

    A constant map has no pixel above it.

    >>> otsu_mask(np.array([[0.0, 0.1, 0.2], [0.8, 0.9, 1.0]])).astype(int)
    array([[0, 0, 0],
           [1, 1, 1]])
    """
    levels = (255 * scaled).astype(np.uint8)
    return np.asarray(levels > cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0])


def _placed(
    truth: Truth, heatmap: np.ndarray, original: bool
) -> tuple[Float[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
    """The raw map and the mask in the pixels that are compared. Those of the original are many: float32 is enough."""
    if not original:
        return np.asarray(check_map(truth, heatmap), np.float64), truth.mask > 0
    inside = truth.original_mask(np.shape(heatmap))
    if np.shape(heatmap) != inside.shape:
        raise UserError(f"heat map of sample {truth.id} has shape {np.shape(heatmap)}, its mask {inside.shape}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused
        return np.asarray(check_values(truth, check_values(truth, heatmap).astype(np.float32))), inside


def _measure_one(
    truth: Truth, heatmap: np.ndarray, options: ProtocolOptions
) -> tuple[float, np.ndarray, np.ndarray, float, np.ndarray, int, int, float, bool]:
    """The scores of one sample in the order of `Measured`."""
    raw, inside = _placed(truth, heatmap, options.at == "original")
    scaled = np.asarray(normalise(raw))
    iou, dice, predicted = overlaps(scaled, inside, _mask_thresholds(options))
    otsu_iou = float(overlaps(otsu_mask(scaled), inside, [0]).iou[0]) if options.compatible else float("nan")
    first = options.compatible and inside.any()
    hit = float(inside.flat[np.argmax(raw)]) if first else pointing_game(raw, inside)
    saturated = bool(raw.max() > CONFIDENCE_RANGE[1])
    return confidence_of(raw), iou, dice, hit, predicted, int(inside.sum()), raw.size, otsu_iou, saturated


def measure(samples: Samples, options: ProtocolOptions) -> Measured:
    """Measures all samples, reading every map once. Raises UserError for a map that cannot be scored."""
    pairs = zip(samples.truths, samples.heatmaps, strict=True)
    rows = gathered([None if heatmap is None else _measure_one(truth, heatmap, options) for truth, heatmap in pairs])
    if not rows:
        raise UserError("there is no sample to score: the truth has none")
    return Measured(tuple(samples.truths), *(np.array(column) for column in zip(*rows, strict=True)))


def _mask_thresholds(options: ProtocolOptions) -> tuple[float, ...]:
    return OFFICIAL_MASK_THRESHOLDS if options.compatible else MASK_THRESHOLDS


def _gated(
    iou: Float[np.ndarray, " n"], accepted: Bool[np.ndarray, " n"], truth_pixels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The IoU [n] if rejected samples predict nothing: 0 for positives, NaN for negatives."""
    return np.where(accepted, iou, np.where(truth_pixels > 0, 0.0, np.nan))


def _best(values: Float[np.ndarray, " K"]) -> int:
    """The index of the first of the largest values; 0 if all are NaN."""
    return int(np.argmax(np.nan_to_num(values, nan=-1.0)))


def _choose(measured: Measured, rows: np.ndarray, options: ProtocolOptions) -> OperatingPoint:
    """The operating point chosen on the samples `rows`; of equally good thresholds the lowest."""
    truth = measured.truth_pixels[rows]
    positive = truth > 0
    iou = measured.iou[rows]
    if options.compatible:  # empty predictions are left out
        iou_of_positives = np.where(measured.predicted_pixels[rows] > 0, iou, np.nan)[positive]
    else:
        iou_of_positives = iou[positive]
    by_mask = mean_of_finite(iou_of_positives, axis=0)
    k = _best(by_mask)
    confidence = measured.confidence[rows]
    # The official code chooses by strict comparisons and rounded means, and cuts what is below the chosen threshold.
    exceeds, iou_of_all = (np.greater, measured.otsu_iou[rows]) if options.compatible else (np.greater_equal, iou[:, k])
    gated = [_gated(iou_of_all, exceeds(confidence, c), truth) for c in CONFIDENCE_THRESHOLDS]
    by_confidence = np.array([mean_of_finite(values, axis=0) for values in gated])
    c = _best(by_confidence.round(3) if options.compatible else by_confidence)
    return OperatingPoint(
        _mask_thresholds(options)[k],
        CONFIDENCE_THRESHOLDS[c],
        float(by_mask[k]),
        float(by_confidence[c]),
        int(positive.sum()),
    )


def tune(validation: Measured, categories: Sequence[str], options: ProtocolOptions) -> dict[str, OperatingPoint]:
    """The operating point of every class. Raises UserError if the validation data have no finding at all.

    A class without a validation positive gets that of all classes, in compatible scores the first of each list.
    """
    if not (validation.truth_pixels > 0).any():
        raise UserError("the validation data show no finding, so no threshold can be chosen on them")
    everything = np.arange(len(validation.truths))
    shared = _choose(validation, everything, options)
    points = {}
    for name in categories:
        point = _choose(validation, np.flatnonzero(validation.category == name), options)
        if not point.positives:
            nan = float("nan")
            first = (OFFICIAL_MASK_THRESHOLDS[0], CONFIDENCE_THRESHOLDS[0])
            both = first if options.compatible else (shared.mask_threshold, shared.confidence_threshold)
            point = OperatingPoint(*both, nan, nan, 0, "first of each list" if options.compatible else "all classes")
        points[name] = point
    return points


@dataclass(frozen=True)
class OperatingScores(PresenceScores):
    """Scores at one operating point per class. Areas are fractions of the map."""

    points: Mapping[str, OperatingPoint] = field(kw_only=True)
    confidence: Float[np.ndarray, " n"] = field(repr=False, kw_only=True)
    accepted: Bool[np.ndarray, " n"] = field(repr=False, kw_only=True)
    area: Float[np.ndarray, " n"] = field(repr=False, kw_only=True)
    ungated_area: Float[np.ndarray, " n"] = field(repr=False, kw_only=True)
    saturated: int = field(kw_only=True)

    def chosen_threshold(self, sample: int, metric: str) -> str:
        """The mask threshold of the sample's class as text; empty for the hit rate, which has none."""
        value = self.points[self.truths[sample].category].mask_threshold
        return "" if metric == "pointing" else f"mask threshold {value:g}"

    def outcome(self, sample: int, metric: str, k: int) -> Outcome:
        """The outcome, which also says whether the prediction is empty because of a low confidence."""
        outcome = super().outcome(sample, metric, k)
        return Outcome.REJECTED if outcome is Outcome.EMPTY and not self.accepted[sample] else outcome

    def facts(self, bootstrap: Bootstrap) -> Facts:
        """Outcomes, operating points and presence (AUC, sensitivity, predicted area on negatives)."""
        presence = presence_table(
            self.confidence,
            self.present,
            self.accepted,
            self.area,
            self.ungated_area,
            self.category_index,
            self.categories,
            bootstrap,
            bootstrap.units(self.patients, self.images).clusters,
        )
        outcomes = super().facts(bootstrap)
        about: JsonObject = {"operating_points": json_of(self.points), "confidence_saturated": self.saturated}
        about |= {"at": self.options.at}
        about |= {"presence": presence.to_json()}
        where = "of the original images" if self.options.at == "original" else "of the padded square"
        remarks = [*outcomes.remarks, f"Maps and masks are compared in pixels {where}."]
        return Facts({**outcomes.json, **about}, [*remarks, *self._remarks(presence)])

    def _remarks(self, presence: PresenceTable) -> list[str]:
        lines = ["", "Thresholds, chosen on validation data, and presence:", ""]
        lines += ["| | mask | confidence | chosen on | AUC | sensitivity | specificity | area on negatives | uncut |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for name, point in self.points.items():
            row = presence.per_category[name]
            rates = (row.sensitivity, row.specificity, row.false_positive_area, row.false_positive_area_ungated)
            cells = [name.replace("|", "/"), f"{point.mask_threshold:g}", f"{point.confidence_threshold:g}"]
            cells += [point.chosen_on, str(row.auc), *("-" if rate is None else f"{rate:.3f}" for rate in rates)]
            lines.append(f"| {' | '.join(cells)} |")
        if self.saturated:
            lines += ["", f"{self.saturated} maps exceed the range of the confidence and count as 1."]
        return lines


def apply(measured: Measured, points: Mapping[str, OperatingPoint], options: ProtocolOptions) -> OperatingScores:
    """Scores of the samples at the operating point of their class."""
    at = [points[truth.category] for truth in measured.truths]
    rows = np.arange(len(at))
    k = np.array([_mask_thresholds(options).index(point.mask_threshold) for point in at])
    accepted = measured.confidence >= np.array([point.confidence_threshold for point in at])
    predicted = np.where(accepted, measured.predicted_pixels[rows, k], 0)
    iou, dice = (_gated(table[rows, k], accepted, measured.truth_pixels) for table in (measured.iou, measured.dice))
    true_positive = (measured.truth_pixels > 0) & (predicted > 0)
    return OperatingScores(
        truths=measured.truths,
        options=options,
        values=presence_values(iou, dice, measured.hit, true_positive),
        predicted_pixels=predicted[:, None],
        truth_pixels=measured.truth_pixels,
        points=points,
        confidence=measured.confidence,
        accepted=accepted,
        area=predicted / measured.map_pixels,
        ungated_area=measured.predicted_pixels[rows, k] / measured.map_pixels,
        saturated=int(measured.saturated.sum()),
    )


def _scores(samples: Samples, options: ProtocolOptions, validation: Samples | None) -> OperatingScores:
    assert validation is not None  # checked by LocalizationProtocol.score
    categories = sorted({truth.category for truth in samples.truths})
    points = tune(measure(validation, options), categories, options)
    return apply(measure(samples, options), points, options)


OPTIONS = ProtocolOptions(margin=0, protocol="chexlocalize")  # the whole image; thresholds from validation data
PROTOCOL = LocalizationProtocol("chexlocalize", _scores, OPTIONS, tuned=True, negatives=True)
