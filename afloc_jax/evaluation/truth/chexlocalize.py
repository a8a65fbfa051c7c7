"""CheXlocalize's RLE JSON: {image: {class: {"size", "counts"}}}."""

from collections.abc import Mapping
from typing import TypeAlias, TypeGuard

from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth.sample import Drawing, Truth, negative
from afloc_jax.settings import Json
from data_pipelines.regions import CocoRuns, decode_segmentation

RleTable: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Json]]]
"""Run lengths by image and class."""


def is_rle_file(content: Json) -> TypeGuard[RleTable]:
    """Whether a file has this format; some of its images may have no class, which are empty masks."""
    if not isinstance(content, dict):
        return False
    images = [image.values() for image in content.values() if isinstance(image, dict)]
    masks = [isinstance(rle, dict) and {"size", "counts"} <= rle.keys() for image in images for rle in image]
    return len(images) == len(content) and bool(masks) and all(masks)


def read_rle_table(name: str, content: RleTable, drawing: Drawing) -> list[Truth]:
    """One sample per image and class; a class with an empty mask is a negative."""
    truths = []
    for position, (image, classes) in enumerate(content.items()):
        if len({category.lower() for category in classes}) < len(classes):
            raise UserError(f"{name}, image {position}: two classes differ in case alone, which does not count")
        for number, (category, rle) in enumerate(classes.items()):
            where = f"{name}, image {position}, class {number}"  # counted from 0; names may be those of patients
            geometry = drawing.geometry(size_of_rle(rle, where), where)
            mask = decode_segmentation(rle, geometry.height, geometry.width, where)
            if mask.any():
                square = drawing.place(mask, geometry)
                sample_id, size = f"{image}#{category}", (geometry.height, geometry.width)
                region = CocoRuns(dict(rle)) if drawing.original else None
                truths.append(Truth(sample_id, category, category, square, image, *size, region=region))
            else:
                truths.append(negative(image, category, drawing.size, geometry.height, geometry.width))
    return truths


def size_of_rle(rle: Mapping[str, Json], where: str) -> dict[str, Json]:
    """The height and width of an RLE. Raises UserError if they are missing or malformed."""
    size = CocoRuns(dict(rle)).size
    if size is None:
        raise UserError(f"{where}: field `size` must be [height, width]")
    return {"height": size[1], "width": size[0]}
