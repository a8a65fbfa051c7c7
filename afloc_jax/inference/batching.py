"""Batches of a few fixed sizes, so that few shapes are compiled for any number and length of images and texts."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Int, Shaped

from afloc_jax.levels import ImageLevels, TextLevels

Levels = TypeVar("Levels", ImageLevels, TextLevels)
Given = TypeVar("Given")
Made = TypeVar("Made")

THREADS = min(8, os.cpu_count() or 1)  # a decoded film and its copies take up to 100 MB
_FEWEST_SLOTS = 16  # so that all short prompts take one compiled program


def in_threads(function: Callable[[Given], Made], values: Sequence[Given]) -> list[Made]:
    """The results of a function that mostly runs without the interpreter's lock, such as decoding a picture."""
    if len(values) == 1:
        return [function(values[0])]
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(function, values))


def chunks(total: int, most: int) -> Iterator[tuple[slice, int, int]]:
    """For each batch its rows, their number, and the power of two (at most `most`) that they are padded to."""
    for start in range(0, total, most):
        count = min(most, total - start)
        yield slice(start, start + count), count, min(most, 1 << (count - 1).bit_length())


def pad(array: Shaped[np.ndarray, "n *s"], size: int) -> Shaped[np.ndarray, "{size} *s"]:
    """Pads to `size` rows by repeating the last row. Rows of zeros could lead to divisions by a norm of zero."""
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def own_slots(word_ids: Int[np.ndarray, "B L"]) -> int:
    """The token slots that B texts are cut to: those of the longest, rounded up to a power of two, and at most L.

    Attention and the layers after it take time for every slot. A prompt fills 8 of 97, a report most of them.
    """
    slots = word_ids.shape[1]
    longest = int((word_ids >= 0).sum(axis=1).max())
    return min(slots, max(_FEWEST_SLOTS, 1 << (longest - 1).bit_length()))


def trim(levels: Levels, count: int) -> Levels:
    """The first `count` rows of all arrays, as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], levels)


def concatenate(parts: Sequence[Levels]) -> Levels:
    """All batches joined along the first axis."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
