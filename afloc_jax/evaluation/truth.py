"""Where findings truly are: COCO JSON as MS-CXR ships it, RLE JSON as CheXlocalize does; and the heat maps to score.

Everything is brought to the padded square on which scores are taken. Sample ids name an image and a count, never the
phrase: phrases are taken from reports and must not appear in a message.
"""

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from pycocotools import mask as coco_mask

from afloc_jax.errors import UserError
from data_pipelines.images import LARGEST_PIXELS, Geometry

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
    """

    id: str
    label_text: str = field(repr=False)
    category: str
    mask: UInt8[np.ndarray, "S S"] = field(repr=False)
    image: str = ""
    height: int = 0
    width: int = 0

    @property
    def key(self) -> str:
        """The key of this sample's map in a file of heat maps: image and phrase in lower case, a tab between."""
        return f"{self.image}\t{self.label_text.lower()}"


def read_truth(path: str | Path, size: int = SQUARE, compatible: bool = False) -> list[Truth]:
    """Read a truth file of either format; the content decides which. Samples come in the order of the file.

    Boxes are scaled by one factor, shifted by the padding and floored, as published. A box thinner than a pixel of the
    square keeps one pixel; in compatible mode it vanishes, as in the release. A `segmentation` (RLE or polygon) is used
    instead of the box unless it only repeats it.

    Raises `UserError` naming the entry that is missing, malformed or contradictory.
    """
    path = Path(path)
    content = _read_json(path)
    if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
        truths = _read_coco(path.name, content, size, compatible)
    elif isinstance(content, dict) and content and all(_is_rle_table(entry) for entry in content.values()):
        truths = _read_rle_table(path.name, content, size)
    else:
        raise UserError(
            f"{path}: neither COCO (images, annotations, categories) nor CheXlocalize segmentations "
            '({image: {class: {"size", "counts"}}}): give a truth file of one of these formats'
        )
    if not truths:
        raise UserError(f"{path}: no annotated finding in this truth file, nothing to score")
    return truths


def _read_json(path: Path) -> Any:
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


def _read_coco(name: str, content: Mapping[str, Any], size: int, compatible: bool) -> list[Truth]:
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
            }
            masks[key] = np.zeros((size, size), np.uint8)
        _add_region(masks[key], annotation, geometry, compatible, where)
    return [Truth(mask=masks[key], **sample) for key, sample in samples.items()]


def _geometry(image: Mapping[str, Any], size: int, where: str) -> Geometry:
    height, width = (_get(image, side, int, where) for side in ("height", "width"))
    if min(height, width) < 1 or height * width > LARGEST_PIXELS:
        raise UserError(f"{where}: its size is {width} x {height}; expected 1 to {LARGEST_PIXELS:,} pixels")
    return Geometry(height, width, size)


def _add_region(
    mask: np.ndarray, annotation: Mapping[str, Any], geometry: Geometry, compatible: bool, where: str
) -> None:
    box = annotation.get("bbox")
    if box is not None:
        usable = isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
        if not usable or not all(abs(value) < LARGEST_PIXELS for value in box) or min(box[2:]) <= 0:
            raise UserError(f"{where}: bbox must be [x, y, width, height] with a positive width and height")
    segmentation = annotation.get("segmentation")
    if segmentation and not (box is not None and _repeats_box(segmentation, box)):
        mask += geometry.mask_to_square(_decode(segmentation, geometry, where))
    elif box is not None:
        x, y, width, height = (int(value) for value in geometry.box_to_square(box, compatible=True))
        if not compatible:
            width, height = max(width, 1), max(height, 1)
        covered = mask[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)]
        if covered.size == 0 and not compatible:
            raise UserError(f"{where}: its box lies outside its image of {geometry.width} x {geometry.height} pixels")
        covered += 1
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


def _decode(segmentation: Any, geometry: Geometry, where: str) -> np.ndarray:
    """RLE (compressed or not) or polygons -> [height, width] mask at the image's size."""
    height, width = geometry.height, geometry.width
    try:
        if isinstance(segmentation, Mapping):
            if list(segmentation["size"]) != [height, width]:
                raise UserError(f"{where}: its RLE is for {list(segmentation['size'])}, its image [{height}, {width}]")
            return _decode_rle(segmentation["counts"], height, width)
        # Checked before it reaches pycocotools, whose C code meets NaN or far-off corners with all of the memory.
        polygons = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
        if not all(len(polygon) >= 3 and np.isfinite(polygon).all() for polygon in polygons):
            raise ValueError("a polygon needs three corners or more")
        inside = [np.clip(polygon, 0, [width, height]).ravel().tolist() for polygon in polygons]
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(inside, height, width)))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{where}: its segmentation is neither a valid RLE nor a list of polygons") from None


