"""Which images show which class, from labels or by rule from reports, and what is asked of each image.

Each image is asked for each class that it is known to show or to lack in two ways: by the name of the class, and by a
phrase. An image that shows the class is asked by its own phrase (the prompt of a finding, or a sentence that states
it), and an image that lacks it by the phrase of another image, drawn at random. Where only some of the images that show
a class have a phrase, so do the same share of those that lack it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Int

from afloc_jax.errors import UserError
from afloc_jax.evaluation.labelled import NORMAL, LabelledRecords, read_labelled
from afloc_jax.evaluation.settings import LabelledSettings
from afloc_jax.inference.class_prompts import SYNONYMS, class_key, find_class, read_prompt_set
from data_pipelines.reading import Records
from data_pipelines.records import Record
from data_pipelines.statements import statement, stating

LabelSource: TypeAlias = Literal["records", "table", "reports"]
WORDS = "chest"  # the prompt set whose words name classes


@dataclass(frozen=True)
class Asked:
    """P questions, each of an image and a class.

    Attributes:
        rows: the row of the image in the source.
        record: the index of the record in `LabelledRecords`.
        category: the index of the class.
        by_name: whether the class is asked by its name alone, else by a phrase.
        present: whether the image shows the class.
        prompts: what is asked.
    """

    rows: Int[np.ndarray, " P"]
    record: Int[np.ndarray, " P"]
    category: Int[np.ndarray, " P"]
    by_name: Bool[np.ndarray, " P"]
    present: Bool[np.ndarray, " P"]
    prompts: Sequence[str]

    def __len__(self) -> int:
        return len(self.rows)


def words_of(name: str) -> tuple[str, ...]:
    """The names of a class, in lower case: its own, its synonyms, and those in the prompt set `WORDS`.

    >>> words_of("Effusion")
    ('effusion', 'pleural effusion', 'layering pleural effusion', 'loculated pleural effusion', 'pleural fluid')
    """
    own = class_key(name)
    names = [own, SYNONYMS.get(own, own), *(other for other, main in SYNONYMS.items() if main == own)]
    classes = read_prompt_set(WORDS).classes
    known = find_class(name, classes)
    listed = classes[known] if known else None
    subtypes = listed["subtype"] if isinstance(listed, Mapping) else ()
    return tuple(dict.fromkeys([*names, *subtypes]))


def read_labels(source: Records, settings: LabelledSettings) -> tuple[LabelledRecords, LabelSource]:
    """The labels of a data set: those of a table or of the records, else those by rule from the reports.

    Raises:
        UsageError: the table is unusable.
        UserError: there are neither labels nor reports that state and deny a class.
    """
    try:
        records = read_labelled(source, settings.classes, settings.labels, settings.unlisted).contrasted()[0]
    except UserError:
        if settings.labels:
            raise
    else:
        findings = [name for name in records.classes if class_key(name) not in NORMAL]
        if findings:
            return records.of_classes(findings), "table" if settings.labels else "records"
    return _labels_by_rule(source, settings.classes or tuple(read_prompt_set(WORDS).classes)), "reports"


def _labels_by_rule(source: Records, classes: Sequence[str]) -> LabelledRecords:
    """The labels that reports give, see `data_pipelines.statements`; what a report is silent about is unknown."""
    words = {class_key(name): words_of(name) for name in classes}
    values = {"stated": 1.0, "denied": 0.0, "silent": np.nan}
    about, labels, digest = [], [], hashlib.sha256()
    for row in range(len(source)):
        record = source[row]
        given = [values[statement(record.sentences, names)] for names in words.values()]
        if np.isfinite(given).any():
            about.append((record.id, record.patient, row))
            labels.append(given)
            digest.update(f"{record.id}\t{given}\t".encode() + hashlib.sha256(record.image.tobytes()).digest())
    table = np.array(labels, float).reshape(-1, len(words))
    both = [c for c in range(len(words)) if {0.0, 1.0} <= set(table[:, c].tolist())]
    if not both:
        raise UserError("no class is labelled, and the reports neither state nor deny one: presence cannot be fitted")
    known = LabelledRecords(
        tuple(id for id, *_ in about),
        tuple(patient for _, patient, _ in about),
        tuple(words),
        table,
        np.zeros(table.shape, bool),
        np.array([row for *_, row in about], int),
        digest.hexdigest(),
        len(source) - len(about),
    )
    return known.of_classes([list(words)[c] for c in both])


def questions(source: Records, records: LabelledRecords, seed: int = 0) -> Asked:
    """What is asked of each image. The same seed gives the same questions."""
    rng = np.random.default_rng(seed)
    words = [words_of(name) for name in records.classes]
    shown = [source[int(row)] for row in records.rows]
    asked: list[tuple[int, int, bool, bool, str]] = []
    for c, name in enumerate(records.classes):
        spoken = name.replace("_", " ")
        positive = np.flatnonzero(records.labels[:, c] == 1)
        own = {i: _phrases(shown[i], name, words[c]) for i in positive.tolist()}
        others = sorted({phrase for phrases in own.values() for phrase in phrases})
        share = np.mean([bool(phrases) for phrases in own.values()]) if own else 0.0
        for i in np.flatnonzero(np.isfinite(records.labels[:, c])).tolist():
            present = bool(records.labels[i, c] == 1)
            asked.append((i, c, True, present, spoken))
            choice = own[i] if present else others if rng.random() < share else []
            if choice:
                asked.append((i, c, False, present, choice[int(rng.integers(len(choice)))]))
    asked.sort()
    record, category = (np.array([one[k] for one in asked], int) for k in (0, 1))
    by_name, present_ = (np.array([one[k] for one in asked], bool) for k in (2, 3))
    return Asked(records.rows[record], record, category, by_name, present_, [prompt for *_, prompt in asked])


def _phrases(record: Record, name: str, words: tuple[str, ...]) -> list[str]:
    """The phrases of a record for a class that it shows: the prompts of findings, else the sentences that state it."""
    prompts = [finding.prompt for finding in record.findings if find_class(finding.label, [name])]
    return [prompt for prompt in prompts if prompt.strip()] or stating(record.sentences, words)
