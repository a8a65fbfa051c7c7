"""Augmentation: light random changes of images, against overfitting on small data sets.

Six numbers in [-1, 1] describe the change of an image. They are drawn on the host, so that they depend on the position
in the stream alone. They are applied there (`augment`), or by the training step (`afloc_jax/training/augment.py`).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

NUMBERS = 6  # zoom, turn, brightness, contrast, shift to the right, shift down


@dataclass(frozen=True)
class Limits:
    """The largest changes.

    Attributes:
        shift: along each axis, as a fraction of the side.
        scale: relative change of size.
        rotate: in degrees.
        brightness: as a fraction of 255.
        contrast: relative change about the mean grey.
    """

    shift: float = 0.05
    scale: float = 0.1
    rotate: float = 5.0
    brightness: float = 0.1
    contrast: float = 0.1


GENTLE = Limits()


def draw(rng: np.random.Generator) -> Float64[np.ndarray, " 6"]:
    """The numbers of one image. The generator is advanced."""
    return rng.uniform(-1, 1, NUMBERS)


def augment(
    image: UInt8[np.ndarray, "S S"], numbers: Float64[np.ndarray, " 6"], limits: Limits = GENTLE
) -> UInt8[np.ndarray, "S S"]:
    """The padded square with a light shift, scale, rotation, brightness and contrast. Never flips: reports name sides.

    `numbers` are from `draw`; 1 and -1 stand for the limits.
    """
    side = image.shape[0]
    zoom, turn, dark, gain, right, down = numbers
    center = (side - 1) / 2
    matrix = cv2.getRotationMatrix2D((center, center), limits.rotate * turn, 1 + limits.scale * zoom)
    matrix[:, 2] += limits.shift * side * right, limits.shift * side * down
    moved = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR)
    mean, slope = cv2.mean(moved)[0], 1 + limits.contrast * gain
    # slope * (grey - mean) + mean + brightness, rounded and clipped to 0..255; three times as fast as a look-up table.
    cv2.addWeighted(moved, slope, moved, 0, mean * (1 - slope) + 255 * limits.brightness * dark, dst=moved)
    return np.asarray(moved, np.uint8)
