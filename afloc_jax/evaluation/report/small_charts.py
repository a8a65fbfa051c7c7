"""Small charts of tables and classes as inline SVG: an interval in a cell, curves in a square, a spread."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup

from afloc_jax.evaluation.report.charts import axis_ticks, mark
from afloc_jax.evaluation.report.numbers import interval, number
from afloc_jax.evaluation.statistics.discrimination import ReliabilityBin
from afloc_jax.evaluation.statistics.interval import Interval

CELL = (120, 18)  # width and height of an interval in a table
SIDE, LEFT, BOTTOM, EDGE = 200, 30, 26, 8  # a square and its margins


@dataclass(frozen=True)
class Cell:
    """A cell of a table: the number, its limits, and both as a small chart."""

    number: str
    limits: str
    svg: Markup


def cell(value: Interval, low: float = 0.0, reference: float | None = None) -> Cell:
    """The cell of a value on a scale from `low` to 1. `reference` is the chance level."""
    return Cell(number(value.mean), interval(value), Markup(interval_cell(value, low, reference)))


def interval_cell(value: Interval, low: float = 0.0, reference: float | None = None) -> str:
    """A small chart of a mean with its interval, on a scale from `low` to 1; empty without a mean.

    `reference`, the chance level, is drawn as a vertical line.
    """
    if not math.isfinite(value.mean):
        return ""
    width, height = CELL

    def x(place: float) -> float:
        return 6 + (min(max(place, low), 1.0) - low) / (1.0 - low) * (width - 12)

    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" class="cell" aria-hidden="true">']
    parts.append(f'<line class="grid" x1="{x(low):.1f}" x2="{x(1.0):.1f}" y1="{height / 2}" y2="{height / 2}"/>')
    if reference is not None:
        parts.append(
            f'<line class="reference" x1="{x(reference):.1f}" x2="{x(reference):.1f}" y1="2" y2="{height - 2}"/>'
        )
    return "".join([*parts, *mark("model", value, height / 2, x), "</svg>"])


def roc_chart(false_positives: Sequence[float], true_positives: Sequence[float], label: str) -> str:
    """A chart of the true positive rate over the false positive rate, with the diagonal of chance."""
    # Steps of less than half a pixel are invisible and would only enlarge the page.
    points = [f"{_x(a):.0f} {_y(b):.0f}" for a, b in zip(false_positives, true_positives, strict=True)]
    kept = [point for i, point in enumerate(points) if i == 0 or point != points[i - 1]]
    curve = f'<path class="line train" d="M{"L".join(kept)}"/>'
    return _square(label, [curve], "false positives", "true positives")


def reliability_chart(table: Sequence[ReliabilityBin], label: str) -> str:
    """A chart of the observed share over the mean probability of each bin, with Wilson's 95 % intervals.

    Calibrated bins lie on the diagonal. The area of a dot is the bin's share of the records.
    """
    total = sum(row.n for row in table)
    parts = []
    for row in table:
        if row.mean_probability is None or row.observed is None:
            continue
        a, radius = _x(row.mean_probability), 2 + 9 * np.sqrt(row.n / total)
        lower, upper = wilson(row.observed, row.n)
        title = f"{row.lower:.1f} to {row.upper:.1f}: {row.n} records, {row.observed:.3f} observed"
        parts.append(f'<path class="whisker" d="M{a:.1f} {_y(lower):.1f}V{_y(upper):.1f}"/>')
        parts.append(
            f'<circle class="mark model" cx="{a:.1f}" cy="{_y(row.observed):.1f}" r="{radius:.1f}">'
            f"<title>{title}</title></circle>"
        )
    return _square(label, parts, "probability", "observed")


def risk_chart(curves: Mapping[str, Sequence[Sequence[float]]], label: str) -> str:
    """A chart of the share of wrong decisions over the share of decisions made, the most certain first.

    Args:
        curves: by the kind of its line (a class of style.css), the points (coverage, risk).
        label: describes the chart for screen readers.
    """
    highest = max((risk for curve in curves.values() for _, risk in curve), default=0.0) or 1.0
    lines = []
    for kind, curve in curves.items():
        points = [f"{_x(coverage):.1f} {_y(risk / highest):.1f}" for coverage, risk in curve]
        lines.append(f'<path class="line {kind}" d="M{"L".join(points)}"/>')
    return _square(label, lines, "share decided", "share wrong", highest, diagonal=False)


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval (1927) of a proportion `share` of `n`."""
    centre, spread = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float((centre - spread) / (1 + z * z / n)), float((centre + spread) / (1 + z * z / n))


