"""Images cropped or stretched to a square as the image processors of Hugging Face do, and the way back."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Shaped
from numpy.typing import ArrayLike
from PIL import Image

from data_pipelines.images import LARGEST_PIXELS, Geometry, ImageError

Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
RESAMPLES: tuple[Resample, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's order


@dataclass(frozen=True)
class Frame(Geometry):
    """The mapping between an image and a square that shows its middle ("crop") or all of it, distorted ("stretch").

    To crop, the short side is scaled to `short_side` pixels (0: `side`), the long one by the same factor and rounded
    down, and the middle is cut out. Both interpolate as Pillow does, in 8 bits.

    >>> frame = Frame(height=100, width=200, side=50)
    >>> frame.inner_width, frame.left  # 100 columns, of which the first 25 are cut off
    (100, -25)
    """

    how: Literal["crop", "stretch"] = "crop"
    resample: Resample = "bicubic"
    short_side: int = 0

    @property
    def inner_height(self) -> int:
        """Rows of the scaled image, which may be more than those of the square."""
        return self._scaled(self.height, self.width)

    @property
    def inner_width(self) -> int:
        """Columns of the scaled image, which may be more than those of the square."""
        return self._scaled(self.width, self.height)

    @property
    def top(self) -> int:
        """The negative number of rows that are cut off above."""
        return -((self.inner_height - self.side) // 2)

    @property
    def left(self) -> int:
        """The negative number of columns that are cut off on the left."""
        return -((self.inner_width - self.side) // 2)

    def _scaled(self, length: int, other: int) -> int:
        if self.how == "stretch":
            return self.side
        short = self.short_side or self.side
        return short if length <= other else int(short * length / other)

    def inner(self, square: Shaped[np.ndarray, "rows columns *rest"]) -> Shaped[np.ndarray, "rows columns *rest"]:
        """All of the square, which has no padding."""
        if square.shape[:2] != (self.side, self.side):
            raise ValueError(f"expected [{self.side}, {self.side}], got {list(square.shape)}")
        return square

    def to_square(self, image: Shaped[np.ndarray, "H W"]) -> Shaped[np.ndarray, "S S"]:
        """The image [height, width], uint8 or float32, as a square [side, side] of its type.

        Raises ImageError for an image so long that it would have more pixels than any image may have when scaled.
        """
        if self.inner_height * self.inner_width > LARGEST_PIXELS:
            raise ImageError(f"an image of {self.width} x {self.height} pixels is too long to cut out its middle")
        if image.shape != (self.height, self.width):
            raise ValueError(f"this geometry is for [{self.height}, {self.width}], got {list(image.shape)}")
        number = RESAMPLES.index(self.resample)
        scaled = np.asarray(Image.fromarray(image).resize((self.inner_width, self.inner_height), number))
        return np.ascontiguousarray(scaled[-self.top :, -self.left :][: self.side, : self.side])

    def box_to_square(self, box: ArrayLike) -> Shaped[np.ndarray, " 4"]:
        """The box (x, y, width, height) from original to square pixels, as integers, each rounded down."""
        x, y, width, height = np.asarray(box, np.float64)
        corners = self.points_to_square([[x, y], [x + width, y + height]])
        return np.floor(np.concatenate([corners[0], corners[1] - corners[0]])).astype(np.int64)

    def map_to_original(self, heatmap: Shaped[np.ndarray, "rows columns"]) -> Float32[np.ndarray, "H W"]:
        """The heat map [side, side] as [height, width] float32 (bilinear, half-pixel centres).

        Pixels that the square does not show have the least value of the map.
        """
        square = np.asarray(self.inner(np.asarray(heatmap)), np.float32)
        rows, inside_rows = self._places(self.height, axis=1)
        columns, inside_columns = self._places(self.width, axis=0)
        found = _sampled(_sampled(square, rows).T, columns).T
        return np.where(inside_rows[:, None] & inside_columns, found, square.min()).astype(np.float32)

    def _places(self, length: int, axis: int) -> tuple[Float64[np.ndarray, " N"], Shaped[np.ndarray, " N"]]:
        """Where the middles of original pixels lie along an axis of the square, in samples, and whether inside it."""
        middles = np.zeros((length, 2))
        middles[:, axis] = np.arange(length) + 0.5
        places = self.points_to_square(middles)[:, axis]
        return places - 0.5, (places >= 0) & (places <= self.side)


def _sampled(array: Float32[np.ndarray, "n m"], places: Float64[np.ndarray, " N"]) -> Float32[np.ndarray, "N m"]:
    """Rows at fractional places, by linear interpolation; beyond the ends the outer rows hold."""
    places = np.clip(places, 0, len(array) - 1)
    below = np.minimum(places.astype(int), max(len(array) - 2, 0))
    share = (places - below).astype(np.float32)[:, None]
    return array[below] * (1 - share) + array[np.minimum(below + 1, len(array) - 1)] * share
