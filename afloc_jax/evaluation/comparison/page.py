"""The page of a comparison, comparison.html: means and differences with intervals, as tables and charts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from afloc_jax.evaluation.comparison.means import Mean
from afloc_jax.evaluation.comparison.result import OVERALL, Difference, Row, remark_on_rows, short
from afloc_jax.evaluation.report import charts
from afloc_jax.evaluation.report.templates import environment
from afloc_jax.evaluation.statistics.coverage import FEW
from afloc_jax.evaluation.statistics.interval import Interval
from afloc_jax.settings import Json

MARKS = ("model", "prior", "benchmark", "untrained", "shuffled", "prompt")  # of the systems on the page


@dataclass(frozen=True)
class _Chart:
    """A metric: its means of every system by category, and the differences."""

    metric: str
    means: Markup
    differences: Markup


def comparison_page(
    systems: Sequence[str],
    means: Sequence[Mean],
    differences: Sequence[Difference],
    notes: Sequence[str],
    bootstrap: Mapping[str, Json],
    images: str,
) -> str:
    """The page, one file that needs no network. Charts show as many systems as there are `MARKS`.

    `images` is the sentence on what the images are, in its first lines.
    """
    count = len(systems)
    table = [means[start : start + count] for start in range(0, len(means), count)]
    rows = [row for one in differences for row in one.rows]
    # A chart of differences lacks the system that they are taken from, and needs a mark "model": it comes last.
    names = dict.fromkeys([*(one.system for one in differences), differences[0].against])  # a folder with itself: one
    marks = dict(zip(names, MARKS, strict=False))
    made = environment()
    made.filters |= {"p": lambda value: short(value).replace("-", "–", short(value) == "-")}  # noqa: RUF001
    metrics = list(dict.fromkeys(row.metric for row in rows))
    return made.get_template("comparison/page.html.jinja").render(
        systems=systems,
        marks=marks,
        table=table,
        differences=differences,
        metrics=metrics,
        charts=[_chart(metric, table, differences, marks) for metric in metrics],
        notes=notes,
        images=images,
        bootstrap=bootstrap,
        remark=remark_on_rows(rows, bootstrap["unit"]),
        few=FEW,
        overall=OVERALL,
        counted=any(row.only_a is not None for row in rows),
        interval_of=_interval_of,
    )


def _chart(
    metric: str, table: Sequence[Sequence[Mean]], differences: Sequence[Difference], marks: Mapping[str, str]
) -> _Chart:
    means = [
        _row(row[0].category, {marks[mean.system]: mean.interval for mean in row if mean.system in marks})
        for row in table
        if row[0].metric == metric
    ]
    by_category: dict[str, dict[str, Interval]] = {}
    for one in differences:
        for row in one.rows:
            if row.metric == metric and one.system in marks:
                by_category.setdefault(row.category, {})[marks[one.system]] = _interval_of(row)
    apart = [_row(category, values) for category, values in by_category.items()]
    return _Chart(
        metric,
        Markup(charts.interval_chart(means, f"{metric} of every system")),
        Markup(charts.interval_chart(apart, f"differences of {metric}", high=0.0)),
    )


def _row(category: str, values: Mapping[str, Interval]) -> charts.Row:
    """The row of a category: an interval for every mark."""
    others = [(mark, values[mark]) for mark in MARKS[1:] if mark in values]
    return {"name": category, "model": values[MARKS[0]], "others": others, "strong": category == OVERALL}


def _interval_of(row: Row) -> Interval:
    return Interval(row.difference, row.lower, row.upper)
