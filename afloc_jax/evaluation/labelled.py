"""Records with binary labels of classes, and their embeddings, for all tasks but localisation."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from tqdm import tqdm

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.sharing import gathered, is_own
from afloc_jax.files import Path
from afloc_jax.inference.class_prompts import class_key, find_class
from afloc_jax.inference.model import Model
from afloc_jax.tables import read_table
from data_pipelines.constants import Framing
from data_pipelines.images import crop_to_square
from data_pipelines.reading import Records
from data_pipelines.records import ABSENT, PRESENT, UNCERTAIN, Record

NO_FINDING = "no finding"
Unlisted: TypeAlias = Literal["unknown", "absent"]
"""The label of classes that a record does not list."""
NORMAL = (NO_FINDING, "normal")  # labels that are not findings
_VALUES = {"1": PRESENT, "1.0": PRESENT, "0": ABSENT, "0.0": ABSENT, "": UNCERTAIN, "-1": UNCERTAIN, "-1.0": UNCERTAIN}


@dataclass(frozen=True)
class LabelledRecords:
    """Records of a source with their labels.

    Attributes:
        ids, patients: the id and the patient of each record; a patient may be empty.
        classes: the names of the C classes.
        labels: [n, C] 1 present, 0 absent, NaN unknown.
        doubtful: [n, C] whether the source states that a label is unknown: uncertain, or empty in a table.
        rows: [n] rows of the records in the source.
        sha256: the hash of ids, images and labels.
        left_out: the number of records without a label.
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
        """The only class of each record [n]; -1 for a record with no, several or doubtful classes.

        A class that a record does not list counts as absent, as in the choice of CheXpert's 5 x 200 (GLoRIA).
        """
        one = (np.nansum(self.labels, axis=1) == 1) & ~self.doubtful.any(axis=1)
        return np.where(one, np.nan_to_num(self.labels).argmax(axis=1), -1)

    def lacked(self) -> list[str]:
        """The classes that are known to be absent in some record."""
        absent = (self.labels == ABSENT).any(axis=0)
        return [name for name, known in zip(self.classes, absent, strict=True) if known]

    def of_classes(self, names: Sequence[str]) -> "LabelledRecords":
        """The records with these of their classes alone."""
        kept = np.isin(self.classes, list(names))
        classes = tuple(name for name, keep in zip(self.classes, kept, strict=True) if keep)
        return replace(self, classes=classes, labels=self.labels[:, kept], doubtful=self.doubtful[:, kept])

    def contrasted(self) -> tuple["LabelledRecords", list[str]]:
        """The records with only those classes that have a negative, and the names of the other classes.

        A class that is never known to be absent has no negatives and cannot be scored. Raises UserError if no class is
        left.
        """
        names = tuple(self.lacked())
        if not names:
            raise UserError(
                "no record is known to lack a class: its labels list only what is present; give --unlisted absent if "
                "they list all of it, or --labels FILE.csv"
            )
        others = [name for name in self.classes if name not in names]
        return self.of_classes(names), others

    def take(self, chosen: Int[np.ndarray, " k"]) -> "LabelledRecords":
        """The records of the `chosen` indices, in this order."""
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
    source: Records,
    classes: Sequence[str] = (),
    labels: str | os.PathLike[str] | None = None,
    unlisted: Unlisted = "unknown",
) -> LabelledRecords:
    """The labels of a data set: those of a table, else of its records, else of their findings.

    If any record of the source has labels, these are the truth: 1 present, 0 absent, -1 unknown. A class that a record
    does not list is present if a finding has its name, and otherwise has the label `unlisted`. Records without labels
    and findings are left out. If "no finding" is not listed, it is absent if a class is present, and present if all
    classes are absent.

    If no record has labels, a class is present if a finding has its name, and "no finding" is present if there is no
    finding. This is correct for data whose findings are all annotated.

    Args:
        source: the records.
        classes: names, compared without case and by synonyms. Empty for the columns of the table, or for all classes
            that a record shows, in alphabetical order.
        labels: a CSV with a column `id` (of the record) and one column per class: 1 present, 0 absent, empty or -1
            unknown. Records that it does not name are left out.
        unlisted: "unknown", or "absent" for data whose records list all that is present.

    Raises:
        UsageError: the table is unusable.
        UserError: there is no label, or a class is unknown.
    """
    if labels:
        entries = list(_entries_of_table(source, _read_table(Path(labels))))
        absent = np.nan
    else:
        entries, absent = _entries_of_records(source, unlisted)
    known = sorted({name for entry in entries for name in entry.labels})
    present = {name for entry in entries for name, value in entry.labels.items() if value == PRESENT}
    named = classes or [name for name in known if name != NO_FINDING and (labels or name in present)]
    if not entries or not named:
        what = f"no record is named in {labels}" if labels else "no record has a label or a finding"
        raise UserError(f"{what}, so there is nothing to classify; choose another split, or give --labels FILE.csv")
    key_of: dict[str, str] = {}
    for name in named:
        key = find_class(name, [*known, NO_FINDING])
        if key is None:
            raise UserError(f"no record is labelled {name!r}; the labels are {', '.join(known)}")
        key_of[name] = key
    values = np.array([[entry.labels.get(key, absent) for key in key_of.values()] for entry in entries], float)
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry.id}\t{sorted(entry.labels.items())}\t".encode() + entry.image_sha256)
    return LabelledRecords(
        tuple(entry.id for entry in entries),
        tuple(entry.patient for entry in entries),
        tuple(key_of),
        np.where(values == UNCERTAIN, np.nan, values),
        values == UNCERTAIN,
        np.array([entry.row for entry in entries], int),
        digest.hexdigest(),
        len(source) - len(entries),
    )


