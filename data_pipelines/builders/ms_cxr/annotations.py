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
    """One box of one phrase."""

    path: str  # files/p10/p10.../s.../....jpg
    category: str
    phrase: str = field(repr=False)
    box: tuple[float, float, float, float]


def read_annotations(raw: Path) -> Iterator[Annotation]:
    """All boxes in the order of the file. Raises UserError that names a malformed entry."""
    path = one_file(raw, FILE)
    content = read_json(path)
    try:
        images = {image["id"]: image["path"] for image in content["images"]}
        categories = {category["id"]: category["name"] for category in content["categories"]}
        annotations = content["annotations"]
    except (KeyError, TypeError):
        raise UserError(f"{path} lacks images, annotations or categories; fetch it again") from None
    for number, entry in enumerate(annotations):
        try:
            annotation = _annotation(entry, images, categories)
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path.name}, annotation {number}: not an image, a category, a phrase and a box") from None
        yield annotation


def _annotation(entry: dict[str, Any], images: dict, categories: dict) -> Annotation:
    path, box = images[entry["image_id"]], [float(value) for value in entry["bbox"]]
    if len(box) != 4 or not _PATH.fullmatch(path) or not isinstance(entry["label_text"], str):
        raise ValueError
    return Annotation(path, categories[entry["category_id"]], entry["label_text"], (box[0], box[1], box[2], box[3]))


def annotated_patients(raw: Path) -> frozenset[str]:
    """The patients (subject_id of MIMIC-CXR) with an image in MS-CXR. Raises UserError if the file is missing."""
    if not any(raw.glob(FILE)):
        raise UserError(
            f"no {FILE.removeprefix('**/')} below {raw}: patients of MS-CXR must stay out of training; put the file "
            "there, or pass --builder exclude_ms_cxr=false and do not evaluate on MS-CXR"
        )
    return frozenset(Path(annotation.path).parts[-3].removeprefix("p") for annotation in read_annotations(raw))
