"""Robustness to wording on the page: the spread over phrases by class, and every phrase with its intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from afloc_jax.evaluation.report.numbers import number
from afloc_jax.evaluation.report.small_charts import Cell, SpreadRow, cell, spread_chart
from afloc_jax.evaluation.robustness.metrics import HEADLINE, METRICS, Metric
from afloc_jax.evaluation.robustness.result import Robustness, Spread
from afloc_jax.evaluation.task import Figure, JsonObject, Section
from afloc_jax.files import Path


@dataclass(frozen=True)
class SpreadCells:
    """A metric of a class: mean, deviation, and the range in words."""

    mean: Cell
    deviation: Cell
    range: str


@dataclass(frozen=True)
class PhraseRow:
    """A phrase with its value of each metric."""

    text: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class ShownClass:
    """A class: its spread, None for a metric that it lacks, and its phrases."""

    name: str
    spreads: Sequence[SpreadCells | None]
    phrases: Sequence[PhraseRow]


@dataclass(frozen=True)
class Shown:
    """What section.html.jinja reads."""

    metrics: Sequence[Metric]
    charts: Sequence[tuple[str, Markup]]
    classes: Sequence[ShownClass]


def section(folder: Path, summary: JsonObject) -> Section:
    """What the page shows of one evaluation."""
    result = Robustness.read(summary)
    metrics = [metric for metric in METRICS if metric.name in result.spread]
    classes = list(result.paraphrases)
    return Section(
        kicker="Robustness to wording",
        lede=(f"The same {len(classes)} findings asked in several ways, on {result.n:,} images of", "."),
        headline=[
            Figure(f"{metric.title}, {part}", about, result.metrics[f"{metric.name} {part}"].overall.to_dict())
            for metric in metrics
            for part, about in HEADLINE.items()
        ],
        shown=Shown(
            metrics,
            [(metric.title, Markup(_chart(metric, result.spread[metric.name]))) for metric in metrics],  # our own SVG
            [_class(name, metrics, [result.spread[metric.name].get(name) for metric in metrics]) for name in classes],
        ),
    )


def _chart(metric: Metric, classes: Mapping[str, Spread]) -> str:
    rows = []
    for name, spread in classes.items():
        values = {text: value.mean for text, value in spread.per_paraphrase.items() if math.isfinite(value.mean)}
        rows.append(SpreadRow(name, spread.mean.mean, values))
    return spread_chart(rows, f"{metric.title} of every phrase, by class", high=metric.high)


def _class(name: str, metrics: Sequence[Metric], spreads: Sequence[Spread | None]) -> ShownClass:
    """A class with its phrases, the one with the highest value of the first metric first."""
    scored = [(metric, spread) for metric, spread in zip(metrics, spreads, strict=True) if spread is not None]
    rows = [
        PhraseRow(text, [cell(spread.per_paraphrase[text], reference=metric.chance) for metric, spread in scored])
        for text in (scored[0][1].highest_first() if scored else ())
    ]
    return ShownClass(name, [None if spread is None else _cells(spread) for spread in spreads], rows)


def _cells(spread: Spread) -> SpreadCells:
    span = f"{number(spread.lowest.mean)} to {number(spread.highest.mean)}"
    return SpreadCells(cell(spread.mean), cell(spread.deviation), span)
