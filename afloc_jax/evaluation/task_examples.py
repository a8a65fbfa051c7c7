"""What the report shows of classification and retrieval: the most confident mistakes, and what queries retrieve."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from afloc_jax.evaluation.examples import write_pictures
from afloc_jax.evaluation.labelled import LabelledRecords, present_classes
from afloc_jax.evaluation.records import Source
from afloc_jax.inference.class_prompts import find_class

MISTAKES = 3  # of each kind and class
QUERIES, RETRIEVED = 6, 5
FALSE_POSITIVE, MISSED = "false positive", "missed"


def choose_mistakes(
    labels: Float[np.ndarray, "n C"], probabilities: Float[np.ndarray, "n C"], predicted: Bool[np.ndarray, "n C"]
) -> list[tuple[int, int, str]]:
    """(record, class, kind) of the mistakes that a model was surest of, `MISTAKES` of each kind and class.

    False positives with the highest probability, then findings missed with the lowest. Unknown labels are no mistakes.
    """
    chosen = []
    for c in range(labels.shape[1]):
        of_class = probabilities[:, c]
        false, missed = (labels[:, c] == 0) & predicted[:, c], (labels[:, c] == 1) & ~predicted[:, c]
        for kind, wrong, order in ((FALSE_POSITIVE, false, -of_class), (MISSED, missed, of_class)):
            rows = np.flatnonzero(wrong)
            chosen += [(int(i), c, kind) for i in rows[np.argsort(order[rows], kind="stable")][:MISTAKES]]
    return chosen


def write_mistakes(
    out: Path,
    source: Source,
    records: LabelledRecords,
    probabilities: Float[np.ndarray, "n C"],
    predicted: Bool[np.ndarray, "n C"],
) -> None:
    """The chosen mistakes with their images and, for a finding that was missed, where it is."""
    images, truths, described = [], [], []
    for i, c, kind in choose_mistakes(records.labels, probabilities, predicted):
        record = source[int(records.rows[i])]
        images.append(record.image)
        truths.append(_place(record, records.classes[c]))
        described.append(
            {
                "id": records.ids[i],
                "category": records.classes[c],
                "kind": kind,
                "probability": float(probabilities[i, c]),
                "shows": _shown(records, i),
            }
        )
    arrays = {"images": np.stack(images), "truths": np.stack(truths)} if images else {}
    write_pictures(out, arrays, described)


def _place(record: Any, name: str) -> Bool[np.ndarray, "S S"]:
    """Where the findings of a class are; nowhere if the record does not say."""
    masks = [np.asarray(f.mask) > 0 for f in record.findings if find_class(f.label, [name])]
    return np.any(masks, axis=0) if masks else np.zeros(record.image.shape, bool)


def _shown(records: LabelledRecords, i: int) -> list[str]:
    return [name for c, name in enumerate(records.classes) if records.labels[i, c] == 1]


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
