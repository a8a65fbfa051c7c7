"""per_sample.csv of any evaluation, read back: what `afloc compare` pairs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from afloc_jax.errors import UserError
from afloc_jax.evaluation.files import read_csv
from afloc_jax.files import Path
from afloc_jax.settings import Json


class Key(NamedTuple):
    """The key by which the scores of two evaluations are paired; as text, it names the score in a message."""

    id: str
    category: str
    metric: str = ""
    threshold: str = ""

    def __str__(self) -> str:
        """The parts that are not empty; none of them is text of a report."""
        return " / ".join(part for part in self if part)


class Decision(NamedTuple):
    """A row of classification. The label and the prediction are 1 or 0; an unknown label is NaN."""

    label: float
    probability: float
    predicted: float


@dataclass(frozen=True)
class Account:
    """The origin of the scores as summary.json tells it; empty where there is none.

    Attributes:
        settings: those that a reader should know to differ.
        mask_thresholds: of each class, the threshold that validation data gave.
        provenance: weights, data and versions.
    """

    settings: Mapping[str, Json]
    mask_thresholds: Mapping[str, Json]
    provenance: Mapping[str, Json]

    NOTED = ("protocol", "compatible", "framing", "prompt_set", "aggregation", "margin", "thresholds_chosen_on")

    @classmethod
    def read(cls, folder: Path) -> "Account":
        """The account of a result folder."""
        try:
            content = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = {}
        summary: dict[str, Any] = content if isinstance(content, dict) else {}
        points = summary.get("operating_points", {})
        return cls(
            {key: summary[key] for key in cls.NOTED if key in summary},
            {name: point.get("mask_threshold") for name, point in points.items()},
            summary.get("provenance", {}),
        )


@dataclass(frozen=True)
class SampleTable:
    """per_sample.csv of one folder: `patients` of each id, and the account of summary.json."""

    folder: Path
    patients: Mapping[str, str]
    account: Account


@dataclass(frozen=True)
class ScoreTable(SampleTable):
    """A score per sample, metric and threshold: localisation, retrieval, robustness."""

    values: Mapping[Key, float]


@dataclass(frozen=True)
class DecisionTable(SampleTable):
    """A decision per sample and class: classification."""

    values: Mapping[Key, Decision]


def read_samples(folder: Path) -> ScoreTable | DecisionTable:
    """The table of a result folder. Raises UserError for a folder without usable per-sample scores."""
    path = folder / "per_sample.csv"
    columns, lines = read_csv(path, "; give a folder that an evaluation wrote")
    scored = {"id", "category", "metric", "value"} <= set(columns)
    if not scored and not {"id", "category", "label", "probability", "predicted"} <= set(columns):
        raise UserError(f"{path}: not per-sample scores; it has the columns {', '.join(sorted(columns)) or 'none'}")
    scores: dict[Key, float] = {}
    decisions: dict[Key, Decision] = {}
    for number, line in enumerate(lines, start=2):
        names = (line["metric"] or "", line.get("threshold") or "") if scored else ()
        key = Key(line["id"], line["category"], *names)
        if key in scores or key in decisions:
            raise UserError(f"{path}, line {number}: {key} comes twice; keep one of the two rows")
        try:
            if scored:
                scores[key] = _number(line["value"])
            else:
                values = (float(line["probability"]), float(line["predicted"]))
                decisions[key] = Decision(_number(line["label"]), *values)
        except (TypeError, ValueError):
            raise UserError(f"{path}, line {number}: {key} holds no number") from None
    if not lines:
        raise UserError(f"{path}: holds no sample")
    patients = {line["id"]: line.get("patient") or "" for line in lines}
    account = Account.read(folder)
    return (
        ScoreTable(folder, patients, account, scores) if scored else DecisionTable(folder, patients, account, decisions)
    )


def _number(cell: str) -> float:
    return float(cell) if cell else float("nan")
