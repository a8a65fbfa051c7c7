"""The release's histogram equalisation, pixel by pixel: scikit-image's `equalize_hist` of the pixels that are not 0."""

import numpy as np


def equalize(image):
    """[H, W] uint8. 256 bins span the grey values, divided by 255, that are seen; 0 is not seen, but is mapped too."""
    values = [pixel / 255 for pixel in image.ravel().tolist()]
    seen = sorted(value for value in values if value)
    width = (seen[-1] - seen[0]) / 256
    counts = [0] * 256
    for value in seen:
        counts[min(int((value - seen[0]) / width), 255)] += 1
    middles = [seen[0] + (number + 0.5) * width for number in range(256)]
    shares = np.cumsum(counts) / len(seen)
    mapped = [int(255 * _between(value, middles, shares)) for value in values]
    return np.array(mapped, np.uint8).reshape(image.shape)


def _between(value, places, heights):
    """Linear interpolation, constant beyond both ends."""
    if value <= places[0]:
        return heights[0]
    for (left, low), (right, high) in zip(
        zip(places, heights, strict=True), zip(places[1:], heights[1:], strict=True), strict=False
    ):
        if value <= right:
            return low + (high - low) * (value - left) / (right - left)
    return heights[-1]
