"""MS-CXR's COCO JSON: images, annotations with a bbox or a segmentation, categories."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace

import numpy as np
from jaxtyping import UInt8

from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth.sample import Drawing, SquareBox, Truth, boxes_of, get_field
from afloc_jax.settings import Json
from data_pipelines.images import LARGEST_PIXELS, Geometry
from data_pipelines.regions import Box, Region, Segmentation, United, decode_segmentation

MOST_REGIONS = 255  # of a phrase on one pixel
PARTS = ("images", "annotations", "categories")


def is_coco(content: Json) -> bool:
    """Whether a file has this format."""
    return isinstance(content, dict) and content.keys() >= set(PARTS)


def read_coco(name: str, content: Json, drawing: Drawing) -> list[Truth]:
    """One sample per image, phrase and category, with all its annotations. Raises UserError for a malformed entry.

    A phrase with empty boxes alone is a negative.
    """
    listed, annotations, classes = (get_field(content, part, list, name) for part in PARTS)
    images = {_id(image, "id", f"{name}, image {n}"): image for n, image in enumerate(listed)}
    if len(images) < len(listed):
        raise UserError(f"{name}: {len(listed) - len(images)} images have the id of another image")
    categories = {
        _id(entry, "id", f"{name}, category {n}"): get_field(entry, "name", str, f"{name}, category {n}")
        for n, entry in enumerate(classes)
    }
    if len(categories) < len(classes):
        raise UserError(f"{name}: {len(classes) - len(categories)} categories have the id of another category")
    samples: dict[tuple[str, str, str], Truth] = {}
    regions: dict[tuple[str, str, str], list[Region]] = {}
    per_image: dict[str, int] = {}
    first: dict[int | str, int] = {}  # the annotation that has an id
    for position, annotation in enumerate(annotations):
        number = annotation.get("id") if isinstance(annotation, dict) else None
        if isinstance(number, int | str) and first.setdefault(number, position) != position:
            raise UserError(f"{name}, annotation {position}: it has the id of annotation {first[number]} (from 0)")
        where = f"{name}, annotation {position if number is None or not isinstance(number, int) else number}"
        image = images.get(_id(annotation, "image_id", where))
        category = categories.get(_id(annotation, "category_id", where))
        if image is None or category is None:
            raise UserError(f"{where}: its image_id or category_id is not listed in the file")
        path = get_field(image, "path" if "path" in image else "file_name", str, f"{where}, its image")
        geometry = drawing.geometry(image, f"{where}, its image")
        text = annotation.get("label_text") or category
        if not isinstance(text, str):
            raise UserError(f"{where}: field `label_text` must be text")
        key = (path, text.lower(), category)
        if key not in samples:
            number = per_image[path] = per_image.get(path, -1) + 1  # from 0, as the findings of a record
            patient = _patient(image.get("patient"), f"{where}, its image")
            sample_id, mask = f"{path}#{number}", np.zeros((drawing.size, drawing.size), np.uint8)
            about = (path, geometry.height, geometry.width)
            samples[key] = Truth(sample_id, text, category, mask, *about, patient=patient)
        if annotation.get("bbox") == [] and not annotation.get("segmentation"):
            continue  # the phrase has no box
        regions.setdefault(key, []).append(_add_region(samples[key].mask, annotation, geometry, drawing, where))
    for key in samples.keys() - regions.keys():
        samples[key] = replace(samples[key], present=False)
        regions[key] = []
    if drawing.original:
        return [replace(sample, region=United(tuple(regions[key]))) for key, sample in samples.items()]
    return [replace(sample, boxes=_boxes(regions[key], sample, drawing)) for key, sample in samples.items()]


def _boxes(regions: Sequence[Region], sample: Truth, drawing: Drawing) -> tuple[SquareBox, ...]:
    """The boxes of a sample whose annotations are all boxes, else none: those of masks follow from its mask."""
    boxes = [region for region in regions if isinstance(region, Box)]
    geometry = Geometry(sample.height, sample.width, drawing.size)
    return drawing.squared([astuple(box) for box in boxes], geometry) if len(boxes) == len(regions) else ()


def _id(entry: Json, name: str, where: str) -> int | str:
    """An id, which is an integer or a text."""
    value = entry.get(name) if isinstance(entry, Mapping) else None
    return value if isinstance(value, str) else get_field(entry, name, int, where)


def _patient(value: Json, where: str) -> str:
    """The pseudonym of a patient, which may be a number in the file; empty if there is none."""
    if value is not None and (not isinstance(value, (str, int)) or isinstance(value, bool)):
        raise UserError(f"{where}: field `patient` must be text or a whole number")
    return "" if value is None else str(value).strip()


def _add_region(
    mask: np.ndarray, annotation: Mapping[str, Json], geometry: Geometry, drawing: Drawing, where: str
) -> Region:
    """Adds the region of an annotation to the mask of its sample, and returns it."""
    box = _box(annotation.get("bbox"), where)
    segmentation = annotation.get("segmentation")
    if segmentation and not (box is not None and (drawing.boxes or _repeats_box(segmentation, box))):
        region = decode_segmentation(segmentation, geometry.height, geometry.width, where)
        if not region.any() and not drawing.compatible:
            raise UserError(f'{where}: its segmentation covers no pixel; write "bbox": [] alone for an absent finding')
        region = geometry.mask_to_square(region).astype(np.uint8)
        _count(mask, boxes_of(region) if drawing.boxes else region, where)
        return Segmentation(segmentation, where)
    if box is None:
        raise UserError(f"{where}: it has neither a bbox nor a segmentation")
    x, y, width, height = box
    outside = x >= geometry.width or y >= geometry.height or x + width <= 0 or y + height <= 0
    covered = np.zeros_like(mask)
    if (not drawing.add_box(covered, box, geometry) or outside) and not drawing.compatible:
        raise UserError(f"{where}: its box lies outside its image of {geometry.width} x {geometry.height} pixels")
    _count(mask, covered, where)
    return Box(*box)


def _count(mask: UInt8[np.ndarray, "S S"], covered: UInt8[np.ndarray, "S S"], where: str) -> None:
    """Adds the pixels that a region covers to the counts of its sample, which have a byte."""
    if (mask.astype(np.uint16) + covered).max() > MOST_REGIONS:
        raise UserError(f"{where}: more than {MOST_REGIONS} regions of its phrase cover one pixel of its image")
    mask += covered


def _box(box: Json, where: str) -> list[float] | None:
    """The x, y, width and height of an annotation, or None if it has no box."""
    if box is None:
        return None
    numbers = (
        [side for side in box if isinstance(side, (int, float)) and not isinstance(side, bool)]
        if isinstance(box, list)
        else []
    )
    near = all(abs(side) < LARGEST_PIXELS for side in numbers)
    if not (isinstance(box, list) and len(numbers) == len(box) == 4 and near and min(numbers[2:]) > 0):
        raise UserError(f"{where}: bbox must be [x, y, width, height] with a positive width and height")
    return numbers


def _repeats_box(segmentation: Json, box: Sequence[float]) -> bool:
    """Whether a polygon is the box itself. The truth is then the box, with the published rounding."""
    if not (isinstance(segmentation, list) and len(segmentation) == 1):
        return False
    try:
        points = np.asarray(segmentation[0], np.float64).reshape(-1, 2)
    except (ValueError, TypeError, OverflowError):
        return False
    if len(points) not in (4, 5):  # the first corner may be repeated
        return False
    x, y, width, height = box
    corners = {(x, y), (x + width, y), (x, y + height), (x + width, y + height)}
    matched = {corner for corner in corners if (np.abs(points - corner) <= 1).all(axis=1).any()}
    return matched == corners
