"""Retrieval between images and reports: R@K and P@K in both directions, by pairs and by class.

By pairs, a report belongs to its own image (and to every image whose report reads the same). By class, the protocol of
ConVIRT (arXiv 2010.00747) and GLoRIA (doi 10.1109/ICCV48922.2021.00391): as many records of each of five classes, 200
in the paper, each with exactly one of the classes; an item is relevant when its class is that of the query.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from afloc_jax.errors import UserError
from afloc_jax.evaluation.files import csv_text, json_text, shown, write_folder
from afloc_jax.evaluation.labelled import embed_records, read_labelled
from afloc_jax.evaluation.records import Source, patient_of
from afloc_jax.evaluation.retrieval.examples import write_retrieved
from afloc_jax.evaluation.retrieval.settings import RetrievalSettings
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, mean_of_finite
from afloc_jax.evaluation.statistics.bootstrap import bootstrap as bootstrap_means
from afloc_jax.inference.class_prompts import find_class
from afloc_jax.inference.model import Model
from afloc_jax.provenance import hash_of

DIRECTIONS = ("image_to_text", "text_to_image")
PER_SAMPLE_COLUMNS = ("id", "patient", "category", "metric", "threshold", "value", "note")
ALL = "all"  # the one category of retrieval by pairs
MOST_CLASSES = 5  # of retrieval by class, where none are named


def cosine_similarity(images: Float[np.ndarray, "I D"], texts: Float[np.ndarray, "T D"]) -> Float[np.ndarray, "I T"]:
    """Cosine of every image with every text, float64; 0 for a vector of zeros."""

    def unit(vectors: np.ndarray) -> np.ndarray:
        vectors = np.asarray(vectors, np.float64)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    return np.asarray(unit(images) @ unit(texts).T)


def retrieval_scores(
    similarity: Float[np.ndarray, "Q N"], relevant: Bool[np.ndarray, "Q N"], tops: Sequence[int]
) -> dict[str, Float[np.ndarray, "Q K"]]:
    """Per query and K: `recall` (1 if any of the K most similar items is relevant) and `precision` (their share).

    Of equally similar items irrelevant ones come first, so that an embedding which has collapsed to a point retrieves
    nothing. NaN for a query without any relevant item.
    """
    items = similarity.shape[1]
    order = np.lexsort((relevant, -similarity), axis=1)
    found = np.cumsum(np.take_along_axis(relevant, order, axis=1), axis=1)
    last = [min(top, items) - 1 for top in tops]
    answerable = found[:, -1:] > 0
    recall, precision = (found[:, last] > 0).astype(float), found[:, last] / np.array(tops, float)
    return {"recall": np.where(answerable, recall, np.nan), "precision": np.where(answerable, precision, np.nan)}


def choose_by_class(labels: Int[np.ndarray, " n"], classes: int, per_class: int, seed: int) -> Int[np.ndarray, " k"]:
    """`per_class` records of each class, drawn without replacement, in the order of the classes; fewer nowhere."""
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:per_class] for c in range(classes)]
    return np.concatenate([np.sort(part) for part in chosen])


@dataclass(frozen=True)
class Chosen:
    """The records that take part.

    Attributes:
        ids, patients: of each.
        rows: [n] rows of the source.
        groups: [n] an item is relevant for a query of the same group.
        names: of the categories that scores are averaged in; one for retrieval by pairs.
        category: [n] index into `names`.
        sha256: over what was chosen.
    """

    ids: list[str]
    patients: list[str]
    rows: Int[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]
    names: list[str]
    category: Int[np.ndarray, " n"]
    sha256: str

    @property
    def relevant(self) -> Bool[np.ndarray, "n n"]:
        """Whether an item (column) is relevant for a query (row)."""
        return self.groups[:, None] == self.groups[None, :]


def evaluate_retrieval(
    model: Model, source: Source, out: str | Path, settings: RetrievalSettings | None = None
) -> dict[str, Any]:
    """Find reports for images and images for reports; write per_sample.csv, summary.json and summary.md into `out`.

    Args:
        model: what is evaluated; similarity is the cosine of the global image and the report embedding.
        source: records with sentences.
        out: folder of the results.
        settings: see there. By class without `classes`: the five with the most records of that class alone.

    Returns:
        What summary.json holds.

    Raises:
        UserError: no report, or too few records of a class.
    """
    settings = settings or RetrievalSettings()
    chosen = _by_class(source, settings) if settings.by_class else _by_pairs(source)
    clusters = settings.resampling.clusters(chosen.patients)
    similarity = _similarity(model, source, chosen.rows, settings)
    metrics: dict[str, Any] = {}
    table: list[tuple] = []
    for direction, scores in zip(DIRECTIONS, (similarity, similarity.T), strict=True):
        for metric, values in retrieval_scores(scores, chosen.relevant, settings.tops).items():
            keys = [f"{metric}@{top} {direction}" for top in settings.tops]
            metrics |= _tables(keys, values, chosen, clusters, settings.resampling)
            for key, top in zip(keys, settings.tops, strict=True):
                metrics[key]["chance"] = chance(chosen.relevant, top)[metric]
            table += _rows(keys, values, chosen)
    summary = {
        **settings.account(model, source, chosen.sha256),
        "by_class": settings.by_class,
        "n": len(chosen.ids),
        "n_per_category": {name: int((chosen.category == c).sum()) for c, name in enumerate(chosen.names)},
        "metrics": metrics,
    }
    write_retrieved(Path(out), source, chosen.rows, similarity.T, chosen.relevant)
    files = {"summary.md": to_markdown(summary), "summary.json": json_text(summary)}
    write_folder(out, {"per_sample.csv": csv_text(PER_SAMPLE_COLUMNS, table), **files})
    return summary


def _similarity(
    model: Model, source: Source, rows: Int[np.ndarray, " n"], settings: RetrievalSettings
) -> Float[np.ndarray, "n n"]:
    """Of every image (row) with every report (column)."""
    texts = [". ".join(source[int(row)].sentences) for row in rows]
    images = embed_records(model, source, rows, settings.framed)
    return cosine_similarity(images, np.asarray(model.embed_texts(texts, compatible=settings.compatible).report))


def _tables(
    keys: Sequence[str],
    values: Float[np.ndarray, "n K"],
    chosen: Chosen,
    clusters: np.ndarray | None,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """`metrics` of summary.json: one entry per key, a column of the values."""
    means = bootstrap_means(
        values,
        chosen.category,
        len(chosen.names),
        bootstrap.resamples,
        bootstrap.seed,
        clusters=clusters,
        leave_out=bootstrap.leave_out,
    )
    tables: dict[str, Any] = {}
    for k, key in enumerate(keys):
        overall = means[k].map(lambda column: mean_of_finite(column, axis=-1))
        per_category = {name: bootstrap.limits_of(means[k][c]).to_dict() for c, name in enumerate(chosen.names)}
        tables[key] = {"overall": bootstrap.limits_of(overall).to_dict(), "per_category": per_category}
    return tables


def _rows(keys: Sequence[str], values: Float[np.ndarray, "n K"], chosen: Chosen) -> list[tuple]:
    """Rows of per_sample.csv."""
    return [
        (chosen.ids[i], chosen.patients[i], chosen.names[chosen.category[i]], key, "", float(values[i, k]), "")
        for k, key in enumerate(keys)
        for i in range(len(chosen.ids))
    ]


def chance(relevant: Bool[np.ndarray, "Q N"], top: int) -> dict[str, float]:
    """Recall and precision at `top` of a random order: hypergeometric, averaged over queries."""
    items, many = relevant.shape[1], relevant.sum(axis=1)
    drawn = min(top, items)
    missed = np.ones(len(relevant))
    for i in range(drawn):
        missed *= np.clip(items - many - i, 0, None) / (items - i)
    return {"recall": float((1 - missed).mean()), "precision": float((many / items).mean() * drawn / top)}


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as a table that reads well in plain text."""
    kind = "by class" if summary["by_class"] else "by pairs"
    bootstrap, names = summary["bootstrap"], list(summary["n_per_category"])
    of_each = names if summary["by_class"] else []
    lines = [
        f"# Retrieval, {kind}",
        "",
        f"{summary['n']} images and their reports; square: {summary['framing']}. R@K: share of queries with a relevant "
        "item among the K most similar; P@K: share of relevant items among them.",
        f"Value [95 % {bootstrap['interval']} interval, {bootstrap['resamples']} resamples by {bootstrap['unit']}]; "
        "chance: a random order.",
        "",
        f"| | all | chance |{''.join(f' {name} |' for name in of_each)}",
        "|---|---|---|" + "---|" * len(of_each),
    ]
    for name, values in summary["metrics"].items():
        metric, direction = name.split()
        spoken = f"{metric.replace('recall', 'R').replace('precision', 'P')}, {direction.replace('_', ' ')}"
        cells = "".join(f" {shown(values['per_category'][label])} |" for label in of_each)
        lines.append(f"| {spoken} | {shown(values['overall'])} | {values['chance']:.3f} |{cells}")
    return "\n".join(lines) + "\n"


