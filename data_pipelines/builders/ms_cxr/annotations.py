"""The annotation file of MS-CXR, read by two builders: for its boxes, and for patients to keep out of training."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afloc_jax.errors import UserError
from afloc_jax.files import read_json
from data_pipelines.building.expected_files import one_file

FILE = "**/MS_CXR_Local_Alignment_v*.json"
_PATH = re.compile(r"files/p\d\d/p\d+/s\d+/[^/]+[.]jpg")


@dataclass(frozen=True)
class Annotation:
    """One box of one phrase. An annotation with a `fault` has neither."""

    path: str  # files/p10/p10.../s.../....jpg
    size: tuple[int, int] | None = None  # width and height of the image in pixels, where the file states them
    category: str = ""
    phrase: str = field(default="", repr=False)
    box: tuple[float, float, float, float] = (0, 0, 0, 0)
    fault: str = ""  # what is wrong with the entry
    place: str = ""  # the file and the number of the entry


def read_annotations(raw: Path) -> Iterator[Annotation]:
    """All boxes in the order of the file.

    Raises UserError for an entry whose image, and so its patient, is not known; it names the entry.
    """
    path = one_file(raw, FILE)
    content = read_json(path)
    try:
        images = {image["id"]: image for image in content["images"]}
        if len(images) < len(content["images"]):
            raise UserError(f"{path}: two images have the same id; fetch it again")
        categories = {category["id"]: category["name"] for category in content["categories"]}
        annotations = list(content["annotations"])
    except (KeyError, TypeError):
        raise UserError(f"{path} lacks images, annotations or categories; fetch it again") from None
    for number, entry in enumerate(annotations):
        where = f"{path.name}, annotation {number}"
        try:
            image = images[entry["image_id"]]
            name = str(image["path"])
        except (KeyError, TypeError):
            name = ""
        if not _PATH.fullmatch(name):
            raise UserError(f"{where}, image_id: not an image of the file with its path; fetch it again")
        yield _annotation(name, image, entry, categories, where)


def _annotation(
    name: str, image: dict[str, Any], entry: dict[str, Any], categories: dict[int, str], where: str
) -> Annotation:
    key = "width and height"
    try:
        stated = image.get("width"), image.get("height")
        size = None if stated == (None, None) else (int(stated[0] or 0), int(stated[1] or 0))
        key = "category_id"
        category = categories[entry[key]]
        key = "label_text"
        phrase = entry[key]
        if not isinstance(phrase, str) or not isinstance(category, str):
            raise ValueError
        key = "bbox"
        x, y, width, height = (float(value) for value in entry[key])
    except (KeyError, TypeError, ValueError, OverflowError):
        return Annotation(name, fault=f"{where}, {key}: missing or malformed", place=where)
    return Annotation(name, size, category, phrase, (x, y, width, height), place=where)


def annotated_patients(raw: Path) -> frozenset[str]:
    """The patients (subject_id of MIMIC-CXR) with an image in MS-CXR. Raises UserError if the file is missing."""
    if not any(raw.glob(FILE)):
        raise UserError(
            f"no {FILE.removeprefix('**/')} below {raw}: patients of MS-CXR must stay out of training; put the file "
            "there, or pass --builder exclude_ms_cxr=false and do not evaluate on MS-CXR"
        )
    return frozenset(Path(annotation.path).parts[-3].removeprefix("p") for annotation in read_annotations(raw))
