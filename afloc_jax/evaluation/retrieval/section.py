"""Retrieval on the page: R@K and P@K beside chance, and images that some reports retrieve."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from afloc_jax.evaluation.report.small_charts import Cell, cell
from afloc_jax.evaluation.retrieval.examples import Item, Query, read_retrieved
from afloc_jax.evaluation.retrieval.metrics import DIRECTIONS, Metric
from afloc_jax.evaluation.retrieval.result import Retrieval
from afloc_jax.evaluation.task import Figure, JsonObject, Section
from afloc_jax.files import Path
from afloc_jax.inference import overlays


@dataclass(frozen=True)
class Row:
    """A line of the table: for each direction the value, and its value for a random order."""

    label: str
    cells: Sequence[tuple[Cell, float]]


@dataclass(frozen=True)
class ClassRow:
    """A metric in one direction: its value for the queries of each class."""

    label: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Picture:
    """An image of a query or of an item."""

    item: Query | Item
    size: int
    image: str


@dataclass(frozen=True)
class ShownQuery:
    """A query and what it retrieves."""

    query: Picture
    retrieved: Sequence[Picture]


@dataclass(frozen=True)
class Shown:
    """What section.html.jinja reads."""

    directions: Sequence[str]
    rows: Sequence[Row]
    classes: Sequence[str]
    by_class: Sequence[ClassRow]
    queries: Sequence[ShownQuery]


def section(folder: Path, summary: JsonObject) -> Section:
    """What the page shows of one evaluation."""
    result = Retrieval.read(summary)
    metrics = {Metric.of_key(key): values for key, values in result.metrics.items()}
    rows: dict[str, list[tuple[Cell, float]]] = {}
    for metric, values in metrics.items():
        rows.setdefault(metric.short, []).append((cell(values.overall, reference=values.chance), values.chance))
    wanted = (
        "an image or report of the same class" if result.by_class else "the report of an image, the image of a report"
    )
    headline = "precision" if result.by_class else "recall"
    return Section(
        kicker="Retrieval of images and reports",
        lede=(f"Asked for {wanted}, among {result.n:,} pairs of", "."),
        headline=[
            Figure(
                _title(metric),
                f"the first {metric.top} of the ranking",
                values.overall.to_dict(),
                [("chance", "chance", values.chance)],
            )
            for metric, values in metrics.items()
            if metric.kind == headline
        ],
        shown=Shown(
            directions=list(DIRECTIONS.values()),
            rows=[Row(label, cells) for label, cells in rows.items()],
            classes=result.classes,
            by_class=[
                ClassRow(_title(metric), [cell(values.per_category[name]) for name in result.classes])
                for metric, values in metrics.items()
            ],
            queries=[_query(query, images) for query, images in read_retrieved(folder)],
        ),
    )


def _title(metric: Metric) -> str:
    return f"{metric.short}, {DIRECTIONS[metric.direction]}"


def _query(query: Query, images: UInt8[np.ndarray, "n S S"]) -> ShownQuery:
    def picture(item: Query | Item) -> Picture:
        return Picture(item, images[item.image].shape[0], overlays.jpeg_uri(images[item.image]))

    return ShownQuery(picture(query), [picture(item) for item in query.retrieved])
