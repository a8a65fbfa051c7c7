"""Truth files and heat maps that `benchmarks.same_numbers` hands to `afloc score`, the same in every checkout."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from afloc_jax.settings import Json

RunLengths = dict[str, list[int] | str]


def write_score_files(folder: Path) -> None:
    """Boxes, polygons and run lengths of three classes; noisy maps, a constant one and one with ties among them."""
    if (folder / "ready").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    classes = ("Pneumothorax", "Pleural Effusion", "Edema")
    rng = np.random.default_rng(7)
    images: list[dict[str, Json]] = []
    annotations: list[dict[str, Json]] = []
    maps: dict[str, Any] = {}
    for number in range(24):
        height, width = (int(side) for side in rng.integers(200, 400, 2))
        images.append({"id": number, "path": f"p{number}.png", "file_name": f"p{number}.png", "width": width,
                       "height": height})  # fmt: skip
        for kind in rng.choice(3, 1 + number % 2, replace=False):
            x, y = float(rng.uniform(0, width * 0.6)), float(rng.uniform(0, height * 0.6))
            box = [x, y, float(rng.uniform(8, width - x)), float(rng.uniform(8, height - y))]
            phrase = f"{classes[kind].lower()} number {number}"
            annotation: dict[str, Any] = {
                "id": len(annotations), "image_id": number, "category_id": int(kind) + 1, "bbox": box,
                "label_text": phrase, "iscrowd": 0, "area": box[2] * box[3],
            }  # fmt: skip
            if number % 4 == 1:
                annotation["segmentation"] = [[x, y, x + box[2], y, x + box[2] / 2, y + box[3]]]
            annotations.append(annotation)
            maps[f"p{number}.png\t{phrase}"] = heatmap(rng, number, box, height, width)
    categories = [{"id": n + 1, "name": name} for n, name in enumerate(classes)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(truth))
    np.savez(folder / "coco.npz", **maps)
    for split in ("val", "test"):
        write_run_lengths(folder, split, classes, rng)
    (folder / "ready").touch()


def write_run_lengths(folder: Path, split: str, classes: tuple[str, ...], rng: np.random.Generator) -> None:
    truth: dict[str, dict[str, RunLengths]] = {}
    reader: dict[str, dict[str, RunLengths]] = {}
    maps: dict[str, Any] = {}
    for number in range(20):
        height, width = (int(side) for side in rng.integers(80, 140, 2))
        name = f"{split}{number}_view1_frontal"
        truth[name], reader[name] = {}, {}
        for kind, class_name in enumerate(classes):
            x, y = int(rng.integers(0, width - 30)), int(rng.integers(0, height - 30))
            mask, read = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
            if (number + kind) % 3:
                mask[y : y + 25, x : x + 20] = 1
            if (number + kind) % 4:
                read[y + 3 : y + 28, x + 2 : x + 20] = 1
            truth[name][class_name], reader[name][class_name] = run_lengths(mask), run_lengths(read)
            maps[f"{name}\t{class_name}"] = heatmap(
                rng, number, [x, y, 20 * mask.max(), 25 * mask.max()], height, width
            )
    (folder / f"{split}.json").write_text(json.dumps(truth))
    (folder / f"{split}_reader.json").write_text(json.dumps(reader))
    np.savez(folder / f"{split}.npz", **maps)


def run_lengths(mask: np.ndarray) -> RunLengths:
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def heatmap(rng: np.random.Generator, number: int, box: list[float], height: int, width: int) -> np.ndarray:
    """The map of a box, blurred and noisy; number 5 is constant, and number 7 has ties."""
    made = np.zeros((height, width), np.float32)
    x, y, w, h = (round(side) for side in box)
    made[y : y + h, x : x + w] = 1
    made = cv2.GaussianBlur(made, (0, 0), 9) + 0.2 * rng.standard_normal((height, width)).astype(np.float32)
    if number == 5:
        made[:] = 0.25
    return np.round(made, 1) if number == 7 else made


def score_cases(files: Path) -> dict[str, list[str | Path]]:
    boxes: list[str | Path] = ["--truth", files / "coco.json", "--heatmaps", files / "coco.npz"]
    masks: list[str | Path] = ["--protocol", "chexlocalize", "--truth", files / "test.json"]
    maps = [*masks, "--heatmaps", files / "test.npz", "--validation_truth", files / "val.json",
            "--validation_heatmaps", files / "val.npz"]  # fmt: skip
    return {
        "score afloc": boxes,
        "score afloc compatible": [*boxes, "--compatible"],
        "score afloc bca": [*boxes, "--interval", "bca", "--margin", "0", "--thresholds", "0.2,0.6"],
        "score grounding": [*boxes, "--protocol", "grounding"],
        "score grounding compatible": [*boxes, "--protocol", "grounding", "--compatible"],
        "score chexlocalize": [*maps, "--benchmark", files / "test_reader.json"],
        "score chexlocalize compatible": [*maps, "--compatible"],
        "score segmentations": [*masks, "--segmentations", files / "test_reader.json"],
    }
