"""Linear interpolation along one axis as a matrix: models and heat maps resize by matrix products."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize(
    map: Float[Array, "*b h w"], rows: Float[Array | np.ndarray, "H h"], columns: Float[Array | np.ndarray, "W w"]
) -> Float[Array, "*b H W"]:
    """A linear map along each of the last two axes, rows X columns^T, in the precision of the map."""
    return jnp.einsum(
        "Hh,...hw,Ww->...HW",
        jnp.asarray(rows, map.dtype),
        map,
        jnp.asarray(columns, map.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )


def linear_matrix(positions: Float[np.ndarray, " T"], size: int) -> Float[np.ndarray, "T size"]:
    """Weights (float64) that read a signal of `size` samples at fractional `positions`, clamped to its ends."""
    positions = np.clip(positions, 0, size - 1)
    left = np.minimum(np.floor(positions).astype(int), max(size - 2, 0))
    right = np.minimum(left + 1, size - 1)
    matrix = np.zeros((len(positions), size))
    rows = np.arange(len(positions))
    np.add.at(matrix, (rows, left), 1 - (positions - left))
    np.add.at(matrix, (rows, right), positions - left)
    return matrix


def aligned_corners(size: int, target: int) -> Float[np.ndarray, "target size"]:
    """From `size` to `target` points whose first and last points coincide (torch `align_corners=True`)."""
    return linear_matrix(np.linspace(0.0, size - 1.0, target), size)


def tiles(cells: int, target: int) -> Float[np.ndarray, "target cells"]:
    """From `cells` to `target` equal tiles of one line (torch `align_corners=False`, no antialiasing)."""
    return linear_matrix((np.arange(target) + 0.5) * cells / target - 0.5, cells)


def strided_cells(cells: int, stride: int, target: int, side: int) -> Float[np.ndarray, "target cells"]:
    """From cells centred on samples 0, stride, 2 * stride ... of a line of `side` samples to `target` tiles of it.

    That is how strided convolutions with symmetric padding lay out what they compute.
    """
    return linear_matrix(((np.arange(target) + 0.5) * side / target - 0.5) / stride, cells)
