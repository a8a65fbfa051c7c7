"""Retrieval between images and reports: R@K and P@K in both directions, by pairs and by class.

By pairs, a report belongs to its own image (and to every image whose report reads the same). By class, the protocol of
ConVIRT (arXiv 2010.00747) and GLoRIA (doi 10.1109/ICCV48922.2021.00391): as many records of each of five classes, 200
in the paper, each with exactly one of the classes; an item is relevant when its class is that of the query.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from afloc_jax.errors import UserError
from afloc_jax.evaluation.files import csv_text, json_text, shown, write_folder
from afloc_jax.evaluation.labelled import embed_records, read_labelled
from afloc_jax.evaluation.records import Source, evaluation_provenance
from afloc_jax.evaluation.statistics import Bootstrap, mean_of_finite
from afloc_jax.evaluation.statistics import bootstrap as bootstrap_means
from afloc_jax.inference.model import Model
from afloc_jax.provenance import hash_of
from data_pipelines.images import Framing

DIRECTIONS = ("image_to_text", "text_to_image")
PER_SAMPLE_COLUMNS = ("id", "patient", "category", "metric", "threshold", "value", "note")
ALL = "all"  # the one category of retrieval by pairs


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


def evaluate_retrieval(
    model: Model,
    source: Source,
    out: str | Path,
    *,
    by_class: bool = False,
    classes: Sequence[str] = (),
    per_class: int = 200,
    tops: Sequence[int] = (1, 5, 10),
    framing: Framing = "pad",
    labels: str | Path | None = None,
    compatible: bool = False,
    bootstrap: Bootstrap | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Find reports for images and images for reports; write per_sample.csv, summary.json and summary.md into `out`.

    Args:
        model: what is evaluated; similarity is the cosine of the global image and the report embedding.
        source: records with sentences.
        out: folder of the results.
        by_class: the protocol by class; otherwise by pairs.
        classes: for `by_class`: names; the five with the most records of that class alone if empty.
        per_class: for `by_class`: records of each class.
        tops: the K of R@K and P@K.
        framing, labels, compatible, bootstrap, settings: as in `evaluate_classification`.

    Returns:
        What summary.json holds.

    Raises:
        UserError: no report, or too few records of a class.
    """
    bootstrap = bootstrap or Bootstrap()
    if by_class:
        ids, patients, rows, groups, names, digest = _by_class(source, classes, per_class, labels, bootstrap.seed)
    else:
        ids, patients, rows, groups, names, digest = _by_pairs(source)
    texts = [". ".join(source[int(row)].sentences) for row in rows]
    images = embed_records(model, source, rows, framing)
    similarity = cosine_similarity(images, np.asarray(model.embed_texts(texts, compatible=compatible).report))
    relevant = groups[:, None] == groups[None, :]
    category = groups if by_class else np.zeros(len(ids), int)
    clusters = bootstrap.clusters(patients)
    metrics: dict[str, Any] = {}
    table: list[tuple] = []
    for direction, scores in zip(DIRECTIONS, (similarity, similarity.T), strict=True):
        for metric, values in retrieval_scores(scores, relevant, tops).items():
            keys = [f"{metric}@{top} {direction}" for top in tops]
            expected = [chance(relevant, top)[metric] for top in tops]
            metrics |= _tables(keys, values, expected, category, names, clusters, bootstrap)
            table += [
                (ids[i], patients[i], names[category[i]], key, "", float(values[i, k]), "")
                for k, key in enumerate(keys)
                for i in range(len(ids))
            ]
    summary = {
        "task": "retrieval",
        "by_class": by_class,
        "compatible": compatible,
        "n": len(ids),
        "n_per_category": {name: int((category == c).sum()) for c, name in enumerate(names)},
        "metrics": metrics,
        "framing": framing,
        "bootstrap": bootstrap.to_dict(),
        "settings": dict(settings or {}),
        "provenance": evaluation_provenance(model, source, digest),
    }
    files = {"summary.md": to_markdown(summary), "summary.json": json_text(summary)}
    write_folder(out, {"per_sample.csv": csv_text(PER_SAMPLE_COLUMNS, table), **files})
    return summary


def _tables(
    keys: Sequence[str],
    values: Float[np.ndarray, "Q K"],
    expected: Sequence[float],
    category: Int[np.ndarray, " Q"],
    names: Sequence[str],
    clusters: np.ndarray | None,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """`metrics` of summary.json: one entry per key, a column of the values."""
    how = (bootstrap.resamples, bootstrap.seed)
    means = bootstrap_means(values, category, len(names), *how, clusters=clusters, leave_out=bootstrap.leave_out)
    tables = {}
    for k, key in enumerate(keys):
        overall = means[k].map(lambda column: mean_of_finite(column, axis=-1))
        tables[key] = {
            "overall": bootstrap.limits_of(overall).to_dict(),
            "per_category": {name: bootstrap.limits_of(means[k][c]).to_dict() for c, name in enumerate(names)},
            "chance": expected[k],
        }
    return tables


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


Chosen = tuple[list[str], list[str], np.ndarray, np.ndarray, list[str], str]


def _by_pairs(source: Source) -> Chosen:
    """All records with a report; the group of a record is its text."""
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
    digest = hash_of({"ids": ids, "texts": texts})
    return ids, patients, np.array(rows), np.unique(texts, return_inverse=True)[1], [ALL], digest


def _by_class(source: Source, classes: Sequence[str], per_class: int, labels: str | Path | None, seed: int) -> Chosen:
    """`per_class` records of each class; the group of a record is its class."""
    records = read_labelled(source, (), labels)
    single = records.exclusive()
    counts = {name: int((single == c).sum()) for c, name in enumerate(records.classes)}
    names = list(read_labelled(source, classes, labels).classes) if classes else []
    names = names or sorted(sorted(counts, key=lambda name: -counts[name])[:5])
    position = {name.lower().replace("_", " "): c for c, name in enumerate(records.classes)}
    index = np.full(len(records), -1)
    for group, name in enumerate(names):
        members = single == position[name.lower().replace("_", " ")]
        if members.sum() < per_class:
            raise UserError(
                f"only {members.sum()} records have {name!r} alone, {per_class} are wanted; choose other classes with "
                "--class, fewer with --per-class, or a larger split"
            )
        index[members] = group
    chosen = records.take(choose_by_class(index, len(names), per_class, seed))
    groups = np.repeat(np.arange(len(names)), per_class)
    if not all(source[int(row)].sentences for row in chosen.rows):
        raise UserError("some of the chosen records have no report, so there is no text to retrieve")
    return list(chosen.ids), list(chosen.patients), chosen.rows, groups, names, chosen.sha256
