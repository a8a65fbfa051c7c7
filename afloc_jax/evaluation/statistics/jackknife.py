"""The weights of the jackknife, without their matrix: all samples but those of one unit, for each unit in turn."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int, Shaped


@dataclass(frozen=True)
class LeftOut:
    """Weights [U, n] of which row u is 0 for the samples of unit u and 1 for all others.

    With a matrix of U x n numbers a jackknife would take O(n^2). However, statistics need only weighted sums, and the
    sum without a unit is the sum of all samples minus that of the unit, which takes O(n). Statistics therefore get this
    object as weights. `weights @ table`, `weights.sum(axis=1)` and `weights[:, columns]` give the same results as for
    the matrix; NumPy refuses all other operations.

    Attributes:
        unit: [n] the unit of each sample, in [0, units). A unit may have no samples.
        units: the number of units.
    """

    unit: Int[np.ndarray, " n"]
    units: int
    __array_ufunc__ = None  # elementwise arithmetic is refused, as it would need the matrix

    def of_units(self, values: Shaped[np.ndarray, "n *m"]) -> Float[np.ndarray, "U *m"]:
        """The sums of `values` over the samples of each unit."""
        values = np.asarray(values, np.float64)
        sums = np.zeros((self.units, *values.shape[1:]))
        np.add.at(sums, self.unit, values)
        return sums

    def __matmul__(self, values: Shaped[np.ndarray, "n *m"]) -> Float[np.ndarray, "U *m"]:
        """The sums of `values` over the samples that are left."""
        return np.asarray(np.asarray(values, np.float64).sum(axis=0) - self.of_units(values))

    def sum(self, axis: int) -> Float[np.ndarray, " U"]:
        """The number of samples that are left; `axis` must be 1, the axis of the samples."""
        if axis != 1:
            raise ValueError(f"axis is {axis}; only the samples (1) can be summed over")
        return self @ np.ones(len(self.unit))

    def __getitem__(self, index: tuple[slice, np.ndarray]) -> "LeftOut":
        """The weights of the samples `columns`, as `weights[:, columns]`."""
        rows, columns = index
        if rows != slice(None):
            raise IndexError("a jackknife is over all units; choose samples alone: weights[:, columns]")
        return LeftOut(self.unit[columns], self.units)


Weights: TypeAlias = Float[np.ndarray, "R n"] | LeftOut
"""One row of weights for each resample, or the weights of a jackknife."""
