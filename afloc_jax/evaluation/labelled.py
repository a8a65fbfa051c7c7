"""Records with yes-or-no labels of classes, and their embeddings: what classification and retrieval start from."""

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.records import Source, patient_of
from afloc_jax.inference.class_prompts import class_key
from afloc_jax.inference.model import Model
from data_pipelines.images import Framing, crop_to_square

NO_FINDING = "no finding"
_VALUES = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "": np.nan, "-1": np.nan, "-1.0": np.nan}


@dataclass(frozen=True)
class LabelledRecords:
    """Rows of a source with their labels.

    Attributes:
        ids, patients: of each record; a patient may be empty.
        classes: names, C of them.
        labels: [n, C] 1 present, 0 absent, NaN unknown.
        rows: [n] rows of the source.
        sha256: over ids, images and labels.
        left_out: records without a label.
    """

    ids: tuple[str, ...]
    patients: tuple[str, ...]
    classes: tuple[str, ...]
    labels: Float[np.ndarray, "n C"]
    rows: Int[np.ndarray, " n"]
    sha256: str
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def exclusive(self) -> Int[np.ndarray, " n"]:
        """The one class of each record; -1 for a record with none, several, or an unknown one."""
        one = (np.nansum(self.labels, axis=1) == 1) & np.isfinite(self.labels).all(axis=1)
        return np.where(one, np.nan_to_num(self.labels).argmax(axis=1), -1)

    def take(self, chosen: Int[np.ndarray, " k"]) -> "LabelledRecords":
        """Some of the records, in this order."""
        return LabelledRecords(
            tuple(self.ids[i] for i in chosen),
            tuple(self.patients[i] for i in chosen),
            self.classes,
            self.labels[chosen],
            self.rows[chosen],
            hashlib.sha256("\n".join([self.sha256, *(self.ids[i] for i in chosen)]).encode()).hexdigest(),
            self.left_out + len(self) - len(chosen),
        )


def read_labelled(source: Source, classes: Sequence[str] = (), labels: str | Path | None = None) -> LabelledRecords:
    """Labels from the findings of the records, or from a table.

    Without a table a class is present where a finding has its name, and "no finding" where there is no finding at all:
    right for data whose findings are all annotated. The table is a CSV with a column `id` (of the record) and one per
    class: 1 present, 0 absent, empty or -1 unknown; records it does not name are left out. Names of classes are
    compared without case. Without `classes`, all that occur, in alphabetical order.

    Raises:
        UserError: no label, an unknown class, or a table that cannot be read.
    """
    table = _read_table(Path(labels)) if labels else None
    ids, patients, rows, findings = [], [], [], []
    digest = hashlib.sha256()
    for row in range(len(source)):
        record = source[row]
        if table is not None and record.id not in table:
            continue
        ids.append(record.id)
        patients.append(patient_of(record))
        rows.append(row)
        found = {class_key(finding.label): 1.0 for finding in record.findings}
        findings.append(table[record.id] if table is not None else found or {NO_FINDING: 1.0})
        digest.update(f"{record.id}\t{sorted(findings[-1].items())}\t".encode())
        digest.update(np.ascontiguousarray(record.image).tobytes())
    known = sorted({name for of_record in findings for name in of_record})
    if not [name for name in known if name != NO_FINDING] or not ids:
        what = f"no record is named in {labels}" if labels else "no record has a finding with a label"
        raise UserError(f"{what}, so there is nothing to classify; choose another split, or give --labels FILE.csv")
    for name in classes:
        if class_key(name) not in [*known, NO_FINDING]:
            raise UserError(f"no record is labelled {name!r}; the labels are {', '.join(known)}")
    chosen = tuple(classes) or tuple(name for name in known if name != NO_FINDING)
    absent = 0.0 if table is None else np.nan  # a table says 0 itself
    values = [[of_record.get(class_key(name), absent) for name in chosen] for of_record in findings]
    return LabelledRecords(
        tuple(ids),
        tuple(patients),
        chosen,
        np.array(values),
        np.array(rows),
        digest.hexdigest(),
        len(source) - len(ids),
    )


def own_phrases(source: Source) -> dict[str, list[str]]:
    """Class -> the phrases with which a data set's records ask for it, each once, in the order of the records."""
    phrases: dict[str, dict[str, str]] = {}
    for row in range(len(source)):
        for finding in source[row].findings:
            if finding.prompt.strip():
                phrases.setdefault(class_key(finding.label), {}).setdefault(class_key(finding.prompt), finding.prompt)
    return {name: list(texts.values()) for name, texts in phrases.items()}


def embed_records(
    model: Model, source: Source, rows: Int[np.ndarray, " n"], framing: Framing, name: str = "images"
) -> Float[np.ndarray, "n D"]:
    """[n, D] float32 global embeddings of records; `crop` is cut from what the stored square shows of the image."""
    parts = []
    for start in tqdm(range(0, len(rows), model.batch_size), desc=name, unit="batch", disable=None):
        squares = [_framed(source[int(row)], framing) for row in rows[start : start + model.batch_size]]
        parts.append(np.asarray(model.embed_squares(np.stack(squares)).whole))
    whole = np.concatenate(parts)
    if not np.isfinite(whole).all():
        raise UserError("an image embedding holds NaN or infinity: the weights are damaged or the training diverged")
    return whole


def _framed(record, framing: Framing) -> np.ndarray:
    if framing == "pad":
        return record.image
    return crop_to_square(np.ascontiguousarray(record.geometry.inner(record.image)), record.image.shape[0])


def _read_table(path: Path) -> dict[str, dict[str, float]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns, lines = list(reader.fieldnames or []), list(reader)
    except OSError as error:
        raise UsageError(f"--labels {path}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error):
        raise UsageError(f"--labels {path}: not a CSV table in UTF-8") from None
    if "id" not in columns or len(columns) < 2:
        raise UsageError(f"--labels {path}: needs a column id and one per class; it has {', '.join(columns) or 'none'}")
    repeated = [name for name, count in Counter(line["id"] for line in lines).items() if count > 1]
    if repeated:
        raise UsageError(f"--labels {path}: id {repeated[0]!r} is given twice")
    table: dict[str, dict[str, float]] = {}
    for number, line in enumerate(lines, start=2):
        table[line["id"]] = {}
        for column in columns:
            value = (line[column] or "").strip()
            if column == "id":
                continue
            if value not in _VALUES:
                raise UsageError(f"--labels {path}, line {number}: {column} is {value!r}; use 1, 0, or nothing")
            table[line["id"]][class_key(column)] = _VALUES[value]
    return table
