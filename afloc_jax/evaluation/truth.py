"""Where findings truly are: COCO JSON as MS-CXR ships it, RLE JSON as CheXlocalize does, or a table of mask files.

Everything is brought to the padded square on which scores are taken. Sample ids name an image and a count, never the
phrase: phrases are taken from reports and must not appear in a message.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from afloc_jax.errors import UserError
from afloc_jax.evaluation.masks import decode_segmentation
from afloc_jax.inference.heatmaps import boxes_from_map
from data_pipelines.images import LARGEST_PIXELS, Geometry, read_mask

SQUARE = 224  # side of the padded square, pixels (published protocol)


@dataclass(frozen=True, eq=False)
class Truth:
    """One sample: an image, a phrase and the places it speaks of.

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


def negative(image: str, category: str, size: int = SQUARE, height: int = 0, width: int = 0) -> Truth:
    """A sample whose image does not show the finding. All negatives of one size share their empty mask."""
    return Truth(f"{image}#{category}", category, category, _nothing(size), image, height, width, present=False)


@lru_cache
def _nothing(size: int) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    mask.setflags(write=False)
    return mask


def read_truth(
    path: str | Path, size: int = SQUARE, compatible: bool = False, *, negatives: bool = False, boxes: bool = False
) -> list[Truth]:
    """Read a truth file of any format; the content decides which. Samples come in the order of the file.

    Boxes are scaled by one factor, shifted by the padding and floored, as published. A box thinner than a pixel of the
    square keeps one pixel; in compatible mode it vanishes, as in the release. A `segmentation` (RLE or polygon) is used
    instead of the box unless it only repeats it. Masks cover the pixels of the square that they cover by half or more,
    and one too small for that keeps what it covers most; compatible: as the release resized them, see `_mask_rule`.

    A table is CSV with the columns image, mask and finding, and optionally prompt and patient. Masks are found beside
    the table or in its folder `masks`; a row without a mask is a negative. COCO JSON may give an image a `patient`.

    Args:
        path: COCO JSON, CheXlocalize's RLE JSON, or CSV.
        size: side of the padded square, pixels.
        compatible: see above.
        negatives: keep the entries that say that a finding is absent (RLE JSON and tables).
        boxes: where an annotation has a box and a segmentation, take the box; where it has a mask only, the boxes
            around its connected parts.

    Raises `UserError` naming the entry that is missing, malformed or contradictory.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        truths = _as_boxes(_read_table(path, size, compatible), boxes)
    else:
        content = read_json(path)
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            truths = _read_coco(path.name, content, size, compatible, boxes)
        elif isinstance(content, dict) and content and all(is_rle_table(entry) for entry in content.values()):
            truths = _as_boxes(_read_rle_table(path.name, content, size, compatible), boxes)
        else:
            raise UserError(
                f"{path}: neither COCO (images, annotations, categories) nor CheXlocalize segmentations "
                '({image: {class: {"size", "counts"}}}): give a truth file of one of these formats, or a CSV'
            )
    if not any(truth.present for truth in truths):
        raise UserError(f"{path}: no annotated finding in this truth file, nothing to score")
    return [truth for truth in truths if truth.present or negatives]


def _as_boxes(truths: list[Truth], boxes: bool) -> list[Truth]:
    return [replace(truth, mask=boxes_of(truth.mask)) for truth in truths] if boxes else truths


def boxes_of(mask: UInt8[np.ndarray, "S S"]) -> UInt8[np.ndarray, "S S"]:
    """How many of the boxes around the connected parts of a mask cover each pixel. A mask of one box stays as it is."""
    boxes = np.zeros_like(mask)
    for x, y, width, height in boxes_from_map(mask, 0.5):
        boxes[y : y + height, x : x + width] += 1
    return boxes


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `UserError`, whose message never quotes the content."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the truth file ({error.strerror or error})") from None
    except ValueError as error:  # not JSON or not UTF-8; the message of the decoder could quote the content
        line = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}: the truth file is not valid JSON{line}") from None


def _get(record: Any, name: str, kinds: type | tuple[type, ...], where: str) -> Any:
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise UserError(f"{where}: field `{name}` is missing or of the wrong type")
    return value


# --- COCO ---------------------------------------------------------------------------------------------------------


def _read_coco(name: str, content: Mapping[str, Any], size: int, compatible: bool, boxes: bool) -> list[Truth]:
    for part in ("images", "annotations", "categories"):
        _get(content, part, list, name)
    images = {_get(i, "id", (int, str), f"{name}, image {n}"): i for n, i in enumerate(content["images"])}
    categories = {
        _get(c, "id", (int, str), f"{name}, category {n}"): _get(c, "name", str, f"{name}, category {n}")
        for n, c in enumerate(content["categories"])
    }
    masks: dict[tuple[str, str, str], np.ndarray] = {}
    samples: dict[tuple[str, str, str], dict[str, Any]] = {}
    per_image: dict[str, int] = {}
    for position, annotation in enumerate(content["annotations"]):
        where = f"{name}, annotation {annotation.get('id', position) if isinstance(annotation, dict) else position}"
        image = images.get(_get(annotation, "image_id", (int, str), where))
        category = categories.get(_get(annotation, "category_id", (int, str), where))
        if image is None or category is None:
            raise UserError(f"{where}: its image_id or category_id is not listed in the file")
        image_path = _get(image, "path" if "path" in image else "file_name", str, f"{where}, its image")
        geometry = _geometry(image, size, f"{where}, its image")
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


def _geometry(image: Mapping[str, Any], size: int, where: str) -> Geometry:
    height, width = (_get(image, side, int, where) for side in ("height", "width"))
    if min(height, width) < 1 or height * width > LARGEST_PIXELS:
        raise UserError(f"{where}: its size is {width} x {height}; expected 1 to {LARGEST_PIXELS:,} pixels")
    return Geometry(height, width, size)


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


def add_box(mask: UInt8[np.ndarray, "S S"], box: Sequence[float], geometry: Geometry, compatible: bool) -> int:
    """Add 1 to the pixels of the square that a box (x, y, width, height in original pixels) covers; how many they are.

    The published rounding: scaled, shifted and floored. A box thinner than a pixel keeps one; compatible: it vanishes.
    """
    x, y, width, height = (int(value) for value in geometry.box_to_square(box, compatible=True))
    if not compatible:
        width, height = max(width, 1), max(height, 1)
    covered = mask[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
    covered += 1
    return int(covered.size)


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


# --- CheXlocalize -------------------------------------------------------------------------------------------------


def is_rle_table(entry: Any) -> bool:
    """Whether this is what CheXlocalize's files hold of one image: {class: {"size", "counts"}}."""
    return (
        isinstance(entry, Mapping)
        and bool(entry)
        and all(isinstance(rle, Mapping) and {"size", "counts"} <= rle.keys() for rle in entry.values())
    )


