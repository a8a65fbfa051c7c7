"""One sample of a truth file, and how its mask is drawn on the padded square that is scored."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeAlias, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from afloc_jax.errors import UserError
from afloc_jax.heatmaps import boxes_from_map
from afloc_jax.settings import Json
from data_pipelines.constants import IMAGE_SIZE
from data_pipelines.images import LARGEST_PIXELS, Geometry, ImageError
from data_pipelines.records import Finding, Record
from data_pipelines.regions import Box, CocoRuns, Region, United

T = TypeVar("T")
SquareBox: TypeAlias = tuple[float, float, float, float]
"""x, y, width and height in pixels of the square."""


@dataclass(frozen=True, eq=False)
class Truth:
    """One sample: an image, a phrase and the mask of the finding.

    Attributes:
        id: a unique id, which contains no report text and may be printed.
        label_text: the phrase (prompt), which may be report text.
        category: the class in which the sample is averaged.
        mask: the number of boxes of the phrase that cover each pixel; 0 and 1 for masks without boxes.
        image: the path or id of the image in the truth file.
        height, width: the size of the original image; 0 if unknown (heat maps must then be squares).
        present: whether the image shows the finding; a negative has an empty mask.
        patient: the pseudonym of the patient; empty if unknown.
        region: the finding in original pixels, which is drawn when it is needed; None if it is not scored there.
        boxes: its annotated boxes x, y, width, height in pixels of the square, not rounded; empty if it has none.
    """

    id: str
    label_text: str = field(repr=False)
    category: str
    mask: UInt8[np.ndarray, "S S"] = field(repr=False)
    image: str = ""
    height: int = 0
    width: int = 0
    present: bool = True
    patient: str = ""
    region: Region | None = field(default=None, repr=False)
    boxes: tuple[SquareBox, ...] = field(default=(), repr=False)

    @property
    def drawn_boxes(self) -> Float[np.ndarray, "K 4"]:
        """The annotated boxes in pixels of the square, else those around the connected parts of the mask."""
        found = self.boxes if self.boxes else boxes_from_map(self.mask, 0.5)
        return np.asarray(found, np.float64).reshape(-1, 4)

    def original_mask(self, shape: tuple[int, ...]) -> Bool[np.ndarray, "H W"]:
        """The finding in pixels of the original image, [height, width].

        `shape` is the shape of its map, which an image of unknown size has. Raises UserError if the mask does not fit.
        """
        height, width = (self.height, self.width) if self.height else shape[:2]
        if not self.present:
            return np.zeros((height, width), bool)
        if self.region is None:
            return np.asarray(self.mask > 0)
        try:
            return self.region.mask(height, width)
        except ImageError as error:
            raise UserError(f"{self.id}: {error}") from None

    @property
    def key(self) -> str:
        """The key of this sample in a file of heat maps: the image, a tab, and the phrase in lower case."""
        return f"{self.image}\t{self.label_text.lower()}"

    @property
    def image_and_class(self) -> tuple[str, str]:
        """The image of this sample and its class in lower case, by which files of masks name it."""
        return self.image, self.category.lower()


def negative(image: str, category: str, size: int = IMAGE_SIZE, height: int = 0, width: int = 0) -> Truth:
    """A sample whose image does not show the finding. All negatives of one size share their empty mask."""
    return Truth(f"{image}#{category}", category, category, empty_mask(size), image, height, width, present=False)


@lru_cache
def empty_mask(size: int) -> UInt8[np.ndarray, "size size"]:
    mask = np.zeros((size, size), np.uint8)
    mask.setflags(write=False)
    return mask


def boxes_of(mask: UInt8[np.ndarray, "S S"]) -> UInt8[np.ndarray, "S S"]:
    """The number of boxes around connected regions of a mask that cover each pixel; a mask of one box is kept."""
    boxes = np.zeros_like(mask)
    for x, y, width, height in boxes_from_map(mask, 0.5):
        boxes[y : y + height, x : x + width] += 1
    return boxes


@dataclass(frozen=True)
class Drawing:
    """How masks and boxes are drawn on the padded square.

    Attributes:
        compatible: whether to draw as the release does, where small regions may vanish.
        boxes: whether to draw boxes instead of masks: the annotated boxes, or else those around connected regions.
        size: the side of the square in pixels.
        original: whether samples keep their finding in original pixels as well (`Truth.region`).
    """

    compatible: bool = False
    boxes: bool = False
    size: int = IMAGE_SIZE
    original: bool = False

    def add_box(self, mask: UInt8[np.ndarray, "S S"], box: Sequence[float], geometry: Geometry) -> int:
        """Adds 1 to the pixels that a box (x, y, width, height in original pixels) covers; returns their number.

        A box thinner than a pixel keeps one pixel; with `compatible` it vanishes.
        """
        covered = mask[geometry.box_pixels(box, thinnest=0 if self.compatible else 1)]
        covered += 1
        return int(covered.size)

    def squared(self, boxes: Iterable[Sequence[float]], geometry: Geometry) -> tuple[SquareBox, ...]:
        """Boxes from original to square pixels, not rounded; none if masks are drawn."""
        found = []
        for x, y, width, height in boxes if self.boxes else ():
            (left, top), (right, bottom) = geometry.points_to_square([[x, y], [x + width, y + height]]).tolist()
            found.append((left, top, right - left, bottom - top))
        return tuple(found)

    def place(
        self, mask: Shaped[np.ndarray, "H W"], geometry: Geometry, touched: bool = False
    ) -> UInt8[np.ndarray, "S S"]:
        """The mask [height, width] of 0 and 1, drawn on the square.

        With `compatible` it is drawn as by the release. Its area interpolation of CheXlocalize's masks rounds to
        integers, so more than half of a pixel must be covered. Its masks of COVID Rural stay fractions, so that all
        touched pixels are inside (`touched`).
        """
        if self.compatible:
            square = geometry.to_square(mask.astype(np.float32 if touched else np.uint8)) > 1e-5
        else:
            square = geometry.mask_to_square(mask)
        return boxes_of(square.astype(np.uint8)) if self.boxes else square.astype(np.uint8)

    def of_finding(self, record: Record, finding: Finding) -> UInt8[np.ndarray, "S S"]:
        """The mask of a finding of a record: the number of its boxes that cover each pixel (0 and 1 for masks).

        Annotated boxes are drawn again, each separately, because the stored mask is their union, which does not show
        where they overlap or touch. They are stored as float32, so a corner within 1e-7 of a pixel's edge may fall on
        its other side. Masks were mapped to the square when the record was made, by the rule that half of a pixel must
        be covered; the release's rules would need the original masks.
        """
        stored = (np.asarray(finding.mask) > 0).astype(np.uint8)
        if not len(finding.boxes):
            return boxes_of(stored) if self.boxes else stored
        place = np.zeros_like(stored)
        for box in finding.boxes:
            self.add_box(place, box, record.geometry)
        return place

    def region_of_finding(self, record: Record, finding: Finding) -> Region | None:
        """The finding of a record in original pixels; None if the square is the original, or if it is not wanted.

        Raises UserError for a record that does not have it.
        """
        size = [record.height, record.width] if self.original else []
        if not size or size == [*record.image.shape]:
            return None
        if finding.runs:
            return CocoRuns({"size": size, "counts": finding.runs})
        if not len(finding.boxes):
            raise UserError(
                f"record {record.id} has no mask in original pixels, because an earlier version prepared it; remove "
                "the prepared records and prepare them again, or score --at square"
            )
        return United(tuple(Box(*box) for box in finding.boxes))

    def geometry(self, image: Mapping[str, Json], where: str) -> Geometry:
        """The geometry of an image from an entry's `height` and `width`. Raises UserError for an invalid size."""
        height, width = (get_field(image, side, int, where) for side in ("height", "width"))
        if min(height, width) < 1 or height * width > LARGEST_PIXELS:
            raise UserError(f"{where}: its size is {width} x {height}; expected 1 to {LARGEST_PIXELS:,} pixels")
        return Geometry(height, width, self.size)


def get_field(record: "Json | Mapping[str, Json]", name: str, kind: type[T], where: str) -> T:
    """A field of an entry. Raises UserError if it is missing or of another type."""
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: field `{name}` is missing or of the wrong type")
    return value
