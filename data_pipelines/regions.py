"""Regions of findings in the forms in which data sets store them, and their masks on the original image.

`mask(height, width)` draws a region on an image of that size. A malformed region raises `ImageError`; a build reports
the row and continues.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Integer
from pycocotools import mask as coco_mask

from afloc_jax.errors import UserError
from afloc_jax.settings import Json
from data_pipelines.images import LARGEST_PIXELS, Geometry, ImageError, read_mask

_MOST_SHIFT = 60  # bits of a compressed run length; longer ones take time that grows with the square of their digits
FAR = 1_000_000  # pixels; no radiograph is larger, and drawing code may fail for larger coordinates
LONGEST_OUTLINE = 4_000_000  # pixels of the polygons of a segmentation; each takes pycocotools a hundred bytes


@runtime_checkable
class Region(Protocol):
    """A part of an image."""

    def mask(self, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
        """The mask [height, width] bool. Raises ImageError if the region is malformed or belongs to another image."""
        ...


@dataclass(frozen=True)
class MaskFile:
    """An image file whose non-zero pixels are the region; with `value`, only pixels equal to it or in that range."""

    path: Path
    value: int | range | None = None

    def mask(self, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
        mask = read_mask(self.path, self.value)
        if mask.shape != (height, width):
            raise ImageError(
                f"{self.path.name}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels, its image {width} x {height}"
            )
        return mask


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the original image, with the annotated corner and size, not rounded."""

    x: float
    y: float
    width: float
    height: float

    def mask(self, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
        left, top, right, bottom = self.x, self.y, self.x + self.width, self.y + self.height
        if not all(abs(value) < FAR for value in (left, top, right, bottom)) or min(self.width, self.height) <= 0:
            raise ImageError("a box needs finite corners, a positive width and a positive height")
        mask = np.zeros((height, width), bool)
        rows = slice(max(0, round(top)), max(round(bottom), round(top) + 1, 0))
        columns = slice(max(0, round(left)), max(round(right), round(left) + 1, 0))
        if mask[rows, columns].size == 0:
            raise ImageError(f"a box lies outside its image of {width} x {height} pixels")
        mask[rows, columns] = True
        return mask

    def on_square(self, geometry: Geometry) -> Bool[np.ndarray, "S S"]:
        """The mask of the box in the padded square, with the published rounding. A thin box keeps one pixel."""
        mask = np.zeros((geometry.side, geometry.side), bool)
        mask[geometry.box_pixels(self.xywh)] = True
        return mask

    @property
    def xywh(self) -> tuple[float, float, float, float]:
        return self.x, self.y, self.width, self.height

    def resized(self, across: float, down: float) -> "Box":
        """The box on a copy of its image that is `across` times as wide and `down` times as high."""
        return Box(self.x * across, self.y * down, self.width * across, self.height * down)

    def reaches_beyond(self, height: int, width: int) -> bool:
        """Whether a part of the box, rounded to whole pixels, lies outside an image of that size."""
        right, bottom = self.x + self.width, self.y + self.height
        return min(round(self.x), round(self.y)) < 0 or round(right) > width or round(bottom) > height


@dataclass(frozen=True)
class RelativeBox:
    """A rectangle given by its corners, as fractions of the image's width and height."""

    left: float
    top: float
    right: float
    bottom: float

    def box(self, height: int, width: int) -> Box:
        """The box in pixels."""
        x, y = self.left * width, self.top * height
        return Box(x, y, self.right * width - x, self.bottom * height - y)

    def mask(self, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
        return self.box(height, width).mask(height, width)


@dataclass(frozen=True)
class Polygon:
    """A polygon through (x, y) points of the original image."""

    points: Sequence[Sequence[float]]

    def mask(self, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
        return _filled([self], height, width)

    def inside(self, height: int, width: int) -> Float64[np.ndarray, "corners 2"]:
        """The corners, moved to the edge of an image of that size where they lie outside. Raises ImageError."""
        try:
            corners = np.asarray(self.points, np.float64).reshape(-1, 2)
        except (ValueError, TypeError, OverflowError):
            corners = np.zeros((0, 2))
        # The C code of pycocotools would take all memory for NaN or very distant corners.
        if len(corners) < 3 or not (np.abs(corners) < FAR).all():
            raise ImageError(f"a polygon needs three corners or more, each within {FAR:,} pixels")
        return np.clip(corners, 0, [width, height])


@dataclass(frozen=True)
class CocoRuns:
    """COCO's RLE: {"size": [height, width], "counts": text or list}, run lengths of 0 and 1 in turn, by columns.

    >>> CocoRuns({"size": [3, 4], "counts": [4, 2, 6]}).mask(3, 4).astype(int)
    array([[0, 0, 0, 0],
           [0, 1, 0, 0],
           [0, 1, 0, 0]])
    """

    rle: dict[str, Any]

    def runs(self, height: int, width: int) -> Integer[np.ndarray, " runs"]:
        """The run lengths, checked to fill the image exactly; otherwise pycocotools would read invalid memory.

        Raises ImageError if the runs are malformed or belong to another image.
        """
        try:
            size, counts = list(self.rle["size"]), self.rle["counts"]
            runs = _runs_of_text(counts) if isinstance(counts, str) else list(counts)
        except (KeyError, TypeError, ValueError):
            raise ImageError("a segmentation is not a valid RLE (size, counts)") from None
        if size != [height, width]:
            what = f"{size} (height, width)" if self.size else "no size"
            raise ImageError(f"an RLE is for {what}, its image is [{height}, {width}]")
        if height * width > LARGEST_PIXELS or not _fill(runs, height * width):
            raise ImageError("the run lengths of an RLE do not add up to its image")
        return np.array(runs, np.int64)

    def mask(self, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
        return _drawn(self.runs(height, width), height, width)

    @property
    def size(self) -> tuple[int, int] | None:
        """The width and height of the image that the runs were drawn on; None if malformed, so that `mask` says why."""
        size = self.rle.get("size")
        if not (isinstance(size, list) and len(size) == 2 and all(_is_whole(side) for side in size)):
            return None
        return size[1], size[0]

    @property
    def empty(self) -> bool:
        """Whether the runs fill the image with zeros alone. Data sets write an absent finding in this way."""
        width, height = self.size or (0, 0)
        try:
            return not self.runs(height, width)[1::2].any()
        except ImageError:
            return False  # malformed: `mask` raises the error


@dataclass(frozen=True)
class United:
    """The union of several regions."""

    parts: tuple[Region, ...]

    def mask(self, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
        mask = np.zeros((height, width), bool)
        for part in self.parts:  # one after another: all masks together would take far more memory than the image
            mask |= part.mask(height, width)
        return mask


@dataclass(frozen=True)
class GapRuns:
    """SIIM-ACR's run lengths "gap length gap length ...", by columns.

    A gap is the number of pixels between the end of the run before and the start of this run.

    >>> GapRuns("1 2 2 1").mask(3, 3).astype(int)
    array([[0, 0, 0],
           [1, 0, 0],
           [1, 1, 0]])
    """

    text: str

    def mask(self, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
        try:
            runs = [int(word) for word in self.text.split()]
        except ValueError:  # no number, or one of more than 4,300 digits
            raise ImageError("run lengths must be whole numbers") from None
        rest = height * width - sum(runs)
        if not runs or len(runs) % 2 or not _fill([*runs, rest], height * width):
            raise ImageError("run lengths must be pairs of gap and length that fit into the image")
        return _drawn(np.array([*runs, rest], np.int64), height, width)


def _is_whole(number: Json) -> TypeGuard[int]:
    return isinstance(number, int) and not isinstance(number, bool)


def _fill(runs: Sequence[Json], pixels: int) -> bool:
    """Whether the run lengths are whole numbers that fill an image of that many pixels.

    Python's integers add up without overflow: sums of int64 wrap, and NumPy would then write beyond its array.
    """
    whole = [run for run in runs if _is_whole(run)]
    return len(whole) == len(runs) and min(whole, default=-1) >= 0 and sum(whole) == pixels


def _drawn(runs: Integer[np.ndarray, " runs"], height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width, order="F")


def _filled(polygons: Sequence[Polygon], height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
    """The union of polygons, as run lengths until its end: a mask of each would take the image's memory and time.

    Raises ImageError for a malformed polygon, for none, and for outlines that are too long together.
    """
    corners = [polygon.inside(height, width) for polygon in polygons]
    steps = (np.abs(one - np.roll(one, 1, axis=0)).max(axis=1).sum() for one in corners)
    if not corners or sum(steps) > LONGEST_OUTLINE:
        raise ImageError(f"polygons need an outline, of at most {LONGEST_OUTLINE:,} pixels together")
    parts = coco_mask.frPyObjects([one.ravel().tolist() for one in corners], height, width)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)


def run_lengths(mask: Bool[np.ndarray, "H W"]) -> str:
    """The mask as COCO's compressed run lengths, the `counts` of a `CocoRuns`."""
    return str(coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"], "ascii")


def _runs_of_text(text: str) -> list[int]:
    """COCO's compressed run lengths: base 32, lowest digit first; from the fourth on, less the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise ValueError("not a character of a compressed RLE")
        if shift > _MOST_SHIFT:
            raise ValueError("a run length of too many digits")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:  # more digits follow
            continue
        if digit & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


def decode_segmentation(segmentation: Any, height: int, width: int, where: str) -> np.ndarray:
    """The mask of an RLE (compressed or not) or of polygons, [height, width] uint8 of 0 and 1, equal to pycocotools'.

    Raises UserError, which begins with `where`, for a malformed segmentation.
    """
    try:
        if isinstance(segmentation, Mapping):
            return CocoRuns(dict(segmentation)).mask(height, width).astype(np.uint8)
        return _filled([Polygon(polygon) for polygon in segmentation], height, width).astype(np.uint8)
    except ImageError as error:
        raise UserError(f"{where}: {error}") from None
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: its segmentation is neither an RLE nor a list of polygons") from None


@dataclass(frozen=True)
class Segmentation:
    """The region of a COCO annotation, see `decode_segmentation`."""

    content: Json
    where: str

    def mask(self, height: int, width: int) -> Bool[np.ndarray, "{height} {width}"]:
        return decode_segmentation(self.content, height, width, self.where) > 0
