"""COCO JSON as MS-CXR ships it: images, annotations with a bbox or a segmentation, categories."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth.sample import Truth, add_box, boxes_of, geometry_of, get_field
from data_pipelines.images import LARGEST_PIXELS, Geometry
from data_pipelines.regions import decode_segmentation


def read_coco(name: str, content: Mapping[str, Any], size: int, compatible: bool, boxes: bool) -> list[Truth]:
    for part in ("images", "annotations", "categories"):
        get_field(content, part, list, name)
    images = {get_field(i, "id", (int, str), f"{name}, image {n}"): i for n, i in enumerate(content["images"])}
    categories = {
        get_field(c, "id", (int, str), f"{name}, category {n}"): get_field(c, "name", str, f"{name}, category {n}")
        for n, c in enumerate(content["categories"])
    }
    masks: dict[tuple[str, str, str], np.ndarray] = {}
    samples: dict[tuple[str, str, str], dict[str, Any]] = {}
    per_image: dict[str, int] = {}
    for position, annotation in enumerate(content["annotations"]):
        where = f"{name}, annotation {annotation.get('id', position) if isinstance(annotation, dict) else position}"
        image = images.get(get_field(annotation, "image_id", (int, str), where))
        category = categories.get(get_field(annotation, "category_id", (int, str), where))
        if image is None or category is None:
            raise UserError(f"{where}: its image_id or category_id is not listed in the file")
        image_path = get_field(image, "path" if "path" in image else "file_name", str, f"{where}, its image")
        geometry = geometry_of(image, size, f"{where}, its image")
        text = annotation.get("label_text") or category
        if not isinstance(text, str):
            raise UserError(f"{where}: field `label_text` must be text")
        key = (image_path, text.lower(), category)
        if key not in samples:
            per_image[image_path] = per_image.get(image_path, 0) + 1
            samples[key] = {
                "id": f"{image_path}#{per_image[image_path]}",
                "label_text": text,
                "category": category,
                "image": image_path,
                "height": geometry.height,
                "width": geometry.width,
                "patient": _patient(image.get("patient"), f"{where}, its image"),
            }
            masks[key] = np.zeros((size, size), np.uint8)
        _add_region(masks[key], annotation, geometry, compatible, boxes, where)
    return [Truth(mask=masks[key], **sample) for key, sample in samples.items()]


def _patient(value: Any, where: str) -> str:
    """A pseudonym, also one that is written as a number; empty where there is none."""
    if value is not None and (not isinstance(value, (str, int)) or isinstance(value, bool)):
        raise UserError(f"{where}: field `patient` must be text or a whole number")
    return "" if value is None else str(value).strip()


def _add_region(
    mask: np.ndarray, annotation: Mapping[str, Any], geometry: Geometry, compatible: bool, boxes: bool, where: str
) -> None:
    box = annotation.get("bbox")
    if box is not None:
        usable = isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
        if not usable or not all(abs(value) < LARGEST_PIXELS for value in box) or min(box[2:]) <= 0:
            raise UserError(f"{where}: bbox must be [x, y, width, height] with a positive width and height")
    segmentation = annotation.get("segmentation")
    if segmentation and not (box is not None and (boxes or _repeats_box(segmentation, box))):
        region = decode_segmentation(segmentation, geometry.height, geometry.width, where)
        region = geometry.mask_to_square(region).astype(np.uint8)
        mask += boxes_of(region) if boxes else region
    elif box is not None:
        if not add_box(mask, box, geometry, compatible) and not compatible:
            raise UserError(f"{where}: its box lies outside its image of {geometry.width} x {geometry.height} pixels")
    else:
        raise UserError(f"{where}: it has neither a bbox nor a segmentation")


def _repeats_box(segmentation: Any, box: Sequence[float]) -> bool:
    """Whether a polygon is nothing but the box itself: then the box, in the published rounding, is the truth."""
    if not (isinstance(segmentation, list) and len(segmentation) == 1):
        return False
    try:
        points = np.asarray(segmentation[0], np.float64).reshape(-1, 2)
    except (ValueError, TypeError):
        return False
    if len(points) not in (4, 5):  # the first corner may be repeated
        return False
    x, y, width, height = box
    corners = {(x, y), (x + width, y), (x, y + height), (x + width, y + height)}
    matched = {corner for corner in corners if (np.abs(points - corner) <= 1).all(axis=1).any()}
    return matched == corners
