"""The images that some reports retrieve, for the page: examples.json and examples.npz."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from afloc_jax.evaluation.files import read_pictures, write_pictures
from afloc_jax.evaluation.labelled import present_classes
from afloc_jax.files import Path
from data_pipelines.reading import Records

QUERIES, RETRIEVED = 6, 5


@dataclass(frozen=True)
class Item:
    """A retrieved image: its labels, its index among the pictures, and whether it is relevant."""

    id: str
    labels: list[str]
    image: int
    relevant: bool


@dataclass(frozen=True)
class Query:
    """A query: the report of an image, the rank of the first relevant image, and the images that it retrieves."""

    id: str
    labels: list[str]
    image: int
    first_relevant: int
    retrieved: list[Item]


def choose_queries(similarity: Float[np.ndarray, "Q N"], relevant: Bool[np.ndarray, "Q N"]) -> Int[np.ndarray, " k"]:
    """Evenly spaced queries from the best to the worst, by average precision, without those without a relevant item.

    Of equally similar items the irrelevant ones are ranked first, as in `retrieval_scores`.
    """
    order = np.lexsort((relevant, -similarity), axis=1)
    hits = np.take_along_axis(relevant, order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    count = hits.sum(axis=1)
    average = np.where(count > 0, (precision * hits).sum(axis=1) / np.maximum(count, 1), np.nan)
    ranked = np.argsort(-average, kind="stable")
    ranked = ranked[np.isfinite(average[ranked])]
    steps = np.linspace(0, len(ranked) - 1, min(QUERIES, len(ranked))).round().astype(int)
    return np.asarray(ranked[steps])


def write_retrieved(
    out: Path,
    source: Records,
    rows: Int[np.ndarray, " n"],
    similarity: Float[np.ndarray, "n n"],
    relevant: Bool[np.ndarray, "n n"],
) -> None:
    """Writes, for some reports (rows of `similarity`), their own image and the images (columns) that they retrieve."""
    images: list[np.ndarray] = []

    def picture(i: int) -> tuple[str, list[str], int]:
        record = source[int(rows[i])]
        images.append(record.image)
        return record.id, present_classes(record), len(images) - 1

    queries = []
    for query in choose_queries(similarity, relevant).tolist():
        order = np.lexsort((relevant[query], -similarity[query]))
        first = int(np.argmax(relevant[query][order])) + 1
        items = [Item(*picture(int(i)), relevant=bool(relevant[query, i])) for i in order[:RETRIEVED]]
        queries.append(Query(*picture(query), first_relevant=first, retrieved=items))
    write_pictures(out, {"images": np.stack(images)} if images else {}, [asdict(query) for query in queries])


def read_retrieved(folder: Path) -> Iterator[tuple[Query, UInt8[np.ndarray, "n S S"]]]:
    """The queries, each with all pictures; none if the evaluation has no examples."""
    described, arrays = read_pictures(folder)
    for query in described:
        items = [Item(**item) for item in query["retrieved"]]
        yield Query(**{**query, "retrieved": items}), arrays["images"]
