"""Generalised grounding: a prompt has no box, one or several, and so has what is drawn for it.

Source: Zhang, Chandra and Nicolson, "Generalised Medical Phrase Grounding" (MedGrounder, arXiv:2512.01085), whose
measures are those of generalised referring expressions (He et al., GREC, arXiv:2308.16182). For one prompt, with TP
the largest number of pairs of a drawn and an annotated box with an IoU of at least 0.5 in which no box occurs twice, P
the drawn boxes and T the annotated ones:

    F1 = 2 TP / (P + T)        1 where neither has a box
    exact                      share of prompts with F1 = 1
    N-acc                      share of prompts without annotated box for which none is drawn
    T-acc                      share of prompts with an annotated box for which at least one is drawn

Boxes surround the connected regions in which the map, scaled to [-1, 1], exceeds one threshold: the one of
`THRESHOLDS` with the best F1 on validation data, mean over categories (the lowest of equally good ones). A constant map
has no box; so has a prompt that is judged absent (`Model.maps_and_presence`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from afloc_jax.errors import UserError
from afloc_jax.evaluation.files import json_of
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.protocol import LocalizationProtocol, Samples
from afloc_jax.evaluation.localization.scores import Facts, Outcome, Scores, check_map
from afloc_jax.evaluation.sharing import gathered
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.evaluation.task import JsonObject
from afloc_jax.evaluation.truth.sample import Truth
from afloc_jax.heatmaps import boxes_from_map, normalise

LEAST_IOU = 0.5
THRESHOLDS = tuple(k / 10 for k in range(-9, 10))


def matched(drawn: Float[np.ndarray, "P 4"], annotated: Float[np.ndarray, "T 4"]) -> int:
    """The largest number of pairs with an IoU of at least `LEAST_IOU` in which no box occurs twice.

    >>> matched(np.array([[0.0, 0, 10, 10], [0, 0, 10, 9]]), np.array([[0.0, 0, 10, 10]]))
    1
    """
    if not (len(drawn) and len(annotated)):
        return 0
    from scipy.optimize import linear_sum_assignment  # its import takes a tenth of a second

    fits = box_iou(drawn, annotated) >= LEAST_IOU
    return int(fits[linear_sum_assignment(fits, maximize=True)].sum())


def box_iou(one: Float[np.ndarray, "P 4"], other: Float[np.ndarray, "T 4"]) -> Float[np.ndarray, "P T"]:
    """The IoU of all pairs of boxes x, y, width, height."""
    a, b = one[:, None], other[None]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum((a[..., :2] + a[..., 2:]), (b[..., :2] + b[..., 2:]))
    common = np.prod(np.clip(high - low, 0, None), axis=-1)
    return np.asarray(common / (a[..., 2] * a[..., 3] + b[..., 2] * b[..., 3] - common))


@dataclass(frozen=True)
class Counts:
    """The numbers of drawn, annotated and matched boxes of n prompts, and the IoU of all boxes of a prompt together."""

    truths: tuple[Truth, ...] = field(repr=False)
    drawn: Int[np.ndarray, " n"]
    annotated: Int[np.ndarray, " n"]
    matched: Int[np.ndarray, " n"]
    overlap: Float[np.ndarray, " n"]

    @property
    def f1(self) -> Float[np.ndarray, " n"]:
        """The F1 of each prompt."""
        both = self.drawn + self.annotated
        return np.where(both > 0, 2 * self.matched / np.maximum(both, 1), 1.0)


def count(truth: Truth, drawn: Float[np.ndarray, "P 4"]) -> tuple[int, int, int, float]:
    """The row of one prompt in `Counts`, for boxes in pixels of the square."""
    annotated = truth.drawn_boxes
    side = truth.mask.shape[0]
    shown, inside = _pixels(drawn, side), _pixels(annotated, side)
    union = np.count_nonzero(shown | inside)
    overlap = np.count_nonzero(shown & inside) / union if union else float("nan")
    return len(drawn), len(annotated), matched(drawn, annotated), overlap


def _pixels(boxes: Float[np.ndarray, "K 4"], side: int) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    for x, y, width, height in boxes:
        left, top, right, bottom = np.clip(np.rint([x, y, x + width, y + height]), 0, side).astype(int)
        mask[top:bottom, left:right] = True
    return mask


@dataclass(frozen=True)
class GeneralisedScores(Scores):
    """The scores of prompts with no, one or several boxes.

    Attributes:
        counts: the numbers of boxes.
        chosen: the threshold on the scaled map; None for boxes that were drawn by somebody else.
        validation: the F1 on validation data at each threshold; empty without.
    """

    counts: Counts = field(kw_only=True, repr=False)
    chosen: float | None = field(kw_only=True, default=None)
    validation: Mapping[str, float] = field(kw_only=True, default_factory=dict)

    @property
    def overlap(self) -> Float[np.ndarray, " n"]:
        """The IoU of all drawn and all annotated boxes of a prompt, by which samples are ranked."""
        return self.counts.overlap

    def chosen_threshold(self, sample: int, metric: str) -> str:
        """The threshold as text."""
        return "" if self.chosen is None else f"threshold {self.chosen:g}"

    def outcome(self, sample: int, metric: str, k: int) -> Outcome:
        """Whether something was drawn where nothing belongs, or nothing where something does."""
        drawn, annotated = self.counts.drawn[sample] > 0, self.counts.annotated[sample] > 0
        if annotated:
            return Outcome.SCORED if drawn else Outcome.EMPTY
        return Outcome.FALSE_POSITIVE if drawn else Outcome.TRUE_NEGATIVE

    def facts(self, bootstrap: Bootstrap) -> Facts:
        """The threshold, and the numbers of prompts and boxes by category."""
        counts = self.counts
        table: JsonObject = {}
        for c, name in enumerate(self.categories):
            own = self.category_index == c
            table[name] = {
                "with_box": int((own & (counts.annotated > 0)).sum()),
                "without_box": int((own & (counts.annotated == 0)).sum()),
                "annotated": int(counts.annotated[own].sum()),
                "drawn": int(counts.drawn[own].sum()),
                "matched": int(counts.matched[own].sum()),
            }
        content: JsonObject = {"threshold": self.chosen, "validation_f1": json_of(self.validation), "boxes": table}
        asked = int((counts.annotated > 0).sum())
        remarks = [f"{asked} prompts with a box and {len(self.truths) - asked} without."]
        if self.chosen is not None:
            remarks.append(f"Threshold on the map scaled to [-1, 1], chosen on validation data: {self.chosen:g}.")
        return Facts(content, remarks)


def scores_of(counts: Counts, options: ProtocolOptions, **chosen: object) -> GeneralisedScores:
    """The scores from numbers of boxes."""
    drawn, annotated = counts.drawn > 0, counts.annotated > 0
    return GeneralisedScores(
        truths=counts.truths,
        options=options,
        values={
            "f1": counts.f1,
            "f1_exact": (counts.f1 == 1).astype(float),
            "f1_present": np.where(annotated, counts.f1, np.nan),
            "n_acc": np.where(annotated, np.nan, ~drawn),
            "t_acc": np.where(annotated, drawn, np.nan),
        },
        predicted_pixels=counts.drawn[:, None],
        truth_pixels=counts.annotated,
        counts=counts,
        **chosen,  # type: ignore[arg-type]
    )


def count_all(truths: Sequence[Truth], rows: Sequence[tuple[int, int, int, float]]) -> Counts:
    """`Counts` of rows of `count`. Raises UserError without any."""
    if not rows:
        raise UserError("there is no prompt to score: the truth has none")
    return Counts(tuple(truths), *(np.array(column) for column in zip(*rows, strict=True)))


def score_boxes(
    truths: Sequence[Truth], drawn: Callable[[Truth], Float[np.ndarray, "K 4"]], options: ProtocolOptions
) -> GeneralisedScores:
    """The scores of boxes in pixels of the square, which `drawn` returns of a sample."""
    return scores_of(count_all(truths, [count(truth, drawn(truth)) for truth in truths]), options)


def _measured(samples: Samples, thresholds: Sequence[float]) -> list[Counts]:
    """The numbers of boxes at each threshold. Every map is read once."""
    rows = list[list[tuple[int, int, int, float]] | None]()
    for truth, heatmap in zip(samples.truths, samples.heatmaps, strict=True):
        if heatmap is None:
            rows.append(None)
            continue
        scaled = np.asarray(normalise(np.asarray(check_map(truth, heatmap), np.float64), -1.0, 1.0))
        rows.append([count(truth, boxes_from_map(scaled, t).astype(np.float64)) for t in thresholds])
    found = gathered(rows)
    return [count_all(samples.truths, [row[k] for row in found]) for k in range(len(thresholds))]


def _by_category(counts: Counts) -> float:
    """The mean F1 over categories."""
    categories = np.array([truth.category for truth in counts.truths])
    return float(np.mean([counts.f1[categories == name].mean() for name in dict.fromkeys(categories.tolist())]))


def _scores(samples: Samples, options: ProtocolOptions, validation: Samples | None) -> GeneralisedScores:
    assert validation is not None  # checked by LocalizationProtocol.score
    quality = [_by_category(counts) for counts in _measured(validation, THRESHOLDS)]
    threshold = THRESHOLDS[int(np.argmax(quality))]
    (counts,) = _measured(samples, [threshold])
    found = {f"{t:g}": value for t, value in zip(THRESHOLDS, quality, strict=True)}
    return scores_of(counts, options, chosen=threshold, validation=found)


PROTOCOL = LocalizationProtocol(
    "generalised", _scores, ProtocolOptions(margin=0, protocol="generalised"), tuned=True, boxes=True, absent=True
)
