"""The square that a model reads, from a file or a grey array."""

import os
from typing import get_args

import numpy as np
from jaxtyping import UInt8

from afloc_jax.errors import UsageError
from data_pipelines.constants import Equalization, Framing, GreyRule
from data_pipelines.images import Geometry, crop_to_square, equalized, read_image

ImageInput = str | os.PathLike[str] | np.ndarray


def to_square(
    image: ImageInput,
    size: int,
    framing: Framing = "pad",
    rule: GreyRule = "luma",
    equalize: Equalization = "none",
) -> tuple[UInt8[np.ndarray, "{size} {size}"], Geometry]:
    """The square [size, size] uint8 of a file or grey array, and the geometry that maps the padded square back."""
    if isinstance(image, str | os.PathLike):
        image = read_image(os.fspath(image), rule)
    image = np.asarray(image)
    if image.ndim != 2 or image.dtype != np.uint8:
        raise UsageError(f"an image array must be grey uint8 [H, W], got {image.dtype} {list(image.shape)}")
    geometry = Geometry(image.shape[0], image.shape[1], size)
    image = equalized(image, equalize)
    if framing not in get_args(Framing):
        raise UsageError(f"unknown framing {framing!r}; there are {', '.join(get_args(Framing))}")
    return crop_to_square(image, size) if framing == "crop" else geometry.to_square(image), geometry
