"""A CSV of mask files: image, mask, finding, and optionally prompt and patient."""

import numpy as np
from jaxtyping import Bool

from afloc_jax import tables
from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth.sample import Drawing, Truth, empty_mask
from afloc_jax.files import Path
from afloc_jax.tables import Row
from data_pipelines.images import Geometry, ImageError, read_mask
from data_pipelines.regions import MaskFile, United

_COLUMNS = ("image", "mask", "finding")


def read_table(path: Path, drawing: Drawing) -> list[Truth]:
    """One sample per image and phrase. Several masks of a sample are united.

    No row may be left out, because the score would be that of other samples: a fault of a row raises UserError.
    """
    masks: dict[tuple[str, str, str], list[tuple[Row, Path]]] = {}
    patients: dict[str, str] = {}
    for row in tables.read_table(path, _COLUMNS, names=("mask",), known=("prompt", "patient")).whole():
        if not (row["image"] and row["finding"]):
            raise UserError(str(row.fault("finding" if row["image"] else "image", "is empty")))
        patient = row.get("patient", "")
        if patients.setdefault(row["image"], patient) != patient:
            raise UserError(str(row.fault("patient", "an earlier row names another patient for the same image")))
        files = masks.setdefault((row["image"], row.get("prompt") or row["finding"], row["finding"]), [])
        if row["mask"]:
            files += [(row, _mask_file(path.parent, row))]
    truths = []
    per_image: dict[str, int] = {}
    for (image, text, category), files in masks.items():
        number = per_image[image] = per_image.get(image, -1) + 1  # from 0, as the findings of a record
        parts = [_read_mask(row, file) for row, file in files]
        if len({part.shape for part in parts}) > 1:
            raise UserError(str(files[0][0].fault("mask", "the masks of the finding differ in size")))
        height, width = parts[0].shape if parts else (0, 0)
        present = any(part.any() for part in parts)
        if present:
            mask = np.any(parts, axis=0).astype(np.uint8)
            square = drawing.place(mask, Geometry(height, width, drawing.size), touched=True)
        else:
            square = empty_mask(drawing.size)
        about = (image, height, width, present, patients[image])
        region = United(tuple(MaskFile(file) for _, file in files)) if present and drawing.original else None
        truths.append(Truth(f"{image}#{number}", text, category, square, *about, region=region))
    return truths


def _mask_file(folder: Path, row: Row) -> Path:
    for candidate in (folder / row["mask"], folder / "masks" / row["mask"]):
        if candidate.is_file():
            return candidate
    raise UserError(str(row.fault("mask", "no such file beside the table or in its folder masks")))


def _read_mask(row: Row, file: Path) -> Bool[np.ndarray, "H W"]:
    try:
        return read_mask(file)
    except ImageError as error:
        raise UserError(str(row.fault("mask", str(error).removeprefix(f"{file.name}: ")))) from None
