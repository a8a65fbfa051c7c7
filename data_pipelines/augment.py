"""Augmentation: light random changes of images, against overfitting on small data sets."""

import cv2
import numpy as np
from jaxtyping import UInt8


def augment(
    image: UInt8[np.ndarray, "S S"],
    rng: np.random.Generator,
    *,
    shift: float = 0.05,
    scale: float = 0.1,
    rotate: float = 5.0,
    brightness: float = 0.1,
    contrast: float = 0.1,
) -> UInt8[np.ndarray, "S S"]:
    """The image with a light random shift, scale, rotation, brightness and contrast. Never flips: reports name sides.

    Args:
        image: the padded square.
        rng: the random generator, which is advanced.
        shift: largest shift along each axis, as a fraction of the side.
        scale: largest relative change of size.
        rotate: largest rotation in degrees.
        brightness: largest change, as a fraction of 255.
        contrast: largest relative change about the mean grey.
    """
    side = image.shape[0]
    zoom, turn, dark, gain, right, down = rng.uniform(-1, 1, 6)
    center = (side - 1) / 2
    matrix = cv2.getRotationMatrix2D((center, center), rotate * turn, 1 + scale * zoom)
    matrix[:, 2] += shift * side * right, shift * side * down
    moved = cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_LINEAR)
    mean, slope = cv2.mean(moved)[0], 1 + contrast * gain
    # slope * (grey - mean) + mean + brightness, rounded and clipped to 0..255; three times as fast as a look-up table.
    cv2.addWeighted(moved, slope, moved, 0, mean * (1 - slope) + 255 * brightness * dark, dst=moved)
    return np.asarray(moved, np.uint8)
