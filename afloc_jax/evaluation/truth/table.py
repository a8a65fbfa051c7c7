"""A CSV of mask files: image, mask, finding, and optionally prompt and patient."""

import csv

import numpy as np

from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth.sample import Drawing, Truth, empty_mask
from afloc_jax.files import Path
from data_pipelines.images import Geometry, read_mask
from data_pipelines.regions import MaskFile, United


def read_table(path: Path, drawing: Drawing) -> list[Truth]:
    """One sample per image and phrase. Several masks of a sample are united."""
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
            square = drawing.place(mask, Geometry(height, width, drawing.size), touched=True)
        else:
            square = empty_mask(drawing.size)
        about = (image, height, width, present, patients[image])
        region = United(tuple(MaskFile(file) for file in files)) if present and drawing.original else None
        truths.append(Truth(f"{image}#{per_image[image]}", text, category, square, *about, region=region))
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
