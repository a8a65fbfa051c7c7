"""Metrics of binary and multi-class classification, on weighted samples: AUC, F1, MCC, calibration, thresholds.

Every function takes weights [R, n], one row per resample (bootstrap.py), and returns one value per row. Without
weights it returns one value for the data. `LeftOut` weights (the jackknife) cost as much as one resample.
Scikit-learn's metrics, with which the tests compare, take one row of weights at a time and have no jackknife.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from afloc_jax.evaluation.statistics.jackknife import LeftOut, Weights

Labels: TypeAlias = Bool[np.ndarray, " n"]
Values: TypeAlias = Float[np.ndarray, " n"]
PerRow: TypeAlias = Float[np.ndarray, " R"]
PerUnit: TypeAlias = Float[np.ndarray, " U"]

BINS = 10  # bins of the reliability table
DECISION_METRICS = ("f1", "accuracy", "mcc", "balanced_accuracy", "sensitivity", "specificity")


def auc(labels: Labels, scores: Values, weights: Weights | None = None) -> PerRow:
    """The area under the ROC curve: the probability that a positive scores above a negative, with ties counting half.

    Source: Mann and Whitney 1947. NaN if a resample has no positive or no negative.

    >>> auc(np.array([False, False, True, True]), np.array([0.1, 0.4, 0.35, 0.8]))
    array([0.75])
    """
    labels = np.asarray(labels, bool)
    weights = _weights(weights, len(labels))
    if isinstance(weights, LeftOut):
        return _auc_without(labels, np.asarray(scores), weights)
    order = np.argsort(scores, kind="stable")
    ranked = np.asarray(scores)[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))  # start of each run of equal scores
    ranked_weights, positive_ranked = weights[:, order], labels[order]
    if len(starts) == len(order):  # without ties only the positions of positives matter
        below = np.cumsum(ranked_weights * ~positive_ranked, axis=1)
        positive, negatives = ranked_weights[:, positive_ranked], below[:, -1]
        below = below[:, positive_ranked]
    else:
        positive = np.add.reduceat(ranked_weights * positive_ranked, starts, axis=1)
        negative = np.add.reduceat(ranked_weights * ~positive_ranked, starts, axis=1)
        negatives, below = negative.sum(axis=1), np.cumsum(negative, axis=1) - negative / 2
    wins, pairs = np.einsum("rg,rg->r", positive, below), positive.sum(axis=1) * negatives
    return np.where(pairs > 0, wins / np.maximum(pairs, 1e-300), np.nan)


def roc_curve(labels: Labels, scores: Values) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """The false and true positive rates from (0, 0) to (1, 1), one point per distinct score, the highest score first.

    They are empty without positives or without negatives.
    """
    labels = np.asarray(labels, bool)
    if labels.all() or not labels.any():
        return np.zeros(0), np.zeros(0)
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    ranked = np.asarray(scores)[order]
    last = np.flatnonzero(np.concatenate([ranked[1:] != ranked[:-1], [True]]))  # end of each run of equal scores
    rates = [np.cumsum(kind[order])[last] / kind.sum() for kind in (~labels, labels)]
    false, true = (np.concatenate([[0.0], rate]) for rate in rates)
    return false, true


def decisions(labels: Labels, predicted: Labels, weights: Weights | None = None) -> dict[str, PerRow]:
    """The `DECISION_METRICS` of binary predictions.

    F1 and MCC are 0 if their denominator is 0. Sensitivity is NaN without positives, specificity without negatives;
    balanced accuracy is the mean of those that are defined.
    """
    labels, predicted = np.asarray(labels, bool), np.asarray(predicted, bool)
    cells = np.stack([labels & predicted, labels & ~predicted, ~labels & predicted, ~labels & ~predicted], axis=1)
    tp, fn, fp, tn = (_weights(weights, len(labels)) @ cells.astype(np.float64)).T
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    recalls = np.stack([sensitivity, specificity])
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return {
        "f1": _ratio(2 * tp, 2 * tp + fp + fn, otherwise=0.0),
        "accuracy": _ratio(tp + tn, tp + fn + fp + tn),
        "mcc": _ratio(tp * tn - fp * fn, np.sqrt(product), otherwise=0.0),
        "balanced_accuracy": _mean_of_existing(recalls),
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


def multiclass_decisions(
    labels: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], classes: int, weights: Weights | None = None
) -> dict[str, PerRow]:
    """Accuracy, balanced accuracy, macro F1 and MCC of predictions of one class per sample.

    Balanced accuracy is the mean recall of the classes that occur. Macro F1 is the mean over classes that occur or are
    predicted. MCC is that of Gorodkin (2004), and 0 if its denominator is 0.
    """
    cell = np.asarray(labels) * classes + np.asarray(predicted)
    one_hot = np.eye(classes * classes)[cell]
    counts = (_weights(weights, len(cell)) @ one_hot).reshape(-1, classes, classes)  # [R, truth, prediction]
    hit, truth, guess = np.einsum("rcc->rc", counts), counts.sum(axis=2), counts.sum(axis=1)
    total, correct = counts.sum(axis=(1, 2)), hit.sum(axis=1)
    covariance = correct * total - (truth * guess).sum(axis=1)
    spread = (total**2 - (truth**2).sum(axis=1)) * (total**2 - (guess**2).sum(axis=1))
    return {
        "accuracy": _ratio(correct, total),
        "balanced_accuracy": _mean_of_existing(_ratio(hit, truth).T),
        "f1": _mean_of_existing(_ratio(2 * hit, truth + guess).T),
        "mcc": _ratio(covariance, np.sqrt(spread), otherwise=0.0),
    }


def brier(labels: Labels, probabilities: Values, weights: Weights | None = None) -> PerRow:
    """The mean squared difference of probability and label (Brier 1950)."""
    weights = _weights(weights, len(labels))
    return _ratio(weights @ (probabilities - np.asarray(labels, np.float64)) ** 2, weights.sum(axis=1))


def calibration_error(labels: Labels, probabilities: Values, weights: Weights | None = None) -> PerRow:
    """The expected calibration error (Naeini, Cooper and Hauskrecht 2015).

    It is the mean of |observed share - mean probability| over bins of equal width, weighted by their samples.
    """
    weights = _weights(weights, len(labels))
    inside = np.eye(BINS)[_bin(probabilities)]
    gaps = weights @ (inside * (np.asarray(labels, np.float64) - probabilities)[:, None])
    return _ratio(np.abs(gaps).sum(axis=1), weights.sum(axis=1))


@dataclass(frozen=True)
class ReliabilityBin:
    """One row of the reliability table: limits of the probability, samples, mean probability and observed share."""

    lower: float
    upper: float
    n: int
    mean_probability: float | None
    observed: float | None


def reliability(labels: Labels, probabilities: Values) -> list[ReliabilityBin]:
    """The reliability table, with a row for each of `BINS` bins of equal width.

    A bin includes its lower limit but not its upper one; the last bin includes 1. An empty bin has no mean and no
    share.
    """
    table = []
    outcomes, probabilities = np.asarray(labels, np.float64), np.asarray(probabilities)
    index = _bin(probabilities)
    for b in range(BINS):
        inside = index == b
        n = int(inside.sum())
        means = [float(values[inside].mean()) if n else None for values in (probabilities, outcomes)]
        table.append(ReliabilityBin(b / BINS, (b + 1) / BINS, n, *means))
    return table


def best_threshold(labels: Labels, scores: Values) -> float:
    """The threshold with the highest F1, if scores from the threshold on are positive; the lowest of several.

    NaN without a positive sample, because then no threshold is better than another.
    """
    labels = np.asarray(labels, bool)
    if not labels.any():
        return float("nan")
    thresholds = np.unique(scores)
    order = np.argsort(scores, kind="stable")
    hits = np.cumsum(labels[order][::-1])[::-1]  # positives at or above each sample in ascending order
    starts = np.searchsorted(np.asarray(scores)[order], thresholds, side="left")
    called, hit = len(labels) - starts, hits[starts]
    return float(thresholds[np.argmax(2 * hit / (called + labels.sum()))])


@dataclass(frozen=True)
class DeLong:
    """The AUCs of K systems on the same samples, and their covariance."""

    aucs: Float[np.ndarray, " K"]
    covariance: Float[np.ndarray, "K K"]


def delong(labels: Labels, scores: Float[np.ndarray, "K n"]) -> DeLong:
    """AUCs and their covariance by DeLong, DeLong and Clarke-Pearson 1988 (doi 10.2307/2531595), by midranks.

    Midranks are those of Sun and Xu (2014). Raises ValueError with fewer than two positives or two negatives, because
    the variance is undefined then.
    """
    labels, scores = np.asarray(labels, bool), np.atleast_2d(np.asarray(scores, np.float64))
    m, n = int(labels.sum()), int((~labels).sum())
    if m < 2 or n < 2:
        raise ValueError(f"{m} positives and {n} negatives: DeLong's variance needs two of each")
    won, lost = _placements(labels, scores)
    above, below = won / n, lost / m  # structural components of the positives and of the negatives
    covariance = np.atleast_2d(np.cov(above)) / m + np.atleast_2d(np.cov(below)) / n
    return DeLong(above.mean(axis=1), covariance)


def _placements(labels: Labels, scores: Float[np.ndarray, "K n"]) -> tuple[np.ndarray, np.ndarray]:
    """The number of negatives below each positive [K, positives], and of positives above each negative [K, negatives].

    Ties count half. Both are differences of midranks among all samples and among samples of the same label, in the
    order of `scores`.
    """
    from scipy.stats import rankdata  # imported late: it is slow, and localisation does not need it

    positive, negative = scores[:, labels], scores[:, ~labels]
    ranks = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    rank_positive, rank_negative = np.split(ranks, [positive.shape[1]], axis=1)
    won = rank_positive - rankdata(positive, axis=1)
    return won, positive.shape[1] - (rank_negative - rankdata(negative, axis=1))


def _auc_without(labels: Labels, scores: Values, weights: LeftOut) -> PerUnit:
    """The exact AUC without each unit, in O(n log n).

    Call a pair of a positive and a negative won if the positive scores higher (a tie counts half). With w(i) the number
    of won pairs of sample i, W the sum of w over the positives, and V(u) the number of won pairs within unit u,

        AUC without u = (W - sum of w over u + V(u)) / (positives left * negatives left).

    The sum over u subtracts a pair within the unit twice, once for each of its samples; V(u) adds it once.
    """
    positives, negatives = weights @ labels, weights @ ~labels
    if labels.all() or not labels.any():
        return np.full(weights.units, np.nan)
    won = np.empty(len(labels))
    won[labels], won[~labels] = (part[0] for part in _placements(labels, scores[None]))
    wins = won[labels].sum() - weights.of_units(won) + _wins_within(labels, scores, weights)
    return _ratio(wins, positives * negatives)


def _wins_within(labels: Labels, scores: Values, weights: LeftOut) -> PerUnit:
    """The number of won pairs V(u) within each unit, see `_auc_without`."""
    order = np.lexsort((scores, weights.unit))
    unit, ranked, positive = weights.unit[order], scores[order], labels[order]
    starts = np.flatnonzero(np.concatenate([[True], (unit[1:] != unit[:-1]) | (ranked[1:] != ranked[:-1])]))
    positives, negatives = (np.add.reduceat(kind.astype(np.float64), starts) for kind in (positive, ~positive))
    own = weights.of_units(~labels)
    earlier = (np.cumsum(own) - own)[unit[starts]]  # negatives in the units before this one
    below = np.cumsum(negatives) - negatives / 2 - earlier
    return np.bincount(unit[starts], positives * below, weights.units)


def _weights(weights: Weights | None, samples: int) -> Weights:
    if isinstance(weights, LeftOut):
        return weights
    return np.ones((1, samples)) if weights is None else np.asarray(weights, np.float64)


def _ratio(
    numerator: Shaped[np.ndarray, "*s"], denominator: Shaped[np.ndarray, "*s"], otherwise: float = np.nan
) -> Float[np.ndarray, "*s"]:
    safe = np.where(denominator > 0, denominator, 1.0)
    return np.where(denominator > 0, numerator / safe, otherwise)


def _mean_of_existing(parts: Float[np.ndarray, "k R"]) -> PerRow:
    exists = np.isfinite(parts)
    return _ratio(np.where(exists, parts, 0.0).sum(axis=0), exists.sum(axis=0).astype(np.float64))


def _bin(probabilities: np.ndarray) -> Int[np.ndarray, " n"]:
    return np.asarray(np.floor(np.asarray(probabilities, np.float64) * BINS).astype(int).clip(0, BINS - 1))
