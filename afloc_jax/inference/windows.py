"""Sliding windows: parts of an image, each as large as the network's input, whose maps are joined by their mean.

N x N windows overlap by half. They are cut from a square of (N + 1) / 2 times the model's side, so a finding appears so
many times larger. The map at a pixel is the plain mean of the maps of the windows that cover it; a window knows nothing
of the rest of the image. Windows of one image are computed at a time.
"""

from collections.abc import Callable
from typing import TypeAlias

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

from afloc_jax.errors import UsageError

MOST = 9  # windows per side; 9 enlarge five times
Maps: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""A function (windows [W, S, S] uint8, window of each pair [P], text of each pair [P]) -> maps [P, S, S]."""


def check(windows: int) -> None:
    """Raises UsageError unless `windows` is a number of windows per side."""
    if not 1 <= windows <= MOST:
        raise UsageError(f"windows is {windows}; give 1 (the whole image) to {MOST} windows per side")


def frame_side(side: int, windows: int) -> int:
    """The side of the square from which windows of `side` pixels are cut.

    >>> frame_side(224, 1), frame_side(224, 3)
    (224, 448)
    """
    return side * (windows + 1) // 2


def windowed_maps(
    maps_of: Maps,
    squares: UInt8[np.ndarray, "B F F"],
    image_of: Int[np.ndarray, " P"],
    text_of: Int[np.ndarray, " P"],
    side: int,
    windows: int,
) -> Float[np.ndarray, "P F F"]:
    """The maps of images `image_of` and texts `text_of`, at the side of `squares`.

    Args:
        maps_of: the maps of pairs of windows and texts.
        squares: padded squares of any side; they are scaled to `frame_side`, which gains detail only if that is theirs.
        image_of, text_of: the image and the text of each pair.
        side: that of the model's square.
        windows: per side.
    """
    given, frame = squares.shape[1], frame_side(side, windows)
    starts = [(side * row // 2, side * column // 2) for row in range(windows) for column in range(windows)]
    covered = np.zeros((frame, frame), np.float32)
    for y, x in starts:
        covered[y : y + side, x : x + side] += 1
    found = np.empty((len(image_of), given, given), np.float32)
    for image in np.unique(image_of).tolist():
        square = scaled(squares[image], frame)
        parts = np.stack([square[y : y + side, x : x + side] for y, x in starts])
        own = np.flatnonzero(image_of == image)
        part_of, pair_of = np.divmod(np.arange(len(starts) * len(own)), len(own))
        maps = maps_of(parts, part_of, text_of[own][pair_of]).reshape(len(starts), len(own), side, side)
        for number, pair in enumerate(own.tolist()):
            whole = np.zeros((frame, frame), np.float32)
            for (y, x), of_part in zip(starts, maps[:, number], strict=True):
                whole[y : y + side, x : x + side] += of_part
            found[pair] = scaled(whole / covered, given)
    return found


def scaled(square: np.ndarray, side: int) -> np.ndarray:
    """The square with another side: means of areas where it becomes smaller, else bilinear."""
    if square.shape[0] == side:
        return square
    how = cv2.INTER_AREA if side < square.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(square, (side, side), interpolation=how))
