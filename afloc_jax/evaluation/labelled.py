"""Records with yes-or-no labels of classes, and their embeddings: what classification and retrieval start from."""

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.records import Source, patient_of
from afloc_jax.inference.class_prompts import class_key, find_class
from afloc_jax.inference.model import Model
from data_pipelines.images import Framing, crop_to_square
from data_pipelines.records import ABSENT, PRESENT, UNCERTAIN

NO_FINDING = "no finding"
UNLISTED = ("unknown", "absent")  # what a class is that a record's labels do not list
_HEALTHY = (NO_FINDING, "normal")  # labels that name no finding
_VALUES = {"1": PRESENT, "1.0": PRESENT, "0": ABSENT, "0.0": ABSENT, "": UNCERTAIN, "-1": UNCERTAIN, "-1.0": UNCERTAIN}


@dataclass(frozen=True)
class LabelledRecords:
    """Rows of a source with their labels.

    Attributes:
        ids, patients: of each record; a patient may be empty.
        classes: names, C of them.
        labels: [n, C] 1 present, 0 absent, NaN unknown.
        doubtful: [n, C] of the unknown ones those that are stated to be: uncertain, or empty in a table.
        rows: [n] rows of the source.
        sha256: over ids, images and labels.
        left_out: records without a label.
    """

    ids: tuple[str, ...]
    patients: tuple[str, ...]
    classes: tuple[str, ...]
    labels: Float[np.ndarray, "n C"]
    doubtful: Bool[np.ndarray, "n C"]
    rows: Int[np.ndarray, " n"]
    sha256: str
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def exclusive(self) -> Int[np.ndarray, " n"]:
        """The one class of each record; -1 for a record with none, several, or a doubtful one.

        A class that the labels of a record do not list counts as not shown: how CheXpert's 5 x 200 are chosen (GLoRIA).
        """
        one = (np.nansum(self.labels, axis=1) == 1) & ~self.doubtful.any(axis=1)
        return np.where(one, np.nan_to_num(self.labels).argmax(axis=1), -1)

    def lacked(self) -> list[str]:
        """The classes that some record is known to lack."""
        absent = (self.labels == ABSENT).any(axis=0)
        return [name for name, known in zip(self.classes, absent, strict=True) if known]

    def contrasted(self) -> tuple["LabelledRecords", list[str]]:
        """With the classes alone that some record is known to lack, and the names of the others.

        What is only ever listed where it is present can be neither told apart nor called wrong.
        """
        names = tuple(self.lacked())
        if not names:
            raise UserError(
                "no record is known to lack a class: its labels list only what is present; say --unlisted absent if "
                "they list all of it, or give --labels FILE.csv"
            )
        both = np.isin(self.classes, names)
        others = [name for name in self.classes if name not in names]
        return replace(self, classes=names, labels=self.labels[:, both], doubtful=self.doubtful[:, both]), others

    def take(self, chosen: Int[np.ndarray, " k"]) -> "LabelledRecords":
        """Some of the records, in this order."""
        return LabelledRecords(
            tuple(self.ids[i] for i in chosen),
            tuple(self.patients[i] for i in chosen),
            self.classes,
            self.labels[chosen],
            self.doubtful[chosen],
            self.rows[chosen],
            hashlib.sha256("\n".join([self.sha256, *(self.ids[i] for i in chosen)]).encode()).hexdigest(),
            self.left_out + len(self) - len(chosen),
        )