def _read_rle_table(name: str, content: Mapping[str, Any], size: int, compatible: bool) -> list[Truth]:
    """One sample per image and class; a class without a pixel is a negative."""
    truths = []
    for image, classes in content.items():
        for category, rle in classes.items():
            where = f"{name}, image {image}, class {category}"
            geometry = _geometry(size_of_rle(rle, where), size, where)
            mask = decode_segmentation(rle, geometry.height, geometry.width, where)
            if mask.any():
                square = _mask_rule(mask, geometry, compatible)
                sample_id = f"{image}#{category}"
                truths.append(Truth(sample_id, category, category, square, image, geometry.height, geometry.width))
            else:
                truths.append(negative(image, category, size, geometry.height, geometry.width))
    return truths


def size_of_rle(rle: Mapping[str, Any], where: str) -> dict[str, int]:
    """Height and width that an RLE is for. Raises `UserError` if it does not say."""
    size = rle["size"]
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) for side in size)):
        raise UserError(f"{where}: field `size` must be [height, width]")
    return {"height": size[0], "width": size[1]}


def _mask_rule(mask: np.ndarray, geometry: Geometry, compatible: bool, touched: bool = False) -> np.ndarray:
    """A mask [height, width] of 0 and 1 on the square, uint8.

    Compatible: the release's area interpolation of CheXlocalize's masks rounds to whole numbers, so a pixel needs more
    than half; those of COVID Rural stay fractions, so a touched pixel is inside (`touched`). Small lesions may vanish.
    """
    if not compatible:
        return geometry.mask_to_square(mask).astype(np.uint8)
    resized = geometry.to_square(mask.astype(np.float32 if touched else np.uint8))
    return (resized > 1e-5).astype(np.uint8)


# --- a table of mask files ----------------------------------------------------------------------------------------


def _read_table(path: Path, size: int, compatible: bool) -> list[Truth]:
    """One sample per image and phrase; several masks of one are united."""
    masks: dict[tuple[str, str, str], list[Path]] = {}
    patients: dict[str, str] = {}
    for number, row in enumerate(_rows(path), 2):
        if not (row["image"] and row["finding"]):
            raise UserError(f"{path.name}, line {number}: image or finding is empty")
        patient = row.get("patient", "")
        if patients.setdefault(row["image"], patient) != patient:
            raise UserError(f"{path.name}, line {number}: an earlier line names another patient for {row['image']}")
        files = masks.setdefault((row["image"], row.get("prompt") or row["finding"], row["finding"]), [])
        if row["mask"]:
            files += [_mask_file(path.parent, row["mask"], f"{path.name}, line {number}")]
    truths = []
    per_image: dict[str, int] = {}
    for (image, text, category), files in masks.items():
        per_image[image] = per_image.get(image, 0) + 1
        parts = [read_mask(file) for file in files]
        if len({part.shape for part in parts}) > 1:
            raise UserError(f"{path.name}: the masks of {category} on {image} differ in size")
        height, width = parts[0].shape if parts else (0, 0)
        present = any(part.any() for part in parts)
        if present:
            mask = np.any(parts, axis=0).astype(np.uint8)
            square = _mask_rule(mask, Geometry(height, width, size), compatible, touched=True)
        else:
            square = _nothing(size)
        about = (image, height, width, present, patients[image])
        truths.append(Truth(f"{image}#{per_image[image]}", text, category, square, *about))
    return truths


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            missing = {"image", "mask", "finding"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{path}: the truth table lacks the column {sorted(missing)[0]}")
            return [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
    except OSError as error:
        raise UserError(f"{path}: cannot read the truth file ({error.strerror or error})") from None
    except (csv.Error, UnicodeDecodeError, AttributeError):  # too many fields come as a list
        raise UserError(f"{path}: the truth table is not valid CSV in UTF-8") from None


def _mask_file(folder: Path, name: str, where: str) -> Path:
    for candidate in (folder / name, folder / "masks" / name):
        if candidate.is_file():
            return candidate
    raise UserError(f"{where}: no mask file {name} beside the table or in its folder masks")
