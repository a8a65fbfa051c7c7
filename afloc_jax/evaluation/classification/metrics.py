"""The metrics of classification, a row each: how results, page and model card name them, and how they are computed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.jackknife import Weights
from afloc_jax.evaluation.task import CardTable


@dataclass(frozen=True)
class ClassScores:
    """One class: labels, probabilities and decisions of the records with a known label, and rows of their weights."""

    labels: Bool[np.ndarray, " n"]
    probabilities: Float[np.ndarray, " n"]
    predicted: Bool[np.ndarray, " n"]
    weights: Weights

    @cached_property
    def decisions(self) -> Mapping[str, Float[np.ndarray, " R"]]:
        return discrimination.decisions(self.labels, self.predicted, self.weights)


Value = Callable[[ClassScores], Float[np.ndarray, " R"]]


@dataclass(frozen=True)
class Metric:
    """A metric of one class.

    Attributes:
        name: its key in summary.json.
        title, about: its name on the page, and what it says.
        value: computes it: one number for each row of weights.
        chance: its value without any skill; None where that depends on the data.
        low: the lowest value it can have.
        card: its column in the model card, where it has one.
    """

    name: str
    title: str
    about: str
    value: Value
    chance: float | None = None
    low: float = 0.0
    card: str = ""


def decision(name: str) -> Value:
    """One of `discrimination.DECISION_METRICS`."""
    return lambda scores: scores.decisions[name]


def probability(function: Callable[..., Float[np.ndarray, " R"]]) -> Value:
    """A function of labels and probabilities."""
    return lambda scores: function(scores.labels, scores.probabilities, scores.weights)


METRICS = (
    Metric("auc", "AUC", "chance that an image with the finding scores above one without it",
           probability(discrimination.auc), chance=0.5, card="AUC"),
    Metric("f1", "F1", "harmonic mean of precision and sensitivity at the threshold",
           decision("f1"), card="F1"),
    Metric("accuracy", "Accuracy", "share of decisions that are right",
           decision("accuracy")),
    Metric("mcc", "MCC", "Matthews' correlation of decision and label",
           decision("mcc"), chance=0.0, low=-1.0, card="MCC"),
    Metric("balanced_accuracy", "Balanced accuracy", "mean of sensitivity and specificity, or of the classes' recalls",
           decision("balanced_accuracy"), chance=0.5, card="balanced accuracy"),
    Metric("sensitivity", "Sensitivity", "share of images with the finding that are called positive",
           decision("sensitivity")),
    Metric("specificity", "Specificity", "share of images without the finding that are called negative",
           decision("specificity")),
    Metric("brier", "Brier", "mean squared distance of probability and outcome; lower is better",
           probability(discrimination.brier)),
    Metric("ece", "ECE", "expected calibration error: how far probabilities are from shares; lower is better",
           probability(discrimination.calibration_error), card="calibration error"),
)  # fmt: skip
BY_NAME = {metric.name: metric for metric in METRICS}
MULTICLASS = ("auc", "accuracy", "balanced_accuracy", "f1", "mcc")  # those of a choice of one class
HEADLINE = ("auc", "f1", "balanced_accuracy", "mcc", "ece")  # in the head of the page and in the model card
MAIN = HEADLINE[:-1]  # in the table that is open
CARD = CardTable("Zero-shot classification, mean over classes", {name: BY_NAME[name].card for name in HEADLINE})


def chance_of(metric: Metric, multiclass: bool) -> float | None:
    """The chance level of a metric; where one of several classes is chosen, that of AUC alone is known."""
    return metric.chance if metric.name == "auc" or not multiclass else None
