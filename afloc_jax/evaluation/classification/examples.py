"""What the report shows of classification: the most confident mistakes."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from afloc_jax.evaluation.files import write_pictures
from afloc_jax.evaluation.labelled import LabelledRecords
from afloc_jax.evaluation.records import Source
from afloc_jax.inference.class_prompts import find_class

MISTAKES = 3  # of each kind and class
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
