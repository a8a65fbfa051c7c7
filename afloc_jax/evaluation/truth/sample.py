"""One sample of a truth file, and how its place is drawn on the padded square that is scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from afloc_jax.errors import UserError
from afloc_jax.heatmaps import boxes_from_map
from afloc_jax.settings import Json
from data_pipelines.constants import IMAGE_SIZE
from data_pipelines.images import LARGEST_PIXELS, Geometry
from data_pipelines.records import Finding, Record

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Truth:
    """One sample: an image, a phrase and the places that it describes.

    Attributes:
        id: unique, safe to print.
        label_text: the phrase (prompt); may be report text.
        category: the class the sample is averaged in.
        mask: 0 outside; inside, how many boxes of the phrase cover the pixel (1 for masks without boxes).
        image: path or id of the image as the truth file gives it.
        height, width: of the original image; 0 where unknown (heat maps must then come as squares).
        present: whether the image shows the finding at all; a negative has an empty mask.
        patient: pseudonym of the patient; empty where unknown.
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

    @property
    def key(self) -> str:
        """The key of this sample's map in a file of heat maps: image and phrase in lower case, a tab between."""
        return f"{self.image}\t{self.label_text.lower()}"


def negative(image: str, category: str, size: int = IMAGE_SIZE, height: int = 0, width: int = 0) -> Truth:
    """A sample whose image does not show the finding. All negatives of one size share their empty mask."""
    return Truth(f"{image}#{category}", category, category, empty_mask(size), image, height, width, present=False)


@lru_cache
def empty_mask(size: int) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask.setflags(write=False)
    return mask


def boxes_of(mask: UInt8[np.ndarray, "S S"]) -> UInt8[np.ndarray, "S S"]:
    """How many of the boxes around the connected parts of a mask cover each pixel. A mask of one box stays as it is."""
    boxes = np.zeros_like(mask)
    for x, y, width, height in boxes_from_map(mask, 0.5):
        boxes[y : y + height, x : x + width] += 1
    return boxes


@dataclass(frozen=True)
class Drawing:
    """How places are drawn on the padded square.

    Attributes:
        compatible: as in the release: small places may vanish.
        boxes: boxes instead of masks: where an annotation has both, its own; else those around the connected parts.
        size: side of the square, pixels.
    """

    compatible: bool = False
    boxes: bool = False
    size: int = IMAGE_SIZE

    def add_box(self, mask: UInt8[np.ndarray, "S S"], box: Sequence[float], geometry: Geometry) -> int:
        """Add 1 to the pixels that a box (x, y, width, height in original pixels) covers; how many they are.

        A box thinner than a pixel keeps one; compatible: it vanishes.
        """
        covered = mask[geometry.box_pixels(box, thinnest=0 if self.compatible else 1)]
        covered += 1
        return int(covered.size)

    def place(self, mask: np.ndarray, geometry: Geometry, touched: bool = False) -> UInt8[np.ndarray, "S S"]:
        """The place of a mask [height, width] of 0 and 1.

        Compatible: the release's area interpolation of CheXlocalize's masks rounds to whole numbers, so a pixel needs
        more than half; those of COVID Rural stay fractions, so a touched pixel is inside (`touched`).
        """
        if self.compatible:
            square = geometry.to_square(mask.astype(np.float32 if touched else np.uint8)) > 1e-5
        else:
            square = geometry.mask_to_square(mask)
        return boxes_of(square.astype(np.uint8)) if self.boxes else square.astype(np.uint8)

    def of_finding(self, record: Record, finding: Finding) -> UInt8[np.ndarray, "S S"]:
        """The place of a finding of a record: 0 outside; inside, how many of its boxes cover the pixel (1 for masks).

        Annotated boxes are drawn anew, each for itself: the stored mask is their union, which no longer says where they
        overlap or touch. They are stored as float32, so a corner within 1e-7 of a pixel's edge may fall on its other
        side. Masks were brought to the square when the record was made, half covered is inside; the release's rules for
        masks need the original ones.
        """
        stored = (np.asarray(finding.mask) > 0).astype(np.uint8)
        if not len(finding.boxes):
            return boxes_of(stored) if self.boxes else stored
        place = np.zeros_like(stored)
        for box in finding.boxes:
            self.add_box(place, box, record.geometry)
        return place

    def geometry(self, image: Mapping[str, Json], where: str) -> Geometry:
        """How an original image of an entry's `height` and `width` lies on the square. Raises UserError."""
        height, width = (get_field(image, side, int, where) for side in ("height", "width"))
        if min(height, width) < 1 or height * width > LARGEST_PIXELS:
            raise UserError(f"{where}: its size is {width} x {height}; expected 1 to {LARGEST_PIXELS:,} pixels")
        return Geometry(height, width, self.size)


def get_field(record: "Json | Mapping[str, Json]", name: str, kind: type[T], where: str) -> T:
    """A field of an entry. Raises UserError where it is missing or of another type."""
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: field `{name}` is missing or of the wrong type")
    return value
