"""The section on transfer of the page: each metric by class and share of the labels, beside random weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from afloc_jax.evaluation.report.small_charts import Cell, cell
from afloc_jax.evaluation.results import ByCategory
from afloc_jax.evaluation.task import Figure, JsonObject, Section
from afloc_jax.evaluation.transfer.metrics import BY_NAME, UNTRAINED, Metric, key_of
from afloc_jax.evaluation.transfer.result import TransferResult
from afloc_jax.files import Path


@dataclass(frozen=True)
class Row:
    """A row: a class, or all classes if it has no name, of a system, with a cell for each share."""

    name: str | None
    system: str
    cells: list[Cell]
    positives: str = ""


@dataclass(frozen=True)
class Table:
    """The table of a metric, and the differences of the model from random weights, one for each share."""

    metric: Metric
    rows: list[Row]
    differences: list[str]


def section(folder: Path, summary: JsonObject) -> Section:
    """The section of one evaluation, for section.html.jinja."""
    result = TransferResult.read(summary)
    return Section(
        subject="transfer",
        kicker="Transfer",
        lede=(
            f"A head learned {len(result.n_per_category)} classes from shares of the {result.target}, on the "
            f"{result.encoder} encoder, and was scored on {result.n:,} images of",
            ".",
        ),
        headline=[
            _figure(result, BY_NAME[name], share.name, share.title)
            for name in result.metric_names
            for share in result.shares
        ],
        shown={
            "shares": result.shares,
            "tables": [_table(result, BY_NAME[name]) for name in result.metric_names],
            "chosen": result.chosen,
            "head": result.head,
            "validation": result.validation,
            "left_out": result.remark_on_left_out,
        },
    )


def _figure(result: TransferResult, metric: Metric, share: str, title: str) -> Figure:
    key, others = key_of(metric.name, share), []
    if UNTRAINED in result.baselines:
        value = result.baselines[UNTRAINED].metrics[key].overall.mean
        others.append((UNTRAINED, "random weights", value))
    return Figure(f"{metric.title}, {title}", metric.about, result.metrics[key].overall, others)


def _table(result: TransferResult, metric: Metric) -> Table:
    keys = [key_of(metric.name, share.name) for share in result.shares]
    rows = []
    for name in (None, *result.n_per_category):
        positives = "" if name is None else f"{result.positives[name]} / {result.n_per_category[name]}"
        for system, metrics in result.systems.items():
            rows.append(Row(name, system, _cells(metrics, keys, name, metric), positives))
    differences = [str(result.differences[key].overall) for key in keys if key in result.differences]
    return Table(metric, rows, differences)


def _cells(metrics: Mapping[str, ByCategory], keys: list[str], name: str | None, metric: Metric) -> list[Cell]:
    values = [metrics[key].overall if name is None else metrics[key].per_category[name] for key in keys]
    return [cell(value, reference=metric.chance) for value in values]