def _by_pairs(source: Source) -> Chosen:
    """All records with a report; the group of a record is its text."""
    ids, patients, rows, texts = [], [], [], []
    for row in range(len(source)):
        record = source[row]
        if record.sentences:
            ids.append(record.id)
            patients.append(patient_of(record))
            rows.append(row)
            texts.append(". ".join(record.sentences))
    if len(ids) < 2:
        raise UserError("fewer than two records have a report, so there is nothing to retrieve; choose another split")
    groups = np.unique(texts, return_inverse=True)[1]
    digest = hash_of({"ids": ids, "texts": texts})
    return Chosen(ids, patients, np.array(rows), groups, [ALL], np.zeros(len(ids), int), digest)


def _by_class(source: Source, settings: RetrievalSettings) -> Chosen:
    """As many records of each class; the group of a record is its class."""
    records, per_class = read_labelled(source, (), settings.labels, settings.unlisted), settings.per_class
    single = records.exclusive()
    counts = {name: int((single == c).sum()) for c, name in enumerate(records.classes)}
    names = list(settings.classes) or sorted(sorted(counts, key=lambda name: -counts[name])[:MOST_CLASSES])
    index = np.full(len(records), -1)
    for group, name in enumerate(names):
        known = find_class(name, records.classes)
        if known is None:
            raise UserError(f"no record shows {name!r}; the classes are {', '.join(records.classes)}")
        members = single == records.classes.index(known)
        if members.sum() < per_class:
            raise UserError(
                f"only {members.sum()} records have {name!r} alone, {per_class} are wanted; choose other classes with "
                "--class, fewer with --per_class, or a larger split"
            )
        index[members] = group
    taken = records.take(choose_by_class(index, len(names), per_class, settings.resampling.seed))
    groups = np.repeat(np.arange(len(names)), per_class)
    if not all(source[int(row)].sentences for row in taken.rows):
        raise UserError("some of the chosen records have no report, so there is no text to retrieve")
    return Chosen(list(taken.ids), list(taken.patients), taken.rows, groups, names, groups, taken.sha256)
