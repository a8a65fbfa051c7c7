"""Small raw folders in the layouts of publishers, and how the tests prepare them."""

import csv
import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from raw_folders import SECRET, radiograph

from afloc_jax.errors import UserError
from data_pipelines.prepared import prepare
from data_pipelines.records import Record


def build(tmp_path: Path, name: str, **builder: Any) -> tuple[dict[str, Record], dict[str, Any]]:
    """Prepares tmp_path/raw as a part of the data set: records of all splits by id, build_report.json with "splits"."""
    builder = {"partial": True, **builder}
    prepared = prepare(name, tmp_path / "out", raw=tmp_path / "raw", builder=builder)
    sources = prepared.sources()
    records = {record.id: record for source in sources.values() for record in source}
    splits = {record.id: split for split, source in sources.items() for record in source}
    return records, {**prepared.report.plain(), "splits": splits}


def refused(tmp_path: Path, name: str, **builder: Any) -> str:
    """The message with which preparing tmp_path/raw is refused; never with report text in it."""
    with pytest.raises(UserError) as caught:
        prepare(name, tmp_path / "out", raw=tmp_path / "raw", builder=builder)
    message = str(caught.value)
    assert "\n" not in message and SECRET.split()[-1] not in message
    return message


def listed(tmp_path: Path, name: str, kind: str = "rejected") -> list[str]:
    """The lines of the list of files beside the records that a refused build wrote; errors name no file."""
    return (tmp_path / "out" / f"{name}.{kind}.txt").read_text().splitlines()


def any_count(monkeypatch, name: str) -> None:
    """Lets a builder take any number of files and rows, as if its publisher shipped what the test made."""
    builder = importlib.import_module(f"data_pipelines.builders.{name}.{name}_dataset_builder").Builder
    monkeypatch.setattr(builder, "FILES", tuple(replace(files, count=None, rows=None) for files in builder.FILES))


def image_file(path: Path, seed: int = 0, height: int = 40, width: int = 30) -> np.ndarray:
    """Writes a grey image (PNG exactly, JPEG nearly) and returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = radiograph(seed, height, width)
    assert cv2.imwrite(str(path), pixels)
    return pixels


def dicom_file(path: Path, seed: int = 0, height: int = 40, width: int = 30) -> np.ndarray:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = radiograph(seed, height, width)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = height, width, 1
    dataset.PhotometricInterpretation, dataset.BitsAllocated, dataset.BitsStored = "MONOCHROME2", 8, 8
    dataset.HighBit, dataset.PixelRepresentation, dataset.PixelData = 7, 0, pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return pixels


def rows_file(path: Path, header: str, rows: Sequence[Sequence[Any]], opened=open) -> None:
    """A CSV file with exactly this header line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened(path, "wt", newline="", encoding="utf-8") as file:
        file.write(header + "\n")
        csv.writer(file).writerows(rows)


def json_file(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def box_mask(height: int, width: int, *boxes: Sequence[int]) -> np.ndarray:
    """[height, width] bool of boxes (x, y, width, height) in whole pixels."""
    mask = np.zeros((height, width), bool)
    for x, y, w, h in boxes:
        mask[y : y + h, x : x + w] = True
    return mask
