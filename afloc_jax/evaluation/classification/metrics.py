"""The metrics of classification with intervals: statistics of weighted samples, and the tables of summary.json."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Replicates, mean_of_finite

METRICS = ("auc", *discrimination.DECISION_METRICS, "brier", "ece")
MULTICLASS_METRICS = ("auc", "accuracy", "balanced_accuracy", "f1", "mcc")


def binary_statistic(
    labels: Float[np.ndarray, "n C"], probabilities: Float[np.ndarray, "n C"], predicted: Bool[np.ndarray, "n C"]
):
    """Weights [R, n] -> `METRICS` of every class, [R, C, M]; records of unknown label do not count for a class."""

    def statistic(weights: Any) -> np.ndarray:
        per_class = []
        for c in range(labels.shape[1]):
            known = np.isfinite(labels[:, c])
            truth, p, w = labels[known, c] == 1, probabilities[known, c], weights[:, known]
            decided = discrimination.decisions(truth, predicted[known, c], w)
            values = [discrimination.auc(truth, p, w), *(decided[name] for name in discrimination.DECISION_METRICS)]
            values += [discrimination.brier(truth, p, w), discrimination.calibration_error(truth, p, w)]
            per_class.append(np.stack(values, axis=-1))
        return np.stack(per_class, axis=1)

    return statistic


def multiclass_statistic(labels: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "n C"]):
    """Weights [R, n] -> [R, 1 + C, M] of `MULTICLASS_METRICS`: all classes first, then each against the rest."""
    classes, predicted = probabilities.shape[1], probabilities.argmax(axis=1)

    def statistic(weights: Any) -> np.ndarray:
        aucs = [discrimination.auc(labels == c, probabilities[:, c], weights) for c in range(classes)]
        together = discrimination.multiclass_decisions(labels, predicted, classes, weights)
        tables = [{"auc": mean_of_finite(np.stack(aucs), axis=0), **together}]
        tables += [
            {"auc": aucs[c], **discrimination.decisions(labels == c, predicted == c, weights)} for c in range(classes)
        ]
        return np.stack([np.stack([table[m] for m in MULTICLASS_METRICS], axis=-1) for table in tables], axis=1)

    return statistic


def metric_tables(
    replicates: Replicates, classes: Sequence[str], bootstrap: Bootstrap, *, multiclass: bool
) -> dict[str, Any]:
    """`metrics` of summary.json from replicates [C, M] ([1 + C, M] with all classes first where `multiclass`)."""
    tables = {}
    for m, name in enumerate(MULTICLASS_METRICS if multiclass else METRICS):
        column = replicates[m]
        overall = column[0] if multiclass else column.map(lambda values: mean_of_finite(values, axis=-1))
        tables[name] = {
            "overall": bootstrap.limits_of(overall).to_dict(),
            "per_category": {
                label: bootstrap.limits_of(column[c + multiclass]).to_dict() for c, label in enumerate(classes)
            },
        }
    return tables


def reliability_tables(
    labels: Float[np.ndarray, "n C"], probabilities: Float[np.ndarray, "n C"], classes: Sequence[str]
) -> dict[str, Any]:
    """`reliability` of summary.json: the table of each class over the records whose label is known."""
    tables = {}
    for c, name in enumerate(classes):
        known = np.isfinite(labels[:, c])
        table = discrimination.reliability(labels[known, c] == 1, probabilities[known, c])
        tables[name] = [asdict(row) for row in table]
    return tables
