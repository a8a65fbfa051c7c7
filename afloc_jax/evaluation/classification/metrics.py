"""The table of classification metrics, which results, the page and the model card read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Statistic
from afloc_jax.evaluation.statistics.interval import mean_of_finite
from afloc_jax.evaluation.statistics.jackknife import Weights
from afloc_jax.evaluation.task import CardTable


@dataclass(frozen=True)
class ClassScores:
    """One class: labels, probabilities and decisions of records with a known label, and their weights."""

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
        name: the key in summary.json.
        title, about: the title and the explanation on the page.
        value: computes the metric: one number for each row of weights.
        chance: the value of a random classifier; None if it depends on the data.
        low: the lowest possible value.
        card: the column in the model card; empty for none.
    """

    name: str
    title: str
    about: str
    value: Value
    chance: float | None = None
    low: float = 0.0
    card: str = ""


def decision(name: str) -> Value:
    """The function of a metric of `discrimination.DECISION_METRICS`."""
    return lambda scores: scores.decisions[name]


def probability(function: Callable[..., Float[np.ndarray, " R"]]) -> Value:
    """The function of a metric of labels and probabilities."""
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
MULTICLASS = ("auc", "accuracy", "balanced_accuracy", "f1", "mcc")  # metrics of multi-class prompt sets
HEADLINE = ("auc", "f1", "balanced_accuracy", "mcc", "ece")  # metrics at the top of the page and in the model card
MAIN = HEADLINE[:-1]  # metrics in the main table
CARD = CardTable("Zero-shot classification, mean over classes", {name: BY_NAME[name].card for name in HEADLINE})
NATURAL_THRESHOLD = 0.5  # a softmax over two prompts gives 0.5 when their scores are equal


def chance_of(metric: Metric, multiclass: bool) -> float | None:
    """The chance level of a metric. With `multiclass`, only that of AUC is known."""
    return metric.chance if metric.name == "auc" or not multiclass else None


# Statistics of weighted samples, for the bootstrap: every metric of every class at once


def binary_statistic(
    labels: Float[np.ndarray, "n C"], probabilities: Float[np.ndarray, "n C"], predicted: Bool[np.ndarray, "n C"]
) -> Statistic:
    """A function from weights [R, n] to `METRICS` [R, C, M]. Records of unknown label are left out for a class."""

    def statistic(weights: Weights) -> np.ndarray:
        classes = []
        for c in range(labels.shape[1]):
            known = np.isfinite(labels[:, c])
            arrays = (labels[known, c] == 1, probabilities[known, c], predicted[known, c])
            scores = ClassScores(*arrays, weights[:, known])
            classes.append(np.stack([metric.value(scores) for metric in METRICS], axis=-1))
        return np.stack(classes, axis=1)

    return statistic


def multiclass_statistic(labels: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "n C"]) -> Statistic:
    """A function from weights [R, n] to `MULTICLASS` metrics [R, 1 + C, M]: all classes, then each against the rest."""
    classes, predicted = probabilities.shape[1], probabilities.argmax(axis=1)

    def statistic(weights: Weights) -> np.ndarray:
        each = [ClassScores(labels == c, probabilities[:, c], predicted == c, weights) for c in range(classes)]
        aucs = [BY_NAME["auc"].value(scores) for scores in each]
        together = discrimination.multiclass_decisions(labels, predicted, classes, weights)
        tables = [{"auc": mean_of_finite(np.stack(aucs), axis=0), **together}]
        tables += [{"auc": auc, **scores.decisions} for auc, scores in zip(aucs, each, strict=True)]
        return np.stack([np.stack([table[name] for name in MULTICLASS], axis=-1) for table in tables], axis=1)

    return statistic


def choose_thresholds(labels: Float[np.ndarray, "n C"], probabilities: Float[np.ndarray, "n C"]) -> np.ndarray:
    """The threshold with the highest F1 for each class [C]; 0.5 for a class without positives or negatives."""
    chosen = np.full(labels.shape[1], NATURAL_THRESHOLD)
    for c in range(labels.shape[1]):
        known = np.isfinite(labels[:, c])
        if len(np.unique(labels[known, c])) == 2:
            chosen[c] = discrimination.best_threshold(labels[known, c] == 1, probabilities[known, c])
    return chosen
