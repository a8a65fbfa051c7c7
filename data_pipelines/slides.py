"""Whole-slide images: TIFF pyramids of gigapixels, of which only one small level is read."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin

from afloc_jax.files import check_regular
from data_pipelines.images import SMALLEST_SIDE, ImageError, grey

LARGEST_LEVEL = 64_000_000  # pixels of a level: 192 MB of colour for each worker of a build
_SAME_SHAPE = 0.02  # relative difference of shape: levels are rounded; labels and macro photographs differ far more


def read_slide(path: str | Path, side: int) -> UInt8[np.ndarray, "H W"]:
    """One level of a pyramid TIFF as a grey image [height, width] uint8, with the luma of `read_image`.

    The level is the smallest one whose longest side has at least `side` pixels, or else the largest one. Levels are the
    pages of the file with the aspect ratio of its first page. A plain TIFF is a pyramid of one level.

    Raises:
        ImageError: the file is missing, damaged or not a TIFF, or the level has more than LARGEST_LEVEL pixels, as in
            slides that contain full resolution only.
    """
    path = Path(path)
    try:
        check_regular(path)
        # Image.open would refuse a file because of the size of its first page, which is not decoded here.
        with TiffImagePlugin.TiffImageFile(path) as slide:
            levels = dict(_levels(slide))
            large = [page for page, size in levels.items() if max(size) >= side]
            page = min(large, key=lambda page: max(levels[page])) if large else 0
            width, height = levels[page]
            if width * height > LARGEST_LEVEL:
                raise ImageError(
                    f"{path.name}: its smallest level of {side} pixels or more has {width} x {height}, too many to "
                    "decode; write a pyramid, for example: vips tiffsave IN OUT --tile --pyramid --compression jpeg"
                )
            if min(width, height) < SMALLEST_SIDE:
                raise ImageError(f"{path.name}: {width} x {height} pixels is too small")
            slide.seek(page)
            slide.load()
            return grey(slide, path.name)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path.name}: no such file in {path.parent}") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError(f"{path.name}: damaged, or no TIFF ({type(error).__name__}: {error})") from None


def _levels(slide: Image.Image) -> Iterator[tuple[int, tuple[int, int]]]:
    """The page number, width and height of each level."""
    base = slide.size
    for page in range(getattr(slide, "n_frames", 1)):
        slide.seek(page)
        width, height = slide.size
        # The tolerance allows one pixel of rounding, which matters in a level of few pixels.
        if abs(width * base[1] / (height * base[0]) - 1) <= _SAME_SHAPE + 1 / min(width, height):
            yield page, (width, height)
