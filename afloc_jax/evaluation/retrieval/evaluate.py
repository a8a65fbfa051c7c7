"""Retrieval between images and reports: R@K and P@K in both directions, by pairs and by class.

By pairs, a report is relevant for its own image and for images with the same report. By class, the protocol is that of
ConVIRT (arXiv 2010.00747) and GLoRIA (doi 10.1109/ICCV48922.2021.00391): the same number of records of each of five
classes (200 in the paper), each with exactly one of the classes. An item is relevant if its class is that of the query.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

from afloc_jax.evaluation.labelled import embed_records
from afloc_jax.evaluation.results import PER_SAMPLE_COLUMNS, ByCategory, ScoreRow
from afloc_jax.evaluation.retrieval.chosen import Chosen, choose_classes, choose_pairs
from afloc_jax.evaluation.retrieval.examples import write_retrieved
from afloc_jax.evaluation.retrieval.metrics import DIRECTIONS, Metric
from afloc_jax.evaluation.retrieval.result import BesideChance, Retrieval
from afloc_jax.evaluation.retrieval.settings import RetrievalSettings
from afloc_jax.evaluation.statistics.coverage import few_positives
from afloc_jax.evaluation.task import JsonObject, Models
from afloc_jax.files import Path
from afloc_jax.inference.model import Model
from afloc_jax.inference.retrieve import cosine_similarity
from data_pipelines.reading import Records


def evaluate_dataset(models: Models, out: str | os.PathLike[str], settings: RetrievalSettings) -> JsonObject:
    """`evaluate_retrieval` of the data set that the settings name. Raises UsageError, UserError."""
    source = settings.open(settings.split)
    return evaluate_retrieval(models.trained, source, out, settings).to_json()


def evaluate_retrieval(
    model: Model, source: Records, out: str | os.PathLike[str], settings: RetrievalSettings | None = None
) -> Retrieval:
    """Retrieves reports for images and images for reports; writes per_sample.csv, summary.json and summary.md to `out`.

    The similarity is the cosine of the global image embedding and the report embedding. By class, if the settings name
    no class, the five classes with the most records of that class alone are used. Raises UserError if there is no
    report, or too few records.
    """
    settings = settings or RetrievalSettings()
    chosen = choose_classes(source, settings) if settings.by_class else choose_pairs(source)
    bootstrap, relevant = settings.resampling, chosen.relevant
    units = bootstrap.units(chosen.patients, chosen.ids)
    similarity = _similarity(model, source, chosen, settings)
    metrics: dict[str, BesideChance] = {}
    rows: list[ScoreRow] = []
    for direction, matrix in zip(DIRECTIONS, (similarity, similarity.T), strict=True):
        for kind, values in retrieval_scores(matrix, relevant, settings.tops).items():
            replicates = bootstrap.means(values, chosen.category, len(chosen.names), units.clusters)
            for k, top in enumerate(settings.tops):
                metric = Metric(kind, top, direction)
                of_chance = chance(relevant, top)[kind]
                means = ByCategory.mean_of(replicates[k], chosen.names, bootstrap)
                metrics[metric.key] = BesideChance(means.overall, means.per_category, of_chance)
                rows += _rows(metric, values[:, k], chosen)
    result = Retrieval(
        settings.account(model, source, chosen.sha256, units),
        by_class=settings.by_class,
        n=len(chosen.ids),
        n_per_category={name: int((chosen.category == c).sum()) for c, name in enumerate(chosen.names)},
        few_positives=few_positives({name: units.number(chosen.category == c) for c, name in enumerate(chosen.names)}),
        metrics=metrics,
    )
    write_retrieved(Path(out), source, chosen.rows, similarity.T, relevant)
    result.write(out, PER_SAMPLE_COLUMNS, rows)
    return result


def _similarity(model: Model, source: Records, chosen: Chosen, settings: RetrievalSettings) -> Float[np.ndarray, "n n"]:
    """The similarity of every image (row) with every report (column)."""
    texts = [". ".join(source[int(row)].sentences) for row in chosen.rows]
    images = embed_records(model, source, chosen.rows, settings.framed)
    return cosine_similarity(images, np.asarray(model.embed_texts(texts, compatible=settings.compatible).report))


def retrieval_scores(
    similarity: Float[np.ndarray, "Q N"], relevant: Bool[np.ndarray, "Q N"], tops: Sequence[int]
) -> dict[str, Float[np.ndarray, "Q K"]]:
    """The `recall` of each query at each K (1 if any of the K most similar items is relevant), and the `precision`.

    The precision is the share of relevant items among the K most similar ones. Of equally similar items the irrelevant
    ones are ranked first, so that a model whose embeddings are all equal retrieves nothing. NaN for a query without a
    relevant item.
    """
    items = similarity.shape[1]
    order = np.lexsort((relevant, -similarity), axis=1)
    hits = np.cumsum(np.take_along_axis(relevant, order, axis=1), axis=1)
    last = [min(top, items) - 1 for top in tops]
    answerable = hits[:, -1:] > 0
    recall, precision = (hits[:, last] > 0).astype(float), hits[:, last] / np.array(tops, float)
    return {"recall": np.where(answerable, recall, np.nan), "precision": np.where(answerable, precision, np.nan)}


def chance(relevant: Bool[np.ndarray, "Q N"], top: int) -> dict[str, float]:
    """The expected recall and precision at `top` of a random order (hypergeometric), averaged over queries."""
    items, many = relevant.shape[1], relevant.sum(axis=1)
    drawn = min(top, items)
    missed = np.ones(len(relevant))
    for i in range(drawn):
        missed *= np.clip(items - many - i, 0, None) / (items - i)
    return {"recall": float((1 - missed).mean()), "precision": float((many / items).mean() * drawn / top)}


def _rows(metric: Metric, values: Float[np.ndarray, " n"], chosen: Chosen) -> Iterator[ScoreRow]:
    """The rows of per_sample.csv."""
    for name, patient, category, value in zip(chosen.ids, chosen.patients, chosen.category, values, strict=True):
        yield (name, patient, chosen.names[category], metric.key, "", float(value), "")