@dataclass(frozen=True)
class _Entry:
    """A record with its known labels."""

    row: int
    id: str
    patient: str
    labels: dict[str, int]
    image_sha256: bytes


def _entry(row: int, record: Record, labels: dict[str, int]) -> _Entry:
    digest = hashlib.sha256(np.ascontiguousarray(record.image).tobytes()).digest()
    return _Entry(row, record.id, record.patient, labels, digest)


def _entries_of_table(source: Records, table: dict[str, dict[str, int]]) -> Iterator[_Entry]:
    """The records that a table of labels names."""
    for row in range(len(source)):
        record = source[row]
        if table.get(record.id):
            yield _entry(row, record, table[record.id])


def _entries_of_records(source: Records, unlisted: Unlisted) -> tuple[list[_Entry], float]:
    """The records with labels or findings, and the label of classes that they do not list."""
    entries, labelled = [], False
    for row in range(len(source)):
        record = source[row]
        labelled = labelled or bool(record.labels)
        entries.append(_entry(row, record, _stated(record)))
    merged = _under_one_name([entry.labels for entry in entries])
    if labelled:
        completed = _with_no_finding(merged, unlisted)
    else:
        completed = [labels or {NO_FINDING: PRESENT} for labels in merged]
    kept = [replace(entry, labels=labels) for entry, labels in zip(entries, completed, strict=True) if labels]
    return kept, np.nan if labelled and unlisted == "unknown" else float(ABSENT)


def present_classes(record: Record) -> list[str]:
    """The classes that a record shows by its labels and findings, in the form of `class_key`."""
    return [name for name, value in _stated(record).items() if value == PRESENT and name not in NORMAL]


def _stated(record: Record) -> dict[str, int]:
    """The label of each class of one record. A finding that the labels do not list is present."""
    labels = {class_key(name): value for name, value in record.labels.items()}
    unlisted = {class_key(f.label): PRESENT for f in record.findings if find_class(f.label, labels) is None}
    return {**unlisted, **labels}


