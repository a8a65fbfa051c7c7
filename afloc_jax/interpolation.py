"""Interpolation along one axis as a matrix. Models and heat maps are resized by matrix products."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize(
    map: Float[Array, "*b h w"], rows: Float[Array | np.ndarray, "H h"], columns: Float[Array | np.ndarray, "W w"]
) -> Float[Array, "*b H W"]:
    """`rows @ map @ columns.T` over the last two axes, in the precision of the map."""
    return jnp.einsum(
        "Hh,...hw,Ww->...HW",
        jnp.asarray(rows, map.dtype),
        map,
        jnp.asarray(columns, map.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )


def linear_matrix(positions: Float[np.ndarray, " T"], size: int) -> Float[np.ndarray, "T size"]:
    """The float64 matrix that reads a signal of `size` samples at fractional `positions`, clamped to its ends.

    >>> linear_matrix(np.array([0.0, 0.25, 7.0]), 3)
    array([[1.  , 0.  , 0.  ],
           [0.75, 0.25, 0.  ],
           [0.  , 0.  , 1.  ]])
    """
    positions = np.clip(positions, 0, size - 1)
    left = np.minimum(np.floor(positions).astype(int), max(size - 2, 0))
    right = np.minimum(left + 1, size - 1)
    matrix = np.zeros((len(positions), size))
    rows = np.arange(len(positions))
    np.add.at(matrix, (rows, left), 1 - (positions - left))
    np.add.at(matrix, (rows, right), positions - left)
    return matrix


def aligned_corners(size: int, target: int) -> Float[np.ndarray, "target size"]:
    """The matrix from `size` to `target` points with the same first and last point (PyTorch's `align_corners=True`).

    >>> aligned_corners(2, 3)
    array([[1. , 0. ],
           [0.5, 0.5],
           [0. , 1. ]])
    """
    return linear_matrix(np.linspace(0.0, size - 1.0, target), size)


def tiles(cells: int, target: int) -> Float[np.ndarray, "target cells"]:
    """The matrix from `cells` to `target` equal tiles of a line (PyTorch's `align_corners=False`, not antialiased).

    >>> tiles(2, 4)
    array([[1.  , 0.  ],
           [0.75, 0.25],
           [0.25, 0.75],
           [0.  , 1.  ]])
    """
    return linear_matrix((np.arange(target) + 0.5) * cells / target - 0.5, cells)


def cubic(cells: int, target: int, *, antialias: bool = False) -> Float[np.ndarray, "target cells"]:
    """The bicubic matrix from `cells` to `target` equal tiles of a line (PyTorch's `align_corners=False`).

    The kernel is that of Keys with a = -0.75, whose four taps are clamped to the ends. With `antialias` a is -0.5 (as
    in Pillow), the kernel is as wide as a tile of the target where that is larger, and taps beyond the ends are left
    out.
    """
    scale = cells / target
    stretch, a = (max(scale, 1.0), -0.5) if antialias else (1.0, -0.75)
    # Taps lie at the middles of cells; counted from 0, the middle of cell k lies at k.
    centres = (np.arange(target) + 0.5) * scale - 0.5
    reach = int(np.ceil(2 * stretch))
    taps = np.floor(centres)[:, None].astype(int) + np.arange(-reach, reach + 2)
    distance = np.abs(taps - centres[:, None]) / stretch
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    if antialias:
        weights *= (taps >= 0) & (taps < cells)
        weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((target, cells))
    np.add.at(matrix, (np.arange(target)[:, None], np.clip(taps, 0, cells - 1)), weights)
    return matrix


def strided_cells(cells: int, stride: int, target: int, side: int) -> Float[np.ndarray, "target cells"]:
    """The matrix from cells centred on samples 0, stride, 2 stride, ... of a line of `side` samples to `target` tiles.

    The outputs of strided convolutions with symmetric padding are centred in this way.
    """
    return linear_matrix(((np.arange(target) + 0.5) * side / target - 0.5) / stride, cells)
