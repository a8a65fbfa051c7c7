"""The samples that went worst, from per_sample.csv."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def worst_samples(path: Path, most: int) -> dict[str, Any]:
    """The samples with the least overlap, and how many failed altogether.

    A sample fails if its map's maximum lies outside the truth, or if nothing is predicted at any threshold.

    Returns:
        `samples` (failures alone, the worst first: id, category, prompt, iou, cnr, why), `failed`, `scored`. Empty if
        there is no such file.
    """
    if not path.is_file():
        return {}
    samples: dict[str, dict[str, Any]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            sample = samples.setdefault(
                row["id"], {"id": row["id"], "category": row["category"], "prompt": row["label_text"], "notes": []}
            )
            sample["notes"].append(row["note"])
            if row["value"]:
                sample.setdefault(row["metric"], []).append(float(row["value"]))
    scored = [sample for sample in samples.values() if "iou" in sample or "pointing" in sample]
    failed = [{**_shown(sample), "why": why} for sample in scored if (why := _failure(sample))]
    failed.sort(key=lambda sample: (sample["iou"] is not None and sample["iou"], sample["cnr"] or 0.0))
    return {"samples": failed[:most], "failed": len(failed), "scored": len(scored)}


def _failure(sample: Mapping[str, Any]) -> str:
    notes = set(sample["notes"])
    if "false positive" in notes:
        return "predicted where there is nothing"
    if notes & {"confidence below the threshold", "empty prediction"} and not sum(sample.get("iou", [0.0])):
        return "nothing predicted"
    return "maximum outside the truth" if sample.get("pointing", [1.0])[0] < 0.5 else ""


def _shown(sample: Mapping[str, Any]) -> dict[str, Any]:
    means = {name: float(np.mean(sample[name])) if name in sample else None for name in ("iou", "cnr")}
    return {key: sample[key] for key in ("id", "category", "prompt")} | means
