"""Subsets of labelled records: shares of the patients, drawn once, so that smaller subsets lie within larger ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from afloc_jax.errors import UserError


@dataclass(frozen=True)
class Subset:
    """A share of the training records.

    Attributes:
        name: the share as in names of files and metrics, such as "1pct".
        fraction: the share of patients.
        patients: the number of patients (of records that name none: the number of records).
        rows: the indices of their records, in order.
    """

    name: str
    fraction: float
    patients: int
    rows: Int[np.ndarray, " k"]

    @property
    def title(self) -> str:
        """The share as readers see it, such as "1 %"."""
        return f"{100 * self.fraction:g} %"


def draw(patients: Sequence[str], ids: Sequence[str], fractions: Sequence[float], seed: int) -> list[Subset]:
    """The subsets of records, in the order of `fractions`.

    The patients are put in one random order, which depends on their names and the seed alone; a subset has the first
    ones, rounded up. A record without a patient is drawn by itself.

    >>> [subset.rows.tolist() for subset in draw(["a", "a", "b", "c"], list("1234"), (0.1, 1.0), seed=0)]
    [[3], [0, 1, 2, 3]]
    """
    units = np.array([f"p {patient}" if patient else f"r {id}" for patient, id in zip(patients, ids, strict=True)])
    names, unit = np.unique(units, return_inverse=True)
    place = np.empty(len(names), int)
    place[np.random.default_rng(seed).permutation(len(names))] = np.arange(len(names))
    subsets = []
    for fraction in fractions:
        count = math.ceil(round(fraction * len(names), 6))
        rows = np.flatnonzero(place[unit] < count)
        subsets.append(Subset(f"{100 * fraction:g}pct", fraction, count, rows))
    return subsets


def check_classes(
    subset: Subset, labels: Float[np.ndarray, "k C"], classes: Sequence[str], masks: bool = False
) -> None:
    """Raises UserError where a class has no positive or no negative among the labels of the subset.

    With `masks` positives are masks, and negatives are not needed.
    """
    needed = ((1, "mask"),) if masks else ((1, "positive"), (0, "negative"))
    for c, name in enumerate(classes):
        for value, said in needed:
            if not (labels[:, c] == value).any():
                raise UserError(
                    f"{subset.title} of the labels ({len(labels)} records of {subset.patients} patients) hold no "
                    f"{said} of {name!r}; take a larger share or another subset_seed, or leave the class out"
                )
