"""The section on presence of the page: calibration, selective risk, false positives, phrases that name nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from afloc_jax.evaluation.presence.metrics import BY_NAME, KINDS, METRICS, SEEN
from afloc_jax.evaluation.presence.result import PresenceResult, key_of
from afloc_jax.evaluation.report.numbers import number
from afloc_jax.evaluation.report.small_charts import Cell, cell, reliability_chart, risk_chart
from afloc_jax.evaluation.task import Figure, JsonObject, Section
from afloc_jax.files import Path
from afloc_jax.weights.calibration import PRESENT

_HEADLINE = ("ece", "brier", "fpr90")
_LINES = ("train", "validation")  # of both parts in the chart of selective risk


@dataclass(frozen=True)
class Row:
    """A row of the table of a part: all classes (in one of `KINDS`), or a class."""

    name: str
    counts: str
    cells: Mapping[str, Cell]
    base: str
    is_all: bool


@dataclass(frozen=True)
class Part:
    """The classes seen, or left out: the rows of its table and its reliability diagram."""

    name: str
    rows: list[Row]
    chart: Markup
    note: str


def section(folder: Path, summary: JsonObject) -> Section:
    """The section of one evaluation, for section.html.jinja."""
    result = PresenceResult.read(summary)
    curves = {line: result.selective[part] for part, line in zip(result.parts, _LINES, strict=False)}
    risk = Markup(risk_chart(curves, "Share of wrong decisions over the share of decisions made"))  # our own SVG
    return Section(
        subject="presence",
        kicker="Is it there?",
        lede=(
            f"The model gave {result.questions:,} probabilities that a finding is present, in {result.n:,} images of",
            f", {len(result.positives)} classes.",
        ),
        headline=[
            Figure(f"{BY_NAME[name].title}, {part}", BY_NAME[name].about, result.metrics[key_of(name, part)].overall)
            for part in result.parts
            for name in _HEADLINE
        ],
        shown={
            "metrics": METRICS,
            "parts": [_part(result, part) for part in result.parts],
            "risk": risk,
            "lines": dict(zip(result.parts, _LINES, strict=False)),
            "classes": {
                name: Markup(reliability_chart(table, f"Observed share over probability of {name}"))  # our own SVG
                for name, table in result.reliability_of_classes.items()
            },
            "own_fit": result.own_fit,
            "kept": result.kept,
            "threshold": PRESENT,
        },
    )


def _part(result: PresenceResult, part: str) -> Part:
    rows = []
    for kind in KINDS:
        cells = {name: cell(result.metrics[key_of(name, part, kind)].overall) for name in BY_NAME}
        spoken = f"all classes{', ' + kind if kind else ''}"
        rows.append(Row(spoken, "", cells, number(result.base_brier[""]), is_all=True))
    for name, positives in result.positives.items():
        cells = {metric: cell(result.metrics[key_of(metric, part)].per_category[name]) for metric in BY_NAME}
        counts = f"{positives} / {result.negatives[name]}"
        rows.append(Row(name, counts, cells, number(result.base_brier[name]), is_all=False))
    label = f"Observed share over probability, classes {part}"
    about = "the model's own calibration" if part == SEEN else "each class by a pooled fit without its labels"
    chart = Markup(reliability_chart(result.reliability[part], label))  # our own SVG
    return Part(part, rows, chart, about)