@dataclass(frozen=True)
class SpreadRow:
    """A class: its name, the mean over its phrases (NaN for none), and the value of each phrase."""

    name: str
    mean: float
    phrases: Mapping[str, float]


def spread_chart(rows: Sequence[SpreadRow], label: str, high: float | None = None) -> str:
    """A chart with one row per class: a mark for every phrase, the range as a line, and the mean as a thick stroke.

    `label` describes the chart for screen readers. The scale ends at `high`, or where None, at the largest value.
    """
    values = [value for row in rows for value in row.phrases.values()]
    if not values:
        return ""
    high = max(values) * 1.06 if high is None else high
    high = high if high > 0 else 1.0
    width, names, step = 520, 150, 30
    height = step * len(rows) + 30

    def x(value: float) -> float:
        return names + value / high * (width - names - 16)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" class="chart">']
    parts += axis_ticks(0.0, high, x, height - 24)
    for i, row in enumerate(rows):
        y, found = 4 + step * (i + 0.5), list(row.phrases.values())
        parts.append(f'<text class="name" x="{names - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(row.name)}</text>')
        if found:
            parts.append(f'<path class="whisker" d="M{x(min(found)):.1f} {y:.1f}H{x(max(found)):.1f}"/>')
        for text, value in row.phrases.items():
            title = f"<title>{escape(text)}: {value:.3f}</title>"
            parts.append(f'<circle class="mark phrase" cx="{x(value):.1f}" cy="{y:.1f}" r="4.5">{title}</circle>')
        if math.isfinite(row.mean):
            parts.append(f'<path class="mean" d="M{x(row.mean):.1f} {y - 9:.1f}v18"/>')
    return "".join([*parts, "</svg>"])


def _x(value: float) -> float:
    return LEFT + value * (SIDE - LEFT - EDGE)


def _y(value: float) -> float:
    return SIDE - BOTTOM - value * (SIDE - BOTTOM - EDGE)


def _square(
    label: str, marks: Sequence[str], below: str, beside: str, highest: float = 1.0, diagonal: bool = True
) -> str:
    """The unit square with its diagonal, `marks` on it, and the names of the axes. `highest`: the value at its top."""
    parts = [f'<svg viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{escape(label)}" class="chart">']
    for value in (0.0, 0.5, 1.0):
        parts.append(f'<line class="grid" x1="{_x(0)}" x2="{_x(1)}" y1="{_y(value)}" y2="{_y(value)}"/>')
        parts.append(f'<line class="grid" x1="{_x(value)}" x2="{_x(value)}" y1="{_y(0)}" y2="{_y(1)}"/>')
    for value in (0, 1):
        parts.append(f'<text class="tick" x="{_x(value)}" y="{SIDE - 10}" text-anchor="middle">{value}</text>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{_y(value) + 4}" text-anchor="end">{value * highest:.2g}</text>'
        )
    parts.append(f'<text class="tick" x="{_x(0.5)}" y="{SIDE - 10}" text-anchor="middle">{below}</text>')
    middle = f"{LEFT - 10} {_y(0.5):.0f}"
    parts.append(f'<text class="tick" text-anchor="middle" transform="translate({middle}) rotate(-90)">{beside}</text>')
    if diagonal:
        parts.append(f'<path class="reference" d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}"/>')
    return "".join([*parts, *marks, "</svg>"])
