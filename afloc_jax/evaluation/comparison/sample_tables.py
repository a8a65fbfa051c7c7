"""per_sample.csv of any evaluation, read back: what `afloc compare` pairs."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afloc_jax.errors import UserError

Key = tuple[str, str, str, str]  # id, category, metric, threshold


@dataclass(frozen=True)
class Samples:
    """per_sample.csv of one folder. `probability` tables hold (label, probability, threshold) instead of a value."""

    folder: Path
    kind: str  # "values" or "probabilities"
    values: dict[Key, Any]
    clusters: dict[str, str]  # id -> patient
    summary: Mapping[str, Any]


def read_samples(folder: str | Path) -> Samples:
    """per_sample.csv and summary.json (if there is one) of a result folder."""
    folder = Path(folder)
    path = folder / "per_sample.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns, lines = set(reader.fieldnames or ()), list(reader)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a folder that an evaluation wrote") from None
    except (UnicodeDecodeError, csv.Error):
        raise UserError(f"{path}: not a CSV table in UTF-8") from None
    if {"id", "category", "metric", "value"} <= columns:
        kind = "values"
    elif {"id", "category", "label", "probability", "predicted"} <= columns:
        kind = "probabilities"
    else:
        raise UserError(f"{path}: not per-sample scores; it has the columns {', '.join(sorted(columns)) or 'none'}")
    values: dict[Key, Any] = {}
    for number, line in enumerate(lines, start=2):
        key = (line["id"], line["category"], line.get("metric") or "", line.get("threshold") or "")
        key = key if kind == "values" else (key[0], key[1], "", "")
        if key in values:
            raise UserError(f"{path}, line {number}: {spoken(key)} comes twice; it cannot be told which to compare")
        try:
            values[key] = _value(line, kind)
        except (TypeError, ValueError):
            raise UserError(f"{path}, line {number}: {spoken(key)} holds no number") from None
    if not values:
        raise UserError(f"{path}: holds no sample")
    clusters = {line["id"]: line.get("patient") or "" for line in lines}
    return Samples(folder, kind, values, clusters, _read_summary(folder))


def spoken(key: Key) -> str:
    """A key for a message; no report text is in it."""
    return " / ".join(part for part in key if part)


def _read_summary(folder: Path) -> Mapping[str, Any]:
    try:
        content = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _value(line: Mapping[str, str], kind: str) -> Any:
    if kind == "values":
        return float(line["value"]) if line["value"] else float("nan")
    label = float(line["label"]) if line["label"] else float("nan")
    return label, float(line["probability"]), float(line["predicted"])
