"""Records from items: the image and its regions are decoded, checked and mapped to the square."""

from dataclasses import dataclass
from functools import reduce

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from data_pipelines.building.items import AnnotatedFinding, Item
from data_pipelines.constants import Equalization, GreyRule
from data_pipelines.images import LARGEST_PIXELS, Geometry, ImageError, encode_png, equalized, read_image
from data_pipelines.records import Finding, Record
from data_pipelines.regions import Box, MaskFile, RelativeBox, run_lengths
from data_pipelines.slides import read_slide


@dataclass(frozen=True)
class Decoding:
    """How all items of a build are decoded: arguments of `ingest.FolderBuilder`. Levels of slides are always luma."""

    image_size: int
    grey: GreyRule = "luma"
    equalize: Equalization = "none"


def example(item: Item, how: Decoding) -> Record | ImageError:
    """The record of an item. An ImageError is returned, not raised, so that it passes between threads as a value."""
    if item.fault:
        return ImageError(item.fault)
    try:
        image = read_slide(item.image, how.image_size) if item.slide else read_image(item.image, how.grey)
        image = equalized(image, how.equalize)
        geometry = Geometry(image.shape[0], image.shape[1], how.image_size)
        annotated = _annotated(item, geometry)
        findings = [_finding(finding, geometry, annotated) for finding in item.findings]
        return _record(item, image, geometry, findings, how)
    except ImageError as error:
        return error
    except Exception as error:  # whatever an image or its annotations are, they cost one record and not the build
        return ImageError(f"{item.image.name}: cannot be used ({type(error).__name__})")


def _record(
    item: Item, image: UInt8[np.ndarray, "H W"], geometry: Geometry, findings: list[Finding], how: Decoding
) -> Record:
    """Raises ImageError for texts that UTF-8 cannot write, such as half of a surrogate pair from JSON."""
    texts = [item.id, item.view, *item.sentences, *item.sections.values(), *item.labels]
    try:
        "".join([*texts, *(part for finding in findings for part in (finding.label, finding.prompt))]).encode()
    except UnicodeEncodeError:
        raise ImageError(f"{item.image.name}: a text with letters that do not exist") from None
    return Record(
        id=item.id,
        image=geometry.to_square(image),
        sentences=item.sentences,
        impression_count=item.impression_count,
        patient=item.patient,
        view=item.view,
        height=geometry.height,
        width=geometry.width,
        findings=findings,
        study=item.study,
        labels=item.labels,
        sections=item.sections,
    )


def rejection(item: Item, error: ImageError) -> str:
    """The reason why an item has no record, without the name of its image, which the account states itself."""
    return str(error).removeprefix(f"{item.image.name}: ")


def shown(item: Item, reason: str) -> str:
    """What an error says about the rejection of an item: its place in a table, and no name of a file."""
    regions = (region for finding in item.findings for region in finding.regions)
    names = [item.image.name, *(region.path.name for region in regions if isinstance(region, MaskFile))]
    for name in names:
        reason = reason.replace(f"{name}: ", "")
    reason = reason.replace(f" in {item.image.parent}", "")
    return reason if reason.startswith(item.place) else f"{item.place}: {reason}"


def boxes_outside(record: Record) -> int:
    """The number of boxes of a record that reach beyond its image. Their masks are cut at its border."""
    boxes = (Box(*box) for finding in record.findings for box in finding.boxes)
    return sum(box.reaches_beyond(record.height, record.width) for box in boxes)


def only_grey(record: Record) -> int | None:
    """The grey value of a record's image if all of its pixels have the same one, as in a failed export; else None."""
    pixels = record.geometry.inner(record.image)
    lowest = int(pixels.min())
    return lowest if lowest == int(pixels.max()) else None


def _annotated(item: Item, image: Geometry) -> Geometry:
    """The geometry of the image that the regions of an item were drawn on: that of `image`, or of a larger or smaller
    copy of it, which has the same square.

    Raises ImageError if the two differ by more than a resize that keeps the aspect.
    """
    if item.annotated_size is None or not item.findings:
        return image
    width, height = item.annotated_size
    possible = min(width, height) >= 1 and width * height <= LARGEST_PIXELS
    if not possible or not _is_resized(width, height, image.width, image.height):
        raise ImageError(
            f"{item.image.name}: its annotations are for an image of {width} x {height} pixels; this one has "
            f"{image.width} x {image.height}, which is no plain resize of it"
        )
    return Geometry(height, width, image.side)


def _is_resized(width: int, height: int, new_width: int, new_height: int) -> bool:
    """Whether one factor gives both new sides, each rounded to a whole pixel, up or down."""
    sides = ((width, new_width), (height, new_height))
    return max((new - 1) / old for old, new in sides) < min((new + 1) / old for old, new in sides)


def _on_image(mask: Bool[np.ndarray, "_ _"], image: Geometry) -> Bool[np.ndarray, "_ _"]:
    """The mask of the annotated image on its resized copy: pixels of which at least half is covered."""
    if mask.shape == (image.height, image.width):
        return mask
    coverage = cv2.resize(mask.astype(np.float32), (image.width, image.height), interpolation=cv2.INTER_AREA)
    return np.asarray(coverage >= min(0.5, float(coverage.max())))


def _finding(finding: AnnotatedFinding, image: Geometry, annotated: Geometry) -> Finding:
    size = (annotated.height, annotated.width)
    regions = [r.box(*size) if isinstance(r, RelativeBox) else r for r in finding.regions]
    across, down = image.width / annotated.width, image.height / annotated.height
    boxes = [region.resized(across, down) for region in regions if isinstance(region, Box)]
    masks = [region.mask(*size) for region in regions]
    united = reduce(np.logical_or, masks)
    if not united.any():
        names = ", ".join(region.path.name for region in regions if isinstance(region, MaskFile))
        raise ImageError(f"{names}: the mask is empty" if names else "the mask of a finding is empty")
    if len(boxes) == len(regions):  # only boxes: they are rounded as in the published scores
        square = reduce(np.logical_or, [box.on_square(image) for box in boxes])
    else:
        square = annotated.mask_to_square(united)
    xywh = tuple(box.xywh for box in boxes)
    runs = "" if len(boxes) == len(regions) else run_lengths(_on_image(united, image))
    return Finding(finding.label, finding.prompt, encode_png(square), xywh, finding.annotator, runs)
