"""The samples that went worst, from per_sample.csv."""

import csv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def worst_samples(path: Path, most: int) -> dict[str, Any]:
    """What failed: how often and why, and the samples with the least overlap, each category in turn.

    A sample fails if its map's maximum lies outside the truth, if nothing is predicted at any threshold, or if
    something is predicted on an image without the finding.

    Returns:
        `samples` (at most `most`: id, category, prompt, iou, cnr, why), `kinds` (why -> number), `failed`, `scored`.
        Empty if there is no such file.
    """
    if not path.is_file():
        return {}
    samples: dict[str, dict[str, Any]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            sample = samples.setdefault(
                row["id"], {"id": row["id"], "category": row["category"], "prompt": row["label_text"], "notes": []}
            )
            sample["notes"] += row["note"].split("; ")
            if row["value"]:
                sample.setdefault(row["metric"], []).append(float(row["value"]))
    scored = [sample for sample in samples.values() if "no truth in the scored region" not in sample["notes"]]
    failed = [{**_shown(sample), "why": why} for sample in scored if (why := _failure(sample))]
    failed.sort(key=lambda sample: (sample["iou"] is not None and sample["iou"], sample["cnr"] or 0.0))
    kinds = dict(Counter(sample["why"] for sample in failed).most_common())
    return {"samples": _in_turn(failed)[:most], "kinds": kinds, "failed": len(failed), "scored": len(scored)}


def _in_turn(failed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The worst of each category, then the second worst of each, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for sample in failed:
        ranked.append((seen[sample["category"]], sample))
        seen[sample["category"]] += 1
    return [sample for _, sample in sorted(ranked, key=lambda pair: pair[0])]


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
