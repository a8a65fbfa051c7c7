"""The most confident mistakes of a classification, for the page: examples.json and examples.npz."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from afloc_jax.evaluation.files import read_pictures, write_pictures
from afloc_jax.evaluation.labelled import LabelledRecords
from afloc_jax.files import Path
from afloc_jax.inference.class_prompts import find_class
from data_pipelines.reading import Records

MISTAKES = 3  # kept of each kind and class
FALSE_POSITIVE, MISSED = "false positive", "missed"


@dataclass(frozen=True)
class Mistake:
    """A wrong decision for a record and a class. `shows` are the classes that the record shows."""

    id: str
    category: str
    kind: str
    probability: float
    shows: list[str]


def choose_mistakes(
    labels: Float[np.ndarray, "n C"], probabilities: Float[np.ndarray, "n C"], predicted: Bool[np.ndarray, "n C"]
) -> list[tuple[int, int, str]]:
    """The most confident mistakes as (record, class, kind), at most `MISTAKES` of each kind and class.

    For each class the false positives of highest probability come first, then the missed findings of lowest
    probability. Records of unknown label are left out.
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
    source: Records,
    records: LabelledRecords,
    probabilities: Float[np.ndarray, "n C"],
    predicted: Bool[np.ndarray, "n C"],
) -> None:
    """Writes the most confident mistakes with their images, and with the masks of missed findings."""
    images, truths, mistakes = [], [], []
    for i, c, kind in choose_mistakes(records.labels, probabilities, predicted):
        record, name = source[int(records.rows[i])], records.classes[c]
        images.append(record.image)
        masks = [np.asarray(f.mask) > 0 for f in record.findings if find_class(f.label, [name])]
        truths.append(np.any(masks, axis=0) if masks else np.zeros(record.image.shape, bool))
        shows = [other for k, other in enumerate(records.classes) if records.labels[i, k] == 1]
        mistakes.append(Mistake(records.ids[i], name, kind, float(probabilities[i, c]), shows))
    arrays = {"images": np.stack(images), "truths": np.stack(truths)} if images else {}
    write_pictures(out, arrays, [asdict(mistake) for mistake in mistakes])


def read_mistakes(folder: Path) -> Iterator[tuple[Mistake, UInt8[np.ndarray, "S S"], Bool[np.ndarray, "S S"]]]:
    """The mistakes with their images and masks; none if the evaluation has no examples."""
    described, arrays = read_pictures(folder)
    for i, mistake in enumerate(described):
        yield Mistake(**mistake), arrays["images"][i], arrays["truths"][i]
