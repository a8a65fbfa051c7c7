"""Batches of a few sizes, so that a few shapes are compiled however many images or texts come."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np

from afloc_jax.levels import ImageLevels, TextLevels

Levels = TypeVar("Levels", ImageLevels, TextLevels)


def chunks(total: int, most: int) -> Iterator[tuple[slice, int, int]]:
    """Rows of each batch, how many they are, and the power of two (at most `most`) that they are padded to."""
    for start in range(0, total, most):
        count = min(most, total - start)
        yield slice(start, start + count), count, min(most, 1 << (count - 1).bit_length())


def pad(array: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last row until there are `size` rows: no row of zeros that a norm could divide by."""
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def trim(levels: Levels, count: int) -> Levels:
    """The first `count` rows, as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], levels)


def concatenate(parts: Sequence[Levels]) -> Levels:
    """The batches as one."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
