"""Small folders of raw files for the tests of the builders."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

SECRET = "confidential patient Jane Roe"  # must never show up in an error or a report


def radiograph(seed: int, height: int = 40, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def pairs_folder(folder: Path, count: int = 24, **columns: Sequence[str]) -> list[dict[str, str]]:
    """`count` images with two-sentence texts; `columns` replace or add columns. Returns the rows, also written."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name = f"{number:03d}.png"
        cv2.imwrite(str(folder / "images" / name), radiograph(number, 30 + number % 7, 35))
        row = {"image": name, "text": f"{SECRET} has effusion {number}. No edema.", "patient": f"p{number // 2}"}
        rows.append(row | {key: values[number] for key, values in columns.items()})
    write_table(folder / "pairs.csv", rows)
    return rows
