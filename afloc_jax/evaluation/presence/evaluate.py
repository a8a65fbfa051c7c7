"""Presence on a data set: how well the model's calibration agrees with labels, for classes seen and left out.

Classes *seen* have the model's fit. For the part *left out* each class is scored by a pooled fit on the validation
split from which its questions are left out. (The reports and the weights have met the class; its labels are new.)
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from afloc_jax.errors import UserError
from afloc_jax.evaluation.labelled import LabelledRecords
from afloc_jax.evaluation.presence.fit import evidence_of, fit
from afloc_jax.evaluation.presence.labels import Asked, questions, read_labels
from afloc_jax.evaluation.presence.metrics import (
    KINDS,
    LEFT_OUT,
    METRICS,
    NAMES,
    SEEN,
    reliability_table,
    selective_risk,
    statistic_of,
)
from afloc_jax.evaluation.presence.result import Kept, PresenceResult, key_of
from afloc_jax.evaluation.presence.settings import PresenceSettings
from afloc_jax.evaluation.results import PER_SAMPLE_COLUMNS, ByCategory
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Replicates, Units
from afloc_jax.evaluation.statistics.coverage import few_positives
from afloc_jax.evaluation.task import JsonObject, Models
from afloc_jax.inference.model import Model
from afloc_jax.inference.presence import presence
from afloc_jax.weights.calibration import PRESENT, Calibration, own_fits, sigmoid
from data_pipelines.reading import Records

KEPT = Path(__file__).with_name("kept_phrases.json")
COLUMNS = (*PER_SAMPLE_COLUMNS, "label", "present", "present_left_out")

Probabilities = Mapping[str, Float[np.ndarray, " P"]]


def evaluate_dataset(models: Models, out: str | os.PathLike[str], settings: PresenceSettings) -> JsonObject:
    """`evaluate_presence` of the data set that the settings name. Raises UsageError, UserError."""
    source = settings.open(settings.split)
    validation = settings.open(settings.validation_split) if settings.validation_split else None
    return evaluate_presence(models.trained, source, out, settings, validation).to_json()


def evaluate_presence(
    model: Model,
    source: Records,
    out: str | os.PathLike[str],
    settings: PresenceSettings | None = None,
    validation: Records | None = None,
) -> PresenceResult:
    """Asks every labelled record for every class; writes per_sample.csv, summary.json and summary.md to `out`.

    Intervals are percentiles.

    Args:
        model: a calibrated model.
        source: the records to score.
        out: the folder of results.
        settings: classes, labels and intervals.
        validation: the records of the fits that leave a class out; None for none.

    Raises:
        UserError: the model is not calibrated, or there are no labels.
    """
    settings = replace(settings or PresenceSettings(), interval="percentile")
    if model.calibration is None:
        raise UserError("the model is not calibrated; run: afloc calibrate MODEL --dataset NAME --data DIR")
    records, labels = read_labels(source, settings)
    asked = questions(source, records)
    kept = {kind: said for kind, said in json.loads(KEPT.read_text(encoding="utf-8")).items() if kind != "description"}
    nothing = [phrase for phrases in kept.values() for phrase in phrases]
    everything = evidence_of(
        model,
        source,
        np.concatenate([asked.rows, np.repeat(records.rows, len(nothing))]),
        [*asked.prompts, *nothing * len(records)],
    )
    evidence, of_nothing = everything[: len(asked)], everything[len(asked) :]
    found = {SEEN: _seen(model.calibration, evidence, asked.prompts)}
    if validation is not None:
        found[LEFT_OUT] = _left_out(model, validation, settings, evidence, asked, records)
    bootstrap = settings.resampling
    ids, patients = ([names[i] for i in asked.record] for names in (records.ids, records.patients))
    units = bootstrap.units(patients, ids)
    shown = {name: records.labels[:, c] == 1 for c, name in enumerate(records.classes)}
    lacking = {name: int((records.labels[:, c] == 0).sum()) for c, name in enumerate(records.classes)}
    fitted = model.calibration
    result = PresenceResult(
        settings.account(model, source, records.sha256, units),
        few_positives=few_positives({name: int(rows.sum()) for name, rows in shown.items()}),
        n=len(records),
        questions=len(asked),
        labels=labels,
        calibration=f"{fitted.records} records of {fitted.dataset}, split {fitted.split}, labels: {fitted.labels}",
        own_fit=[fit.name for fit in own_fits(fitted)],
        positives={name: int(rows.sum()) for name, rows in shown.items()},
        negatives=lacking,
        metrics=_metrics(found, asked, records, bootstrap, units),
        base_brier=_base_brier(asked, records),
        reliability={part: reliability_table(asked.present, values) for part, values in found.items()},
        reliability_of_classes={
            name: reliability_table(asked.present[asked.category == c], found[SEEN][asked.category == c])
            for c, name in enumerate(records.classes)
        },
        selective={part: selective_risk(asked.present, values, PRESENT) for part, values in found.items()},
        kept=_kept(_seen(model.calibration, of_nothing, nothing * len(records)).reshape(len(records), -1), kept),
    )
    result.write(out, COLUMNS, _rows(asked, records, found))
    return result


def _seen(
    calibration: Calibration, evidence: Float[np.ndarray, "P E"], prompts: Sequence[str]
) -> Float[np.ndarray, " P"]:
    """Presence as `Model.localize` gives it. One that it does not judge has the pooled fit."""
    found, pooled = presence(calibration, evidence, prompts), sigmoid(calibration.logits(evidence))
    return np.array([pooled[k] if one is None else one for k, one in enumerate(found)])


def _left_out(
    model: Model,
    validation: Records,
    settings: PresenceSettings,
    evidence: Float[np.ndarray, "P E"],
    asked: Asked,
    records: LabelledRecords,
) -> Float[np.ndarray, " P"]:
    """Presence of each class by a pooled fit without its questions."""
    known, labels = read_labels(validation, settings)
    fitted = questions(validation, known)
    of_fit = evidence_of(model, validation, fitted.rows, fitted.prompts)
    found = np.empty(len(asked))
    for c, name in enumerate(records.classes):
        others = np.array([known.classes[k] != name for k in fitted.category])
        pooled = fit(of_fit[others], _chosen(fitted, others), known, labels)
        own = asked.category == c
        found[own] = sigmoid(pooled.logits(evidence[own]))
    return found


def _chosen(asked: Asked, rows: Bool[np.ndarray, " P"]) -> Asked:
    return Asked(
        rows=asked.rows[rows],
        record=asked.record[rows],
        category=asked.category[rows],
        by_name=asked.by_name[rows],
        present=asked.present[rows],
        prompts=[prompt for prompt, kept in zip(asked.prompts, rows, strict=True) if kept],
    )


def _metrics(
    found: Probabilities, asked: Asked, records: LabelledRecords, bootstrap: Bootstrap, units: Units
) -> dict[str, ByCategory]:
    metrics = {}
    for part, values in found.items():
        for kind in KINDS:
            rows = np.full(len(asked), True) if not kind else asked.by_name == (kind == NAMES)
            statistic = statistic_of(asked.present[rows], values[rows], asked.category[rows], len(records.classes))
            clusters = None if units.clusters is None else units.clusters[rows]
            replicates = bootstrap.resample(statistic, int(rows.sum()), clusters)
            for m, metric in enumerate(METRICS):
                metrics[key_of(metric.name, part, kind)] = _by_category(replicates[m], records.classes)
    return metrics


def _by_category(replicates: Replicates, classes: tuple[str, ...]) -> ByCategory:
    overall, *each = (replicates[c].interval() for c in range(1 + len(classes)))
    return ByCategory(overall, dict(zip(classes, each, strict=True)))


def _base_brier(asked: Asked, records: LabelledRecords) -> dict[str, float]:
    """The Brier score of the share of positives, p (1 - p), of each class; under "" the mean over all questions."""
    shares = np.array([asked.present[asked.category == c].mean() for c in range(len(records.classes))])
    values = shares * (1 - shares)
    return {"": float(values[asked.category].mean()), **dict(zip(records.classes, values.tolist(), strict=True))}


def _kept(values: Float[np.ndarray, "n K"], kept: Mapping[str, Sequence[str]]) -> dict[str, Kept]:
    """What is said of phrases that name nothing: `values` are their presence in every image."""
    said, start = {}, 0
    for kind, phrases in kept.items():
        own = values[:, start : start + len(phrases)]
        start += len(phrases)
        medians = np.median(own, axis=0)
        each = dict(zip(phrases, medians.tolist(), strict=True))
        said[kind] = Kept(float(np.median(own)), float(medians.max()), float((own >= PRESENT).mean()), each)
    return said


def _rows(asked: Asked, records: LabelledRecords, found: Probabilities) -> list[tuple[str | float | int, ...]]:
    rows: list[tuple[str | float | int, ...]] = []
    for k, i in enumerate(asked.record.tolist()):
        name, present = records.classes[asked.category[k]], int(asked.present[k])
        metric = f"brier {NAMES if asked.by_name[k] else 'by phrase'}"
        values = [float(found[part][k]) if part in found else "" for part in (SEEN, LEFT_OUT)]
        squared = (float(found[SEEN][k]) - present) ** 2
        rows.append((records.ids[i], records.patients[i], name, metric, "", squared, "", present, *values))
    return rows
