"""Charts as inline SVG. Colours are classes of the page's style sheet, so that they suit light and dark mode."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NotRequired, TypedDict

import numpy as np
from jaxtyping import Float

from afloc_jax.evaluation.statistics.interval import Interval

SIZE, SMALL = (520, 250), (350, 190)  # width and height; letters have the same size in both
LANE = 7  # distance of the marks of a row, so that intervals do not overlap
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 34


class Line(TypedDict):
    """A line over training steps.

    `kind` is its CSS class; lines of class "raw" are faint. `dots` marks its points; those of class "validation" are
    marked in any case. `group` is what a page picks the line out by.
    """

    name: str
    kind: str
    steps: Sequence[float] | np.ndarray
    values: Sequence[float] | np.ndarray
    dots: NotRequired[bool]
    group: NotRequired[int]


class Row(TypedDict):
    """A row of an interval chart: the value of the model, and (kind, value) of other systems."""

    name: str
    model: Interval
    others: Sequence[tuple[str, Interval]]
    strong: NotRequired[bool]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def smooth(values: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """A centred running mean whose window is shorter at the ends. NaN points are ignored."""
    finite = np.isfinite(values)
    kernel = np.ones(window)
    total = np.convolve(np.where(finite, values, 0.0), kernel, mode="full")
    weight = np.convolve(finite.astype(float), kernel, mode="full")
    start = (window - 1) // 2
    total, weight = total[start : start + len(values)], weight[start : start + len(values)]
    return np.asarray(np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 0))


def curve_chart(series: Sequence[Line], label: str, floor: float | None = None, small: bool = False) -> str:
    """A chart of lines over training steps. `label` describes it for screen readers.

    `floor` is the lower end of the y axis; None takes it from the data. Small charts are shown three in a row.
    """
    width, height = SMALL if small else SIZE
    points = [
        (float(s), float(v))
        for line in series
        for s, v in zip(line["steps"], line["values"], strict=True)
        if math.isfinite(v)
    ]
    if not points:
        return ""
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    # The first steps may be far above the others, so the scale ignores the highest 1 % of the values.
    heights = np.array([p[1] for p in points])
    y_low, y_high = float(heights.min()), float(np.quantile(heights, 0.99))
    y_low = y_low if floor is None else min(floor, y_low)
    y_high = y_high if y_high > y_low else y_low + 1.0
    margin = 0.06 * (y_high - y_low)
    y_low, y_high = (y_low if floor is not None else y_low - margin), y_high + margin
    x_high = x_high if x_high > x_low else x_low + 1

    def x(step: float) -> float:
        return LEFT + (step - x_low) / (x_high - x_low) * (width - LEFT - RIGHT)

    def y(value: float) -> float:
        value = min(max(value, y_low), y_high)
        return height - BOTTOM - (value - y_low) / (y_high - y_low) * (height - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" class="chart">']
    for tick in nice_ticks(y_low, y_high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_tick(LEFT - 8, y(tick) + 4, "end", tick))
    for tick in nice_ticks(x_low, x_high, 4 if small else 6):
        parts.append(_tick(x(tick), height - BOTTOM + 18, "middle", tick))
    for line in series:
        pairs = [(x(s), y(v)) for s, v in zip(line["steps"], line["values"], strict=True) if math.isfinite(v)]
        if not pairs:
            continue
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in pairs)
        kind, group = line["kind"], f' data-setting="{line["group"]}"' if "group" in line else ""
        parts.append(f'<path class="line {kind}"{group} d="{path}"><title>{escape(line["name"])}</title></path>')
        if kind == "validation" or line.get("dots"):
            parts += [f'<circle class="dot {kind}"{group} cx="{a:.1f}" cy="{b:.1f}" r="3.2"/>' for a, b in pairs]
    parts.append("</svg>")
    return "".join(parts)


def interval_chart(rows: Sequence[Row], label: str, high: float | None = None) -> str:
    """A chart with one row per category: the model's mean with its interval, and fainter those of other systems.

    `label` describes the chart for screen readers. The scale begins below 0 if there are negative values. It ends at
    `high`, or where None, at the largest value.
    """
    values = [
        v
        for row in rows
        for value in [row["model"], *(other for _, other in row["others"])]
        for v in (value.mean, value.lower, value.upper)
        if math.isfinite(v)
    ]
    if not values:
        return ""
    low = min([0.0, *values])
    high = max(values) * 1.04 if high is None else max([high, *values])
    high = high if high > low else low + 1.0
    names_width, row_height, width = 150, 18 + LANE * max(1, max(len(row["others"]) for row in rows) + 1), 520
    height = len(rows) * row_height + 30

    def x(value: float) -> float:
        return names_width + (value - low) / (high - low) * (width - names_width - 16)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" class="chart">']
    parts += axis_ticks(low, high, x, height - 24)
    for i, row in enumerate(rows):
        parts += _interval_row(row, y=4 + row_height * (i + 0.5), x=x, names_width=names_width)
    parts.append("</svg>")
    return "".join(parts)


def axis_ticks(low: float, high: float, x: Callable[[float], float], bottom: float) -> list[str]:
    """Grid lines down to `bottom`, with numbers below, at round values of a horizontal scale."""
    parts = []
    for tick in nice_ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{bottom}"/>')
        parts.append(_tick(x(tick), bottom + 16, "middle", tick))
    return parts


def _interval_row(row: Row, y: float, x: Callable[[float], float], names_width: int) -> list[str]:
    strong = " strong" if row.get("strong") else ""
    parts = [
        f'<text class="name{strong}" x="{names_width - 12}" y="{y + 4:.1f}" text-anchor="end">'
        f"{escape(row['name'])}</text>"
    ]
    count = len(row["others"]) + 1
    for k, (kind, value) in enumerate([*row["others"], ("model", row["model"])]):
        parts += mark(kind, value, y + LANE * (count - 1 - k - (count - 1) / 2), x)
    return parts


def mark(kind: str, value: Interval, y: float, x: Callable[[float], float]) -> list[str]:
    """The mark of a mean with its whisker; nothing without a mean."""
    mean, lower, upper = value.mean, value.lower, value.upper
    if not math.isfinite(mean):
        return []
    parts = []
    title = f"{mean:.3f}"
    if math.isfinite(lower) and math.isfinite(upper):
        title += f" [{lower:.3f}, {upper:.3f}]"
        parts.append(f'<path class="whisker {kind}" d="M{x(lower):.1f} {y:.1f}H{x(upper):.1f}"/>')
    a = x(mean)
    shapes = {
        "prior": f"M{a:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",  # a diamond
        "prompt": f"M{a:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",  # a hollow diamond
        "shuffled": f"M{a:.1f} {y - 4.5:.1f}l5 9h-10z",  # a triangle
        "benchmark": f"M{a - 4:.1f} {y - 4:.1f}h8v8h-8z",  # a square
        "untrained": f"M{a - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8",  # a cross
    }
    if kind in shapes:
        parts.append(f'<path class="mark {kind}" d="{shapes[kind]}"><title>{title}</title></path>')
    else:
        parts.append(f'<circle class="mark {kind}" cx="{a:.1f}" cy="{y:.1f}" r="5"><title>{title}</title></circle>')
    return parts


def _tick(x: float, y: float, anchor: str, value: float) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{tick_text(value)}</text>'


def tick_text(value: float) -> str:
    """The number beside a tick: whole thousands with k, small ones with an exponent."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    if value and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:g}"
