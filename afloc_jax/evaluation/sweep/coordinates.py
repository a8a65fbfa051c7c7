"""Parallel coordinates (Inselberg 1985): a vertical axis for every number, and a line for every run, as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from afloc_jax.evaluation.report.charts import nice_ticks, tick_text
from afloc_jax.evaluation.sweep.overrides import text_of
from afloc_jax.settings import Json

WIDTH, HEIGHT = 1116, 330
_TOP, _BOTTOM, _LEFT, _RIGHT = 48, 14, 74, 20
_GAP = 13  # pixels between the texts of an axis
_LOGARITHMIC = 8  # values of a setting that span more than this factor lie on a logarithmic scale
_LETTERS = 12


@dataclass(frozen=True)
class Axis:
    """An axis and the value of each run on it.

    Attributes:
        title: its name above it.
        values: one for each run; None and NaN where a run has none.
        measured: whether it is a result; the values of a setting are marked one by one instead of by round numbers.
        falling: whether lower is better; the lowest value is then at the top.
    """

    title: str
    values: Sequence[Json]
    measured: bool = False
    falling: bool = False


@dataclass(frozen=True)
class Path:
    """The line of a run. `kind` is its CSS class, `group` the number of its setting."""

    name: str
    kind: str
    group: int


def coordinates(axes: Sequence[Axis], paths: Sequence[Path], label: str) -> str:
    """The chart; `label` describes it for screen readers. Later paths are drawn over earlier ones."""
    step = (WIDTH - _LEFT - _RIGHT) / max(len(axes) - 1, 1)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" class="chart wide">']
    places, texts = [], []
    for number, axis in enumerate(axes):
        x = _LEFT + number * step
        shares, ticks = _scaled(axis)
        places.append([(x, _y(share)) if share is not None else None for share in shares])
        last = number == len(axes) - 1
        anchor, where = ("end", x + _RIGHT - 2) if last else ("middle" if number else "start", x if number else 0)
        parts.append(f'<path class="axis" d="M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>')
        above = [("name", 26, _cut(axis.title, step)), *([("tick", 11, "low at the top")] if axis.falling else [])]
        for kind, height, text in above:
            place = f'x="{where:.1f}" y="{_TOP - height}" text-anchor="{anchor}"'
            texts.append(f'<text class="{kind}" {place}>{text}</text>')
        for share, text in ticks:
            parts.append(f'<path class="axis" d="M{x - 4:.1f} {_y(share):.1f}h4"/>')
            texts.append(f'<text class="tick" x="{x - 8:.1f}" y="{_y(share) + 4:.1f}" text-anchor="end">{text}</text>')
    for index, path in enumerate(paths):
        drawn = _line([column[index] for column in places])
        title = f"<title>{escape(path.name)}</title>"
        parts.append(f'<path class="line {path.kind}" data-setting="{path.group}" d="{drawn}">{title}</path>')
    return "".join([*parts, *texts, "</svg>"])


def _line(points: Sequence[tuple[float, float] | None]) -> str:
    """A curve that crosses every axis horizontally; it is interrupted where a value is missing."""
    drawn, before = [], None
    for point in points:
        if point is not None:
            x, y = point
            if before is None:
                drawn.append(f"M{x:.1f} {y:.1f}")
            else:
                bend = (x - before[0]) * 0.4
                drawn.append(f"C{before[0] + bend:.1f} {before[1]:.1f} {x - bend:.1f} {y:.1f} {x:.1f} {y:.1f}")
        before = point
    return "".join(drawn)


def _y(share: float) -> float:
    return HEIGHT - _BOTTOM - 8 - share * (HEIGHT - _TOP - _BOTTOM - 16)


def _scaled(axis: Axis) -> tuple[list[float | None], list[tuple[float, str]]]:
    """The height of each run on the axis, from 0 to 1, and of the texts beside it."""
    numbers: list[float] = []
    for value in axis.values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            return _of_names(axis.values)
        numbers.append(math.nan if value is None else float(value))
    known = [value for value in numbers if math.isfinite(value)]
    if not known:
        return [None] * len(numbers), []
    low, high = min(known), max(known)
    logarithmic = not axis.measured and low > 0 and high / low > _LOGARITHMIC

    def share(value: float) -> float:
        if high == low:
            return 0.5
        height = math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)
        return 1 - height if axis.falling else height

    marked = nice_ticks(low, high) if axis.measured else sorted({*known})
    shares = [share(value) if math.isfinite(value) else None for value in numbers]
    return shares, _apart([(share(value), tick_text(value)) for value in marked])


def _of_names(values: Sequence[Json]) -> tuple[list[float | None], list[tuple[float, str]]]:
    """Heights of values that are no numbers: they lie at equal distances, in the order of the sweep from the top."""
    names = [text_of(value) for value in values]
    distinct = list(dict.fromkeys(names))
    places = {
        name: 1 - index / (len(distinct) - 1) if len(distinct) > 1 else 0.5 for index, name in enumerate(distinct)
    }
    return [places[name] for name in names], _apart([(place, _cut(name)) for name, place in places.items()])


def _apart(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """The texts that have room, from the top; the lowest one always stands."""
    kept: list[tuple[float, str]] = []
    ordered = sorted(ticks, key=lambda tick: -tick[0])
    for tick in ordered:
        if not kept or _y(tick[0]) - _y(kept[-1][0]) >= _GAP:
            kept.append(tick)
        elif tick is ordered[-1] and len(kept) > 1:
            kept[-1] = tick
    return kept


def _cut(text: str, room: float = 0.0) -> str:
    """A text with at most the letters that fit into `room` pixels, or beside an axis."""
    most = max(int(room / 7.5), 6) if room else _LETTERS
    return escape(text if len(text) <= most else f"{text[: most - 1]}…")
