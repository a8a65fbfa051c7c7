"""The coverage of 95 % bootstrap intervals where few units are drawn, which classes with few positives are marked with.

The percentile interval of a mean of n units is about mean - z s / sqrt(n) to mean + z s / sqrt(n), with z = 1.96 and s
the standard deviation with n in its denominator. The right interval has Student's quantile with n - 1 degrees of
freedom, and n - 1 in the denominator of s. For values with a normal distribution the percentile interval thus covers

    P(|t(n - 1)| < z sqrt((n - 1) / n)).

For skewed values, and shares near 0 or 1, it covers less.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtr

from afloc_jax.evaluation.statistics.interval import CONFIDENCE
from afloc_jax.settings import Json

FEW = 20


@dataclass(frozen=True)
class FewPositives:
    """A class with fewer than `FEW` positive units: their number, and the share of its intervals that cover."""

    units: int
    covers: float


def coverage(units: int) -> float:
    """The share of 95 % intervals of means of so many units that cover, see above; 0 for fewer than two units.

    >>> [round(coverage(units), 3) for units in (2, 5, 10, 20)]
    [0.602, 0.846, 0.904, 0.929]
    """
    if units < 2:
        return 0.0
    limit = ndtri((1 + CONFIDENCE) / 2) * np.sqrt((units - 1) / units)
    return float(2 * stdtr(units - 1, limit) - 1)


def few_positives(positives: Mapping[str, int]) -> dict[str, FewPositives]:
    """The classes with fewer than `FEW` positive units; those without any have no interval and are left out."""
    return {name: FewPositives(units, coverage(units)) for name, units in positives.items() if 0 < units < FEW}


def remark_on_few(few: Mapping[str, FewPositives], unit: Json) -> str:
    """A sentence that says what the intervals of such classes cover; empty if there are none."""
    if not few:
        return ""
    each = [
        f"{name} ({one.units} {unit}{'s' if one.units > 1 else ''}, {100 * one.covers:.0f} %)"
        for name, one in few.items()
    ]
    return f"* Fewer than {FEW} positives, so that 95 % intervals cover about: {', '.join(each)}."
