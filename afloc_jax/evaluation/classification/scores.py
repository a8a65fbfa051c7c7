"""Statistics of weighted samples: every metric of every class at once, as the bootstrap takes them."""

import numpy as np
from jaxtyping import Bool, Float, Int

from afloc_jax.evaluation.classification.metrics import BY_NAME, METRICS, MULTICLASS, ClassScores
from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Statistic
from afloc_jax.evaluation.statistics.interval import mean_of_finite
from afloc_jax.evaluation.statistics.jackknife import Weights

NATURAL_THRESHOLD = 0.5  # of a softmax over two


def binary_statistic(
    labels: Float[np.ndarray, "n C"], probabilities: Float[np.ndarray, "n C"], predicted: Bool[np.ndarray, "n C"]
) -> Statistic:
    """Weights [R, n] -> `METRICS` of every class, [R, C, M]; records of unknown label do not count for a class."""

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
    """Weights [R, n] -> [R, 1 + C, M] of the `MULTICLASS` metrics: all classes first, then each against the rest."""
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
    """[C] the threshold of each class with the highest F1; 0.5 where its known labels are not of both kinds."""
    chosen = np.full(labels.shape[1], NATURAL_THRESHOLD)
    for c in range(labels.shape[1]):
        known = np.isfinite(labels[:, c])
        if len(np.unique(labels[known, c])) == 2:
            chosen[c] = discrimination.best_threshold(labels[known, c] == 1, probabilities[known, c])
    return chosen
