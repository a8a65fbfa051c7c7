"""Grey pixels of whatever a caller calls an image, and the square of them that a model reads.

The rules are those of image files (`data_pipelines.images.read_image`), for commands, the page, calls from Python and
the processor of transformers: equal pixels give equal squares, wherever they come from.
"""

import io
import os
import threading
from collections.abc import Callable
from typing import Protocol, TypeAlias, get_args

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps

from afloc_jax.errors import UsageError
from data_pipelines.constants import Equalization, Framing, GreyRule
from data_pipelines.images import (
    Geometry,
    ImageError,
    crop_to_square,
    decode_image,
    eight_bits,
    equalized,
    grey,
    not_too_small,
    read_image,
)


class ArrayLike(Protocol):
    """An array of NumPy, JAX or PyTorch (on the CPU)."""

    def __array__(self) -> np.ndarray: ...


ImageInput: TypeAlias = str | os.PathLike[str] | Image.Image | ArrayLike
_DEEPER = ("int16", "uint16", "int32", "uint32")  # as deep files are decoded
_SHAPES = "grey [H, W], or [H, W, 3] of red, green and blue, or [H, W, 4] with alpha"
_DECODING = threading.Lock()  # a PIL image that was only opened is decoded when it is first used, by one thread


def pixels_of(image: ImageInput, rule: GreyRule = "luma", name: str = "image") -> UInt8[np.ndarray, "H W"]:
    """The grey pixels of an image.

    - A file (PNG, JPEG, TIFF, BMP, DICOM) is read by `read_image`.
    - A PIL image of any mode gives the pixels of a PNG file of it. With the rule "cv2" it must be of a mode that PNG
      has; a JPEG file itself has slightly other grey values by that rule.
    - An array uint8 [H, W] is taken as it is. Colours [H, W, 3] (red, green, blue) become luma (Rec. 601), and alpha
      is ignored, in [H, W, 4] and [H, W, 2].
    - An array of floats has black at 0 and white at 1, and becomes 8 bits: 255 times the value, rounded.
    - An array of 16 or 32 bits [H, W] is scaled linearly from its own minimum and maximum, as deep files are.

    Args:
        image: the image.
        rule: how files and PIL images become grey, see `read_image`.
        name: what errors call it.

    Returns:
        [H, W] uint8. It is the memory of the caller where that has this form.

    Raises:
        ImageError: a file or PIL image cannot be decoded, or a side has less than 8 pixels.
        UsageError: it is no image, or an array of another shape, type or range, or has NaN or infinity.

    >>> pixels_of(np.full((8, 9), 0.5)).max()
    np.uint8(128)
    >>> pixels_of(np.full((8, 9), 128.0))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    afloc_jax.errors.UsageError: image: floats have black at 0 and white at 1, but these reach from 128 to 128...
    """
    if isinstance(image, str | os.PathLike):
        return read_image(os.fspath(image), rule)
    if isinstance(image, Image.Image):
        return not_too_small(_of_picture(image, rule, name), name)
    if not hasattr(image, "__array__"):
        raise UsageError(f"{name} is no image but a {type(image).__name__}; give a file, a PIL image or an array")
    return _of_array(np.asarray(image), name)


def to_square(
    image: ImageInput,
    size: int,
    framing: Framing = "pad",
    rule: GreyRule = "luma",
    equalize: Equalization = "none",
    frame: Callable[[int, int], Geometry] | None = None,
) -> tuple[UInt8[np.ndarray, "{size} {size}"], Geometry]:
    """The square [size, size] uint8 of an image, and the geometry that maps the square back.

    `frame` gives that geometry from the height and width of an image; None: the padded square. With the framing "crop"
    of the published release, the geometry is not that of the square.
    """
    if framing not in get_args(Framing):
        raise UsageError(f"unknown framing {framing!r}; there are {', '.join(get_args(Framing))}")
    pixels = pixels_of(image, rule)
    height, width = pixels.shape
    geometry = frame(height, width) if frame else Geometry(height, width, size)
    pixels = equalized(pixels, equalize)
    return crop_to_square(pixels, size) if framing == "crop" else geometry.to_square(pixels), geometry


def _of_picture(image: Image.Image, rule: GreyRule, name: str) -> UInt8[np.ndarray, "H W"]:
    try:
        with _DECODING:
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise ImageError(f"{name}: the PIL image cannot be decoded ({type(error).__name__}: {error})") from None
    if rule != "cv2":
        return grey(upright, name)
    file = io.BytesIO()
    try:
        upright.save(file, "PNG")
    except OSError:
        raise UsageError(
            f"{name}: PNG has no mode {image.mode}, so OpenCV cannot read this PIL image as the release would; "
            "give the file, or image.convert('RGB')"
        ) from None
    return decode_image(file.getvalue(), f"{name}.png", rule)


def _of_array(array: Shaped[np.ndarray, "*shape"], name: str) -> UInt8[np.ndarray, "H W"]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        raise UsageError(f"{name}: an array must be {_SHAPES}; this one is {array.dtype} {list(array.shape)}")
    not_too_small(array, name)
    if array.ndim == 3 and array.shape[2] < 3:
        array = array[..., 0]
    if np.issubdtype(array.dtype, np.floating):
        array = _of_floats(array, name)
    if array.ndim == 2 and array.dtype.name in _DEEPER:
        return eight_bits(array, name)
    if array.dtype != np.uint8:
        raise UsageError(
            f"{name}: an array must be uint8, floats between 0 and 1, or grey of {', '.join(_DEEPER)}; this one is "
            f"{array.dtype} {list(array.shape)}"
        )
    return array if array.ndim == 2 else grey(Image.fromarray(np.ascontiguousarray(array[..., :3])), name)


def _of_floats(array: Shaped[np.ndarray, "*shape"], name: str) -> UInt8[np.ndarray, "*shape"]:
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise UsageError(f"{name}: the array holds NaN or infinity")
    if 255 * low <= -0.5 or 255 * high >= 255.5:  # what rounds to a grey value may lie a little beyond
        raise UsageError(
            f"{name}: floats have black at 0 and white at 1, but these reach from {low:.4g} to {high:.4g}; divide grey "
            "values of 8 bits by 255, or scale the window to show"
        )
    return np.rint(np.float32(255) * array).astype(np.uint8)
