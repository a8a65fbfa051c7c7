"""The records of a retrieval: all with a report, or the same number of each class."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from afloc_jax.errors import UserError
from afloc_jax.evaluation.labelled import read_labelled
from afloc_jax.evaluation.retrieval.settings import RetrievalSettings
from afloc_jax.inference.class_prompts import find_class
from afloc_jax.provenance import hash_of
from data_pipelines.reading import Records

ALL = "all"  # the one category of retrieval by pairs
MOST_CLASSES = 5  # taken for retrieval by class, where none are named


@dataclass(frozen=True)
class Chosen:
    """The records of a retrieval.

    Attributes:
        ids, patients: the id and the patient of each record.
        rows: [n] the row of each record in the source.
        groups: [n] the group of each record; an item is relevant for a query of the same group.
        names: the categories in which scores are averaged; only one for retrieval by pairs.
        category: [n] the index of each record into `names`.
        sha256: the hash of the records.
    """

    ids: list[str]
    patients: list[str]
    rows: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]
    names: list[str]
    category: Int[np.ndarray, " n"]
    sha256: str

    @cached_property
    def relevant(self) -> Bool[np.ndarray, "n n"]:
        """Whether each item (column) is relevant for each query (row)."""
        return np.asarray(self.groups[:, None] == self.groups[None, :])


def choose_pairs(source: Records) -> Chosen:
    """All records with a report; the group of a record is its text. Raises UserError if there are fewer than two."""
    ids, patients, rows, texts = [], [], [], []
    for row in range(len(source)):
        record = source[row]
        if record.sentences:
            ids.append(record.id)
            patients.append(record.patient)
            rows.append(row)
            texts.append(". ".join(record.sentences))
    if len(ids) < 2:
        raise UserError("fewer than two records have a report, so there is nothing to retrieve; choose another split")
    groups = np.unique(texts, return_inverse=True)[1]
    digest = hash_of({"ids": ids, "texts": texts})
    return Chosen(ids, patients, np.array(rows), groups, [ALL], np.zeros(len(ids), int), digest)


def choose_classes(source: Records, settings: RetrievalSettings) -> Chosen:
    """The same number of records of each class, which show that class alone; the group of a record is its class.

    If the settings name no class, the five classes with the most such records are used. Raises UserError if there are
    too few records.
    """
    records, per_class = read_labelled(source, (), settings.labels, settings.unlisted), settings.per_class
    single = records.exclusive()
    counts = {name: int((single == c).sum()) for c, name in enumerate(records.classes)}
    names = list(settings.classes) or sorted(sorted(counts, key=lambda name: -counts[name])[:MOST_CLASSES])
    rng, members = np.random.default_rng(settings.resampling.seed), []
    for name in names:
        known = find_class(name, records.classes)
        if known is None:
            raise UserError(f"no record shows {name!r}; the classes are {', '.join(records.classes)}")
        if counts[known] < per_class:
            raise UserError(
                f"only {counts[known]} records have {name!r} alone, {per_class} are wanted; choose other classes with "
                "--class, fewer with --per_class, or a larger split"
            )
        candidates = np.flatnonzero(single == records.classes.index(known))
        members.append(np.sort(rng.permutation(candidates)[:per_class]))
    taken, groups = records.take(np.concatenate(members)), np.repeat(np.arange(len(names)), per_class)
    if not all(source[int(row)].sentences for row in taken.rows):
        raise UserError("some of the chosen records have no report, so there is no text to retrieve")
    return Chosen(list(taken.ids), list(taken.patients), taken.rows, groups, names, groups, taken.sha256)
