"""Scores of predicted masks and points instead of heat maps: radiologists' benchmark, Grad-CAM masks, segmentations.

The definitions are those of CheXlocalize, in the original pixels of each image: IoU over all images where truth or
prediction is not empty, IoU over true positives, and the hit rate of the most representative point. Images of either
file count: an image or class that one of them lacks has an empty mask there, so that a prediction on an image that the
truth does not list is a false positive. Classes of which the truth file has no entry are left out.

A mask has no most representative point: its hit rate is the share of its pixels inside the truth, or, in compatible
mode, whether its first pixel (row by row) is inside, which is the result of the data set's code for a map of 0 and 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeGuard

import numpy as np
from pycocotools import mask as coco_mask

from afloc_jax.errors import UserError
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.presence import PresenceScores, presence_values
from afloc_jax.evaluation.truth.chexlocalize import is_rle_file, size_of_rle
from afloc_jax.evaluation.truth.sample import Truth, get_field, negative
from afloc_jax.files import Path, read_json
from afloc_jax.settings import Json
from data_pipelines.images import LARGEST_PIXELS, ImageError
from data_pipelines.regions import CocoRuns


@dataclass(frozen=True)
class _Table:
    """Run lengths or points by image and class in lower case, and their places in the file, counted from 0."""

    content: "dict[tuple[str, str], Json | Mapping[str, Json]]"
    places: dict[tuple[str, str], str]


def score_segmentations(
    truths: Sequence[Truth], truth_file: str | Path, predicted_file: str | Path, options: ProtocolOptions
) -> PresenceScores:
    """The scores of predicted masks (RLE JSON) or points ({image: {class: [[x, y], ...]}}) against RLE truth.

    Args:
        truths: the samples; images that the truth file lacks are negatives. Samples that only the predictions name
            come after them, as negatives.
        truth_file: CheXlocalize's RLE JSON.
        predicted_file: the predictions. Points are in original pixels, x to the right; a point inside is a hit.
        options: see `chexlocalize.OPTIONS`.

    Returns:
        Scores with iou, iou_true_positive, dice and pointing for masks, and with pointing alone for points.

    Raises:
        UserError: a file has another format, an entry is malformed, or a mask has another size than its truth.
    """
    truth_path, predicted_path = Path(truth_file), Path(predicted_file)
    truth = _table(truth_path, points=False)
    content = read_json(predicted_path)
    points = _is_point_table(content)
    predicted = _table(predicted_path, points)
    known = {sample.image_and_class for sample in truths}
    if not known & set(predicted.content):
        raise UserError(f"{predicted_path}: no image and class in common with {truth_path.name}")
    names = {sample.category.lower(): sample.category for sample in truths}
    unlisted = [key for key in predicted.content if key[1] in names and key not in known | set(truth.content)]
    size = truths[0].mask.shape[0]
    samples = [*truths, *(negative(image, names[name], size) for image, name in unlisted)]
    rows = []
    keys = [sample.image_and_class for sample in samples]
    for key in keys:
        where = predicted.places.get(key, "")
        true = _checked(truth.content.get(key), truth.places.get(key, ""))
        if points:
            places = _places(predicted.content.get(key), where)
            rows.append((_area(true), len(places), 0, _hit_of_points(true, places)))
        else:
            rows.append(_compare(true, _checked(predicted.content.get(key), where), options.compatible, where))
    true_pixels, pixels, common, hit = (np.array(column) for column in zip(*rows, strict=True))
    with np.errstate(invalid="ignore"):
        iou = common / (true_pixels + pixels - common)
        dice = 2 * common / (true_pixels + pixels)
    values = presence_values(iou, dice, hit, (true_pixels > 0) & (pixels > 0))
    return PresenceScores(
        truths=tuple(samples),
        options=options,
        values={"pointing": hit} if points else values,
        predicted_pixels=pixels[:, None],
        truth_pixels=true_pixels,
    )


def _table(path: Path, points: bool) -> _Table:
    content: Json = read_json(path)
    if points and _is_point_table(content):
        return _by_class(path.name, content)
    if not points and is_rle_file(content):
        return _by_class(path.name, content)
    raise UserError(f'{path}: not CheXlocalize segmentations ({{image: {{class: {{"size", "counts"}}}}}})')


def _by_class(name: str, images: "Mapping[str, Mapping[str, Json | Mapping[str, Json]]]") -> _Table:
    table = _Table({}, {})
    for number, (image, entries) in enumerate(images.items()):
        for position, category in enumerate(entries):
            key, place = (image, category.lower()), f"{name}, image {number}, class {position}"
            if table.places.setdefault(key, place) != place:
                raise UserError(f"{place}: the same as {table.places[key]}, as case does not count")
            table.content[key] = entries[category]
    return table


def _is_point_table(content: Json) -> TypeGuard[Mapping[str, Mapping[str, Json]]]:
    """Whether the content is {image: {class: [[x, y], ...]}}; an image may have no class."""
    if not (isinstance(content, dict) and content):
        return False
    entries = [entry for entry in content.values() if isinstance(entry, dict)]
    lists = [points for entry in entries for points in entry.values()]
    return len(entries) == len(content) and bool(lists) and all(isinstance(points, list) for points in lists)


class Rle(TypedDict):
    """Run lengths in the form that pycocotools reads."""

    size: list[int]
    counts: bytes | str


def _checked(rle: "Json | Mapping[str, Json]", where: str) -> Rle | None:
    """The RLE in the form that pycocotools reads, with checked run lengths; None stays None."""
    if not isinstance(rle, Mapping):
        return None
    size = size_of_rle(rle, where)
    height, width = (get_field(size, side, int, where) for side in ("height", "width"))
    try:
        CocoRuns(dict(rle)).runs(height, width)
    except ImageError as error:
        raise UserError(f"{where}: {error}") from None
    if isinstance(rle["counts"], list):
        packed: Rle = coco_mask.frPyObjects(dict(rle), height, width)
        return packed
    return Rle(size=[height, width], counts=str(rle["counts"]))


def _area(rle: Rle | None) -> int:
    return int(coco_mask.area(rle)) if rle else 0


def _compare(true: Rle | None, predicted: Rle | None, compatible: bool, where: str) -> tuple[int, int, int, float]:
    """The pixels of the truth, of the prediction and of their intersection, and the hit."""
    if true and predicted and list(true["size"]) != list(predicted["size"]):
        raise UserError(f"{where}: its mask is for {list(predicted['size'])}, the truth for {list(true['size'])}")
    true_pixels, pixels = _area(true), _area(predicted)
    common = _area(coco_mask.merge([true, predicted], intersect=True)) if true_pixels and pixels else 0
    if not true_pixels:
        hit = float("nan")
    elif not pixels:
        hit = 0.0
    elif compatible:
        hit = float(coco_mask.decode(true).flat[np.argmax(coco_mask.decode(predicted))])
    else:
        hit = common / pixels
    return true_pixels, pixels, common, hit


def _places(points: "Json | Mapping[str, Json]", where: str) -> np.ndarray:
    """The pixels (x, y) in which points lie, [n, 2] int."""
    try:
        places = np.asarray(points or [], np.float64).reshape(-1, 2)
    except (ValueError, TypeError, OverflowError):
        places = np.array([[np.nan, np.nan]])
    if not (np.abs(places) < LARGEST_PIXELS).all():  # NaN is not
        raise UserError(f"{where}: its points must be [[x, y], ...] in pixels")
    return np.floor(places).astype(int)


def _hit_of_points(true: Rle | None, places: np.ndarray) -> float:
    """1 if a point lies inside, 0 if none does or there is no point; NaN without truth."""
    if not _area(true):
        return float("nan")
    inside = coco_mask.decode(true)
    height, width = inside.shape
    return float(any(0 <= x < width and 0 <= y < height and inside[y, x] for x, y in places))