def read_labelled(
    source: Source, classes: Sequence[str] = (), labels: str | Path | None = None, unlisted: str = "unknown"
) -> LabelledRecords:
    """Labels of a data set: from a table, else those of its records, else their findings.

    Where any record of the source has labels, they are the truth: 1 present, 0 absent, -1 unknown. A class that a
    record does not list is present if a finding has its name, else what `unlisted` says. Records without either are
    left out. "No finding", where it is not listed, is absent if a class is present, and present if all are absent.

    Where no record has labels, a class is present where a finding has its name, and "no finding" where there is no
    finding at all: right for data whose findings are all annotated.

    Args:
        source: records.
        classes: names, compared without case and by synonyms. None given: the columns of the table, or all that a
            record shows, by alphabet.
        labels: a CSV with a column `id` (of the record) and one per class: 1 present, 0 absent, empty or -1 unknown;
            records it does not name are left out.
        unlisted: "unknown", or "absent" for data whose records list all that is present.

    Raises:
        UsageError: an unusable table or `unlisted`. UserError: no label, or an unknown class.
    """
    if unlisted not in UNLISTED:
        raise UsageError(f"unlisted is {unlisted!r}; a class that is not listed is {' or '.join(UNLISTED)}")
    table = _read_table(Path(labels)) if labels else None
    ids, patients, rows, stated, hashes, labelled = [], [], [], [], [], False
    for row in range(len(source)):
        record = source[row]
        if table is not None and record.id not in table:
            continue
        ids.append(record.id)
        patients.append(patient_of(record))
        rows.append(row)
        stated.append(_stated(record) if table is None else table[record.id])
        hashes.append(hashlib.sha256(np.ascontiguousarray(record.image).tobytes()).digest())
        labelled = labelled or bool(getattr(record, "labels", {}))
    if table is None:
        stated = _under_one_name(stated)
        stated = _labels_of_records(stated, unlisted) if labelled else [_of_findings(found) for found in stated]
    kept = [i for i, values in enumerate(stated) if values]
    known = sorted({name for i in kept for name in stated[i]})
    shown = [name for name in known if any(stated[i].get(name) == PRESENT for i in kept)] if table is None else known
    shown = [name for name in shown if name != NO_FINDING]
    if not kept or not (classes or shown):
        what = f"no record is named in {labels}" if labels else "no record has a label or a finding"
        raise UserError(f"{what}, so there is nothing to classify; choose another split, or give --labels FILE.csv")
    places: dict[str, str] = {}
    for name in classes or shown:
        place = find_class(name, [*known, NO_FINDING])
        if place is None:
            raise UserError(f"no record is labelled {name!r}; the labels are {', '.join(known)}")
        places[name] = place
    absent = float(ABSENT) if table is None and not (labelled and unlisted == "unknown") else np.nan
    values = np.full((len(kept), len(places)), absent)
    for n, i in enumerate(kept):
        values[n] = [stated[i].get(place, absent) for place in places.values()]
    digest = hashlib.sha256()
    for i in kept:
        digest.update(f"{ids[i]}\t{sorted(stated[i].items())}\t".encode() + hashes[i])
    return LabelledRecords(
        tuple(ids[i] for i in kept),
        tuple(patients[i] for i in kept),
        tuple(places),
        np.where(values == UNCERTAIN, np.nan, values),
        values == UNCERTAIN,
        np.array([rows[i] for i in kept], int),
        digest.hexdigest(),
        len(source) - len(kept),
    )


def present_classes(record: Any) -> list[str]:
    """What a record shows by its labels and findings, for readers; names as `class_key` has them."""
    return [name for name, value in _stated(record).items() if value == PRESENT and name not in _HEALTHY]


def _stated(record: Any) -> dict[str, int]:
    """Class -> label of one record; a finding that the labels do not list is present."""
    labels = {class_key(name): value for name, value in getattr(record, "labels", {}).items()}
    found = {class_key(f.label): PRESENT for f in record.findings if find_class(f.label, labels) is None}
    return {**found, **labels}


def _under_one_name(stated: Sequence[dict[str, int]]) -> list[dict[str, int]]:
    """Synonyms under the first of their names by alphabet. Where a record states several, present wins, then absent."""
    name_of: dict[str, str] = {}
    for name in sorted({name for values in stated for name in values}):
        name_of[name] = find_class(name, list(name_of.values())) or name
    merged: list[dict[str, int]] = []
    for values in stated:
        one: dict[str, int] = {}
        for name, value in values.items():
            one[name_of[name]] = max(value, one.get(name_of[name], UNCERTAIN))
        merged.append(one)
    return merged


def _of_findings(stated: dict[str, int]) -> dict[str, int]:
    return stated or {NO_FINDING: PRESENT}


def _labels_of_records(stated: Sequence[dict[str, int]], unlisted: str) -> list[dict[str, int]]:
    """With "no finding" where the other labels of a record decide it."""
    known = {name for values in stated for name in values}
    completed = []
    for values in stated:
        others = [value for name, value in values.items() if name not in _HEALTHY]
        complete = known <= {*values, NO_FINDING} or unlisted == "absent"
        decided: dict[str, int] = {}
        if PRESENT in others:
            decided = {NO_FINDING: ABSENT}
        elif values and complete and UNCERTAIN not in others and NO_FINDING not in known:
            decided = {NO_FINDING: PRESENT}
        elif values and unlisted == "absent" and NO_FINDING not in known:
            decided = {NO_FINDING: UNCERTAIN}
        completed.append({**decided, **values})
    return completed


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


def _read_table(path: Path) -> dict[str, dict[str, int]]:
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
    table: dict[str, dict[str, int]] = {}
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
