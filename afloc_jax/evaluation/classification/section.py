"""The section on classification of the page: metrics with intervals, ROC, reliability, most confident mistakes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, UInt8
from markupsafe import Markup

from afloc_jax.evaluation.classification.examples import Mistake, read_mistakes
from afloc_jax.evaluation.classification.metrics import BY_NAME, HEADLINE, MAIN, METRICS, Metric, chance_of
from afloc_jax.evaluation.classification.result import Classification
from afloc_jax.evaluation.report.numbers import number
from afloc_jax.evaluation.report.small_charts import Cell, cell, reliability_chart, roc_chart
from afloc_jax.evaluation.results import ByCategory
from afloc_jax.evaluation.statistics.discrimination import roc_curve
from afloc_jax.evaluation.task import Figure, JsonObject, Section
from afloc_jax.files import Path
from afloc_jax.tables import read_table

Example: TypeAlias = tuple[Mistake, UInt8[np.ndarray, "S S"], Bool[np.ndarray, "S S"]]
"""A mistake, its image, and the mask of a missed finding."""
MOST_PHRASES = 12  # listed of each class


@dataclass(frozen=True)
class Row:
    """A row of the tables: a class, or all classes if it has no name."""

    name: str | None
    cells: Mapping[str, Cell]
    threshold: float = math.nan
    positives: str = ""


@dataclass(frozen=True)
class Curve:
    """A small chart with its title."""

    title: str
    note: str
    svg: Markup


def section(folder: Path, summary: JsonObject) -> Section:
    """The section of one evaluation, for section.html.jinja."""
    result = Classification.read(summary)
    metrics, classes = result.metrics, list(result.n_per_category)
    query = "which one of the classes they show" if result.multiclass else "whether they show a finding"
    main = [BY_NAME[name] for name in MAIN if name in metrics]
    mistakes: dict[str, list[Example]] = {}
    for example in read_mistakes(folder):
        mistakes.setdefault(example[0].category, []).append(example)
    return Section(
        subject="classification",
        kicker="Zero-shot classification",
        lede=(f"The model decided by phrases alone {query}: {result.n:,} images of", f", {len(classes)} classes."),
        headline=[_figure(result, BY_NAME[name]) for name in HEADLINE if name in metrics],
        shown={
            "main": main,  # the metrics of the open table
            "others": [metric for metric in METRICS if metric.name in metrics and metric not in main],
            "rows": [_row(result, name) for name in [None, *classes]],
            "curves": _curves(folder / "per_sample.csv", metrics["auc"], classes),
            "reliability": [
                Curve(
                    name,
                    "" if "ece" not in metrics else _note("ECE", metrics["ece"], name),
                    Markup(reliability_chart(table, f"Observed share over probability of {name}")),  # our own SVG
                )
                for name, table in result.reliability.items()
            ],
            "mistakes": mistakes,
            "phrases": {name: sides["positive"] for name, sides in result.prompts.items()},
            "most_phrases": MOST_PHRASES,
            "thresholds": result.thresholds,
        },
    )


def _figure(result: Classification, metric: Metric) -> Figure:
    chance = chance_of(metric, result.multiclass)
    others = [] if chance is None else [("chance", "chance", chance)]
    return Figure(metric.title, metric.about, result.metrics[metric.name].overall, others)


def _row(result: Classification, name: str | None) -> Row:
    cells = {}
    for key, values in result.metrics.items():
        metric, value = BY_NAME[key], values.overall if name is None else values.per_category[name]
        cells[key] = cell(value, low=metric.low, reference=chance_of(metric, result.multiclass))
    if name is None:
        return Row(None, cells)
    positives = f"{result.positives[name]} / {result.n_per_category[name]}"
    return Row(name, cells, result.thresholds[name], positives)


def _curves(path: Path, auc: ByCategory, classes: Sequence[str]) -> list[Curve]:
    """The ROC curve of each class with positives and negatives; none without per_sample.csv."""
    if not path.is_file():
        return []
    pairs: dict[str, list[tuple[bool, float]]] = {name: [] for name in classes}
    for row in read_table(path).whole():
        if row["label"]:
            pairs[row["category"]].append((row["label"] == "1", float(row["probability"])))
    curves = []
    for name in classes:
        labels, scores = (np.array([pair[side] for pair in pairs[name]]) for side in (0, 1))
        false, true = roc_curve(labels.astype(bool), scores)
        if len(false):
            chart = Markup(roc_chart(false.tolist(), true.tolist(), f"ROC curve of {name}"))  # our own SVG
            curves.append(Curve(name, _note("AUC", auc, name), chart))
    return curves


def _note(label: str, values: ByCategory, name: str) -> str:
    return f"{label} {number(values.per_category[name].mean, 2)}"
