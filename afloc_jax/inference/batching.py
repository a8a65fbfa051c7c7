"""Batches of a few fixed sizes, so that few shapes are compiled for any number of images or texts."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Shaped

from afloc_jax.levels import ImageLevels, TextLevels

Levels = TypeVar("Levels", ImageLevels, TextLevels)


def chunks(total: int, most: int) -> Iterator[tuple[slice, int, int]]:
    """For each batch its rows, their number, and the power of two (at most `most`) that they are padded to."""
    for start in range(0, total, most):
        count = min(most, total - start)
        yield slice(start, start + count), count, min(most, 1 << (count - 1).bit_length())


def pad(array: Shaped[np.ndarray, "n *s"], size: int) -> Shaped[np.ndarray, "{size} *s"]:
    """Pads to `size` rows by repeating the last row. Rows of zeros could lead to divisions by a norm of zero."""
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def trim(levels: Levels, count: int) -> Levels:
    """The first `count` rows of all arrays, as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], levels)


def concatenate(parts: Sequence[Levels]) -> Levels:
    """All batches joined along the first axis."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