def _decode_rle(counts: str | list[int], height: int, width: int) -> np.ndarray:
    """Run lengths of 0 and 1 in turn, down the columns. pycocotools reads past runs that do not fill the image."""
    runs = np.array(_runs_of_string(counts) if isinstance(counts, str) else counts)
    if runs.ndim != 1 or runs.dtype.kind != "i" or (runs < 0).any() or runs.sum() != height * width:
        raise ValueError("the run lengths do not add up to the image")
    return np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(height, width, order="F")


def _runs_of_string(text: str) -> list[int]:
    """COCO's compressed run lengths: base 32, least digit first; from the fourth on, difference to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise ValueError("not a character of a compressed RLE")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:  # more digits follow
            continue
        if digit & 16:  # negative
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs


# --- CheXlocalize -------------------------------------------------------------------------------------------------


def _is_rle_table(entry: Any) -> bool:
    return (
        isinstance(entry, Mapping)
        and bool(entry)
        and all(isinstance(rle, Mapping) and {"size", "counts"} <= rle.keys() for rle in entry.values())
    )


def _read_rle_table(name: str, content: Mapping[str, Any], size: int) -> list[Truth]:
    """One sample per image and class with a mask; classes without a pixel are negatives and left out."""
    truths = []
    for image, classes in content.items():
        for category, rle in classes.items():
            where = f"{name}, image {image}, class {category}"
            rle_size = rle["size"]
            if not (isinstance(rle_size, list) and len(rle_size) == 2 and all(isinstance(s, int) for s in rle_size)):
                raise UserError(f"{where}: field `size` must be [height, width]")
            geometry = _geometry({"height": rle_size[0], "width": rle_size[1]}, size, where)
            mask = _decode(rle, geometry, where)
            if mask.any():
                square = geometry.mask_to_square(mask).astype(np.uint8)
                sample_id = f"{image}#{category}"
                truths.append(Truth(sample_id, category, category, square, image, geometry.height, geometry.width))
    return truths


# --- heat maps ----------------------------------------------------------------------------------------------------


_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # what numpy raises for a bad archive


class HeatmapFile:
    """An .npz of heat maps, keyed as `Truth.key`; maps are read one at a time."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = np.load(self.path, allow_pickle=False)
        except _UNREADABLE as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "not an .npz archive"
            raise UserError(f"{self.path}: cannot read the heat maps ({reason})") from None
        if not isinstance(self._file, np.lib.npyio.NpzFile):
            raise UserError(f"{self.path}: one bare array; heat maps come as an .npz with a key for each sample")
        self._keys = {self._fold(key): key for key in self._file.files}

    @staticmethod
    def _fold(key: str) -> str:
        image, tab, text = key.partition("\t")
        return image + tab + text.lower()

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, truths: Sequence[Truth]) -> None:
        """Raise `UserError` unless there is a map for every sample."""
        missing = [truth for truth in truths if truth.key not in self._keys]
        if missing:
            first = ", ".join(f"{truth.id} ({truth.category})" for truth in missing[:3])
            raise UserError(
                f"{self.path}: no heat map for {len(missing)} of {len(truths)} samples, first: {first}; "
                "keys must be the image path, a tab, and the label_text in lower case"
            )

    def maps(self, truths: Sequence[Truth]) -> Iterator[Float[np.ndarray, "S S"]]:
        """The map of each sample on its square, in order. Raises `UserError` for a map of another shape."""
        for truth in truths:
            try:
                heatmap = self._file[self._keys[truth.key]]
            except _UNREADABLE:
                raise UserError(f"{self.path}: the map of {truth.id} is damaged or not an array of numbers") from None
            yield map_to_square(heatmap, truth, str(self.path))


def map_to_square(heatmap: np.ndarray, truth: Truth, where: str = "heat maps") -> Float[np.ndarray, "S S"]:
    """A map that is the square already is returned as it is; one of the original size is scaled and padded.

    The padding, where there is no image, takes the map's minimum: it neither wins the pointing game nor is predicted.
    """
    size = truth.mask.shape[0]
    if heatmap.dtype.kind not in "fiub":
        raise UserError(f"{where}: the map of {truth.id} has type {heatmap.dtype}; it must hold real numbers")
    if heatmap.shape == (size, size):
        return heatmap
    if not truth.height or heatmap.shape != (truth.height, truth.width):
        own = f" or {(truth.height, truth.width)}, the image's own size" if truth.height else ""
        raise UserError(f"{where}: the map of {truth.id} has shape {heatmap.shape}; expected {(size, size)}{own}")
    geometry = Geometry(truth.height, truth.width, size)
    heatmap = heatmap.astype(np.float32)
    square = np.full((size, size), heatmap.min(), np.float32)
    geometry.inner(square)[...] = geometry.inner(geometry.to_square(heatmap))
    return square
