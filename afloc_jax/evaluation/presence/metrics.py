"""The metrics of presence: calibration error, Brier score, AUC, and false positives at a sensitivity of 90 %."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from afloc_jax.evaluation.statistics.bootstrap import Statistic
from afloc_jax.evaluation.statistics.discrimination import ReliabilityBin, auc
from afloc_jax.evaluation.statistics.interval import mean_of_finite
from afloc_jax.evaluation.statistics.jackknife import Weights
from afloc_jax.evaluation.task import CardTable

BINS = 15  # of equal mass
SENSITIVITY = 0.9
SEEN, LEFT_OUT = "seen", "left out"
NAMES, PHRASES = "by name", "by phrase"


def bins_of(probabilities: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The bin of each probability: `BINS` bins of equal mass, in the order of the probabilities."""
    index = np.empty(len(probabilities), int)
    for number, members in enumerate(np.array_split(np.argsort(probabilities, kind="stable"), BINS)):
        index[members] = number
    return index


def calibration_error(
    present: Bool[np.ndarray, " n"], probabilities: Float[np.ndarray, " n"], weights: Float[np.ndarray, "R n"]
) -> Float[np.ndarray, " R"]:
    """The expected calibration error over bins of equal mass (Nixon et al. 2019, arXiv:1904.01685).

    It is the mean of |observed share - mean probability|, weighted by the samples of a bin. Resampling adds to it, so
    its interval lies higher than the value on the data.

    >>> calibration_error(np.array([True, False]), np.array([0.9, 0.2]), np.ones((1, 2)))
    array([0.15])
    """
    inside = np.eye(BINS)[bins_of(probabilities)]
    gaps = weights @ (inside * (present.astype(np.float64) - probabilities)[:, None])
    return np.asarray(np.abs(gaps).sum(axis=1) / weights.sum(axis=1))


def reliability_table(present: Bool[np.ndarray, " n"], probabilities: Float[np.ndarray, " n"]) -> list[ReliabilityBin]:
    """The reliability table over bins of equal mass; empty bins are left out."""
    index, table = bins_of(probabilities), []
    for number in np.unique(index):
        inside = index == number
        own = probabilities[inside]
        limits = float(own.min()), float(own.max())
        table.append(ReliabilityBin(*limits, int(inside.sum()), float(own.mean()), float(present[inside].mean())))
    return table


def brier(
    present: Bool[np.ndarray, " n"], probabilities: Float[np.ndarray, " n"], weights: Float[np.ndarray, "R n"]
) -> Float[np.ndarray, " R"]:
    """The mean squared difference of probability and label (Brier 1950)."""
    return np.asarray(weights @ (probabilities - present) ** 2 / weights.sum(axis=1))


def false_positives(
    present: Bool[np.ndarray, " n"], probabilities: Float[np.ndarray, " n"], weights: Float[np.ndarray, "R n"]
) -> Float[np.ndarray, " R"]:
    """The false-positive rate at the highest threshold whose sensitivity is at least `SENSITIVITY`.

    It is read off the ROC curve of the scored samples. NaN without positives or negatives.

    >>> scores = np.array([0.9, 0.8, 0.7, 0.1])
    >>> false_positives(np.array([True, False, True, False]), scores, np.ones((1, 4)))
    array([0.5])
    """
    order = np.argsort(-probabilities, kind="stable")
    ranked, weight = probabilities[order], weights[:, order]
    ends = np.flatnonzero(np.concatenate([ranked[1:] != ranked[:-1], [True]]))  # of each run of equal scores
    hits = np.cumsum(weight * present[order], axis=1)[:, ends]
    called = np.cumsum(weight * ~present[order], axis=1)[:, ends]
    first = np.argmax(hits >= SENSITIVITY * hits[:, -1:] - 1e-9, axis=1)
    wrong, negatives = np.take_along_axis(called, first[:, None], axis=1)[:, 0], called[:, -1]
    defined = (hits[:, -1] > 0) & (negatives > 0)
    return np.where(defined, wrong / np.maximum(negatives, 1e-300), np.nan)


@dataclass(frozen=True)
class Metric:
    """A metric: its name, its title, what it is, and its function of labels, probabilities and weights.

    `pooled`: the overall value is that of the questions of all classes, else the mean over classes.
    """

    name: str
    title: str
    about: str
    function: Callable[..., np.ndarray]
    pooled: bool


METRICS = (
    Metric("ece", "ECE", "expected calibration error, 15 bins of equal mass; lower is better", calibration_error, True),
    Metric("brier", "Brier", "mean squared distance of probability and label; lower is better", brier, True),
    Metric(
        "auc", "AUC", "chance that an image with the finding has the higher probability",
        lambda present, probabilities, weights: auc(present, probabilities, weights), False,
    ),
    Metric(
        "fpr90", "FPR at 90 %", "false-positive rate at the threshold of 90 % sensitivity; lower is better",
        false_positives, False,
    ),
)  # fmt: skip
BY_NAME = {metric.name: metric for metric in METRICS}
PARTS = (SEEN, LEFT_OUT)
KINDS = ("", NAMES, PHRASES)  # all questions, and those of one kind
CARD = CardTable(
    "Presence of a prompt, calibrated",
    {f"{name} {part}": f"{BY_NAME[name].title}, {part}" for part in PARTS for name in ("ece", "brier", "fpr90")},
)


def statistic_of(
    present: Bool[np.ndarray, " n"],
    probabilities: Float[np.ndarray, " n"],
    category: Int[np.ndarray, " n"],
    classes: int,
) -> Statistic:
    """A function from weights [R, n] to `METRICS` [R, 1 + C, M]: of all classes, then of each."""

    def statistic(weights: Weights) -> np.ndarray:
        columns = []
        for metric in METRICS:
            each = [
                metric.function(present[own], probabilities[own], weights[:, own])
                for own in (category == c for c in range(classes))
            ]
            stacked = np.stack(each, axis=1)
            pooled = metric.pooled
            overall = metric.function(present, probabilities, weights) if pooled else mean_of_finite(stacked, 1)
            columns.append(np.concatenate([overall[:, None], stacked], axis=1))
        return np.stack(columns, axis=-1)

    return statistic


def selective_risk(
    present: Bool[np.ndarray, " n"], probabilities: Float[np.ndarray, " n"], threshold: float = 0.5, points: int = 50
) -> list[tuple[float, float]]:
    """Coverage and risk: the share of wrong decisions among the most certain questions (Geifman, El-Yaniv 2017).

    A question is the more certain, the farther its probability is from the threshold. Source: arXiv:1705.08500.

    >>> selective_risk(np.array([True, False]), np.array([0.9, 0.6]), points=2)
    [(0.5, 0.0), (1.0, 0.5)]
    """
    order = np.argsort(-np.abs(probabilities - threshold), kind="stable")
    wrong = np.cumsum(((probabilities >= threshold) != present)[order])
    counts = np.unique(np.ceil(np.linspace(0, len(order), points + 1)[1:]).astype(int))
    return [(float(count / len(order)), float(wrong[count - 1] / count)) for count in counts]


def area_under(curve: Sequence[tuple[float, float]]) -> float:
    """The mean risk over the points of a curve of selective risk."""
    return float(np.mean([risk for _, risk in curve]))
