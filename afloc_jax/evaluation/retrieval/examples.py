"""What the report shows of retrieval: what some queries retrieve."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from afloc_jax.evaluation.files import write_pictures
from afloc_jax.evaluation.labelled import present_classes
from afloc_jax.evaluation.records import Source

QUERIES, RETRIEVED = 6, 5


def choose_queries(similarity: Float[np.ndarray, "Q N"], relevant: Bool[np.ndarray, "Q N"]) -> Int[np.ndarray, " k"]:
    """Queries from the best to the worst in even steps, by average precision; those without a relevant item are out.

    Of equally similar items irrelevant ones come first, as in `retrieval_scores`.
    """
    order = np.lexsort((relevant, -similarity), axis=1)
    hits = np.take_along_axis(relevant, order, axis=1)
    precision = np.cumsum(hits, axis=1) / np.arange(1, hits.shape[1] + 1)
    count = hits.sum(axis=1)
    average = np.where(count > 0, (precision * hits).sum(axis=1) / np.maximum(count, 1), np.nan)
    ranked = np.argsort(-average, kind="stable")
    ranked = ranked[np.isfinite(average[ranked])]
    steps = np.linspace(0, len(ranked) - 1, min(QUERIES, len(ranked))).round().astype(int)
    return ranked[steps]


def write_retrieved(
    out: Path,
    source: Source,
    rows: Int[np.ndarray, " n"],
    similarity: Float[np.ndarray, "n n"],
    relevant: Bool[np.ndarray, "n n"],
) -> None:
    """For some reports (rows of `similarity`) their own image and the images (columns) that they retrieve."""
    images: list[np.ndarray] = []

    def picture(i: int) -> dict[str, Any]:
        record = source[int(rows[i])]
        images.append(record.image)
        return {"id": record.id, "labels": present_classes(record), "image": len(images) - 1}

    described = []
    for query in choose_queries(similarity, relevant).tolist():
        order = np.lexsort((relevant[query], -similarity[query]))
        first = int(np.argmax(relevant[query][order])) + 1
        found = [{**picture(int(i)), "relevant": bool(relevant[query, i])} for i in order[:RETRIEVED]]
        described.append({**picture(query), "first_relevant": first, "retrieved": found})
    write_pictures(out, {"images": np.stack(images)} if images else {}, described)