def _under_one_name(stated: Sequence[dict[str, int]]) -> list[dict[str, int]]:
    """The labels with all synonyms under their alphabetically first name.

    If a record states several of them, present has priority over absent, and absent over unknown.
    """
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


def _with_no_finding(stated: Sequence[dict[str, int]], unlisted: Unlisted) -> list[dict[str, int]]:
    """The labels of records, with "no finding" added where their other labels decide it."""
    known = {name for values in stated for name in values}
    completed = []
    for values in stated:
        others = [value for name, value in values.items() if name not in NORMAL]
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


def own_phrases(source: Records) -> dict[str, list[str]]:
    """The distinct prompts of the findings of each class, in the order of the records."""
    phrases: dict[str, dict[str, str]] = {}
    for row in range(len(source)):
        for finding in source[row].findings:
            if finding.prompt.strip():
                phrases.setdefault(class_key(finding.label), {}).setdefault(class_key(finding.prompt), finding.prompt)
    return {name: list(texts.values()) for name, texts in phrases.items()}


def embed_records(
    model: Model, source: Records, rows: Int[np.ndarray, " n"], framing: Framing, name: str = "images"
) -> Float[np.ndarray, "n D"]:
    """The global embeddings [n, D] float32 of records.

    With the framing "crop" the middle is cut out of the part of the stored square that shows the image. Raises
    UserError for an embedding that is not finite.
    """
    return encoded_records(
        lambda squares, _: np.asarray(model.embed_squares(squares).whole), model, source, rows, framing, name
    )


def encoded_records(
    encode: Callable[[UInt8[np.ndarray, "B S S"], Int[np.ndarray, " B"]], Float[np.ndarray, "B *f"]],
    model: Model,
    source: Records,
    rows: Int[np.ndarray, " n"],
    framing: Framing,
    name: str,
) -> Float[np.ndarray, "n *f"]:
    """What `encode` gives of the squares of records, in the model's batches, each by one process; see `embed_records`.

    `encode` is also given the rows of these records in the source. Raises UserError where a value is not finite.
    """
    parts: list[np.ndarray | None] = []
    starts = range(0, len(rows), model.batch_size)
    for number, start in enumerate(tqdm(starts, desc=name, unit="batch", disable=None)):
        mine = rows[start : start + model.batch_size]
        parts.append(encode(squares_of(source, mine, framing), mine) if is_own(number) else None)
    found = np.concatenate(gathered(parts))
    if not np.isfinite(found).all():
        raise UserError("an image embedding holds NaN or infinity: the weights are damaged or the training diverged")
    return found


def squares_of(source: Records, rows: Int[np.ndarray, " n"], framing: Framing) -> UInt8[np.ndarray, "n S S"]:
    """The squares of records, see `framed`."""
    return np.stack([framed(source[int(row)], framing) for row in rows])


def framed(record: Record, framing: Framing) -> UInt8[np.ndarray, "S S"]:
    """The square of a record, or with the framing "crop" the middle of the part of it that shows the image."""
    if framing == "pad":
        return np.asarray(record.image)
    return crop_to_square(np.ascontiguousarray(record.geometry.inner(record.image)), record.image.shape[0])


def _read_table(path: Path) -> dict[str, dict[str, int]]:
    """The labels of a table: id -> class -> label."""
    try:
        table = read_table(path, unique=("id",))
        rows = table.whole()
    except UserError as error:
        raise UsageError(f"--labels {error}") from None
    classes = [name for name in table.columns if name != "id"]
    if "id" not in table.columns or not classes:
        raise UsageError(f"--labels {path}, row 1: needs a column id and one per class")
    labels: dict[str, dict[str, int]] = {}
    for row in rows:
        wrong = next((name for name in classes if row[name] not in _VALUES), None)
        if wrong is not None:
            raise UsageError(f"--labels {row.fault(wrong, 'neither 1 nor 0 nor -1 nor empty')}")
        labels[row["id"]] = {class_key(name): _VALUES[row[name]] for name in classes}
    return labels
