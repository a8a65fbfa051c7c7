"""Whole slides: TIFF pyramids of gigapixels, of which one small level is read and the rest stays on the disk."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin

from data_pipelines.images import SMALLEST_SIDE, ImageError, grey

LARGEST_LEVEL = 64_000_000  # pixels that are decoded at once: 192 MB of colour for each worker of a build
_SAME_SHAPE = 0.02  # pyramids round their levels; labels and macro photographs in the same file differ by far more


def read_slide(path: str | Path, side: int) -> UInt8[np.ndarray, "H W"]:
    """One level of a pyramid TIFF as `read_image` gives it: luma, uint8, [height, width] of that level.

    It is the smallest level whose longest side has at least `side` pixels, or the largest level where none has. Levels
    are the pages of the file that have the shape of its first page. A plain TIFF is a pyramid of one level.

    Raises:
        ImageError: the file is missing, damaged or no TIFF, or the level is larger than LARGEST_LEVEL pixels, which
            happens to slides that hold full resolution alone.
    """
    path = Path(path)
    try:
        # Not Image.open: it refuses a file by the size of its first page, which is never decoded here.
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
            return grey(slide)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{path.name}: no such file in {path.parent}") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError(f"{path.name}: damaged, or no TIFF ({type(error).__name__}: {error})") from None


def _levels(slide: Image.Image) -> Iterator[tuple[int, tuple[int, int]]]:
    """Page number -> width and height of each level."""
    base = slide.size
    for page in range(getattr(slide, "n_frames", 1)):
        slide.seek(page)
        width, height = slide.size
        # One pixel of rounding is much in a level of a few pixels.
        if abs(width * base[1] / (height * base[0]) - 1) <= _SAME_SHAPE + 1 / min(width, height):
            yield page, (width, height)
