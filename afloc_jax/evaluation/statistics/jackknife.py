"""The weights of the jackknife, never written out: every sample but those of one unit, for each unit in turn."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class LeftOut:
    """Weights [U, n] of which row u is 0 for the samples of unit u and 1 for all others.

    A matrix of U x n numbers would make a jackknife O(n^2); what a statistic needs of it are sums, and a sum without a
    unit is the whole sum less the unit's own. So this stands where statistics take weights: `weights @ table`,
    `weights.sum(axis=1)` and `weights[:, columns]` mean what they mean for the matrix. NumPy refuses all else.

    Attributes:
        unit: the unit of each sample, in [0, units). A unit may have no sample: nothing is left out then.
        units: how many there are.
    """

    unit: Int[np.ndarray, " n"]
    units: int
    __array_ufunc__ = None  # no elementwise arithmetic: it would write the matrix out

    def of_units(self, values: Float[np.ndarray, "n *m"]) -> Float[np.ndarray, "U *m"]:
        """Sums of `values` over the samples of each unit."""
        values = np.asarray(values, np.float64)
        sums = np.zeros((self.units, *values.shape[1:]))
        np.add.at(sums, self.unit, values)
        return sums

    def __matmul__(self, values: Float[np.ndarray, "n *m"]) -> Float[np.ndarray, "U *m"]:
        """Sums of `values` over the samples that are left."""
        return np.asarray(values, np.float64).sum(axis=0) - self.of_units(values)

    def sum(self, axis: int) -> Float[np.ndarray, " U"]:
        """How many samples are left; `axis` must be 1, that of the samples."""
        if axis != 1:
            raise ValueError(f"axis is {axis}; only the samples (1) can be summed over")
        return self @ np.ones(len(self.unit))

    def __getitem__(self, index: tuple[slice, np.ndarray]) -> "LeftOut":
        """`[:, columns]`: some of the samples, all units."""
        rows, columns = index
        if rows != slice(None):
            raise IndexError("a jackknife is over all units; choose samples alone: weights[:, columns]")
        return LeftOut(self.unit[columns], self.units)
