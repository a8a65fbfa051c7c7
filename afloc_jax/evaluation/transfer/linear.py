"""The linear probe: logistic regression of each class on frozen features, its L2 chosen on validation records."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float

from afloc_jax.evaluation.statistics.discrimination import auc
from afloc_jax.evaluation.statistics.interval import mean_of_finite

_STEPS = 1000  # of L-BFGS; a hundred are usual


@dataclass(frozen=True)
class Linear:
    """C logistic regressions on F features, which are shifted by `mean` and divided by `scale` first."""

    mean: Float[np.ndarray, " F"]
    scale: Float[np.ndarray, " F"]
    weights: Float[np.ndarray, "F C"]
    bias: Float[np.ndarray, " C"]

    def probabilities(self, features: Float[np.ndarray, "n F"]) -> Float[np.ndarray, "n C"]:
        return np.asarray(scipy.special.expit(self.logits(features)))

    def logits(self, features: Float[np.ndarray, "*n F"]) -> Float[np.ndarray, "*n C"]:
        return np.asarray(self.scaled(features) @ self.weights + self.bias)

    def scaled(self, features: Float[np.ndarray, "*n F"]) -> Float[np.ndarray, "*n F"]:
        """The features as the regressions see them."""
        return np.asarray((np.asarray(features, np.float64) - self.mean) / self.scale)


def fit_path(
    features: Float[np.ndarray, "n F"], labels: Float[np.ndarray, "n C"], penalties: Sequence[float]
) -> list[Linear]:
    """A fit for each penalty. Each fit starts from the one before, so give the strongest penalty first.

    A class c with its n_c known labels y (1 or 0, or a share between them; NaN is unknown) minimises

        1 / n_c sum_i (log(1 + exp(x_i w + b)) - y_i (x_i w + b)) + penalty / 2 |w|^2

    of features that have mean 0 and deviation 1 over these records. It is scikit-learn's LogisticRegression with
    C = 1 / (penalty n_c). The classes do not share anything; they are fitted together for speed.
    """
    x = np.asarray(features, np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-6 * max(scale.max(initial=0.0), 1e-30), scale, 1.0)  # constant features stay 0
    x = (x - mean) / scale
    known = np.isfinite(labels)
    share = known / np.maximum(known.sum(axis=0), 1)
    target = np.where(known, labels, 0.0)
    shape = (x.shape[1] + 1, labels.shape[1])

    def loss(flat: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
        packed = flat.reshape(shape)
        weights, bias = packed[:-1], packed[-1]
        logits = x @ weights + bias
        value = (share * (np.logaddexp(0, logits) - target * logits)).sum() + penalty / 2 * (weights**2).sum()
        residual = share * (scipy.special.expit(logits) - target)
        return value, np.concatenate([x.T @ residual + penalty * weights, residual.sum(axis=0)[None]]).ravel()

    flat, fits = np.zeros(shape).ravel(), []
    for penalty in penalties:
        options = {"maxiter": _STEPS, "gtol": 1e-7, "ftol": 1e-13}
        found = scipy.optimize.minimize(loss, flat, (penalty,), method="L-BFGS-B", jac=True, options=options)
        flat = found.x
        packed = flat.reshape(shape)
        fits.append(Linear(mean, scale, packed[:-1], packed[-1]))
    return fits


def mean_auc(labels: Float[np.ndarray, "n C"], scores: Float[np.ndarray, "n C"]) -> float:
    """The mean over classes of the AUC over known labels, without classes that have no positive or no negative."""
    values = []
    for c in range(labels.shape[1]):
        known = np.isfinite(labels[:, c])
        values.append(auc(labels[known, c] == 1, scores[known, c])[0])
    return float(mean_of_finite(np.array(values), axis=0))


def choose(
    fits: Sequence[Linear], features: Float[np.ndarray, "n F"], labels: Float[np.ndarray, "n C"]
) -> tuple[int, float]:
    """The index of the fit with the highest `mean_auc` on validation records, of equal ones the first, and that AUC."""
    values = [mean_auc(labels, one.probabilities(features)) for one in fits]
    best = int(np.argmax(values))
    return best, values[best]
