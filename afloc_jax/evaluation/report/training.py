"""The training curves of a run, from metrics.jsonl."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from markupsafe import Markup

from afloc_jax.evaluation.report.charts import Line, curve_chart, smooth
from afloc_jax.files import Path, read_regular
from afloc_jax.levels import LEVELS

Logged: TypeAlias = Mapping[str, float | str | None]
"""A line of metrics.jsonl."""


@dataclass(frozen=True)
class Curve:
    """A chart over training steps, with its last values."""

    title: str
    svg: Markup
    train: float | None
    validation: float | None
    small: bool


def read_metrics(path: Path) -> list[Logged]:
    """The lines of metrics.jsonl; none without the file."""
    if not path.is_file():
        return []
    rows = []
    for line in read_regular(path).decode(errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # the last line of a killed run may be incomplete
    return rows


def curves(rows: Sequence[Logged]) -> list[Curve]:
    """The charts of losses and other values, each with its title and last values."""
    wanted = [("loss", "Total loss"), *((f"loss/{level}", f"{level.capitalize()} level") for level in LEVELS)]
    wanted += [("learning_rate", "Learning rate"), ("grad_norm", "Gradient norm")]
    wanted += [("examples_per_second", "Pairs per second")]
    found = []
    for key, title in wanted:
        train, validation = series(rows, key, "train"), series(rows, key, "validation")
        if not len(train[0]) and not len(validation[0]):
            continue
        exact = key == "learning_rate"
        lines: list[Line] = [
            {"name": "training", "kind": "train" if exact else "raw", "steps": train[0], "values": train[1]}
        ]
        if not exact:
            window = max(1, len(train[1]) // 25)
            lines.append({"name": "training", "kind": "train", "steps": train[0], "values": smooth(train[1], window)})
        lines.append({"name": "validation", "kind": "validation", "steps": validation[0], "values": validation[1]})
        floor = None if key.startswith("loss") else 0.0
        chart = curve_chart(lines, f"{title} over training steps", floor=floor, small=floor is not None)
        if not chart:
            continue
        best = float(np.nanmin(validation[1])) if np.isfinite(validation[1]).any() else None
        svg = Markup(chart)  # our own SVG, its texts escaped
        found.append(Curve(title, svg, _last(train[1]), best, small=not key.startswith("loss")))
    return found


def series(rows: Sequence[Logged], key: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which a value of a split was logged, and the values; NaN for null."""
    # A resumed run may log a step twice; the later line is used.
    own = [row for row in rows if row.get("split") == split and key in row and "step" in row]
    found = {float(row["step"] or 0): row[key] for row in own}
    steps = sorted(found)
    return np.array(steps, float), np.array([np.nan if found[s] is None else found[s] for s in steps], float)


def _last(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-max(1, len(finite) // 25) :].mean()) if len(finite) else None
