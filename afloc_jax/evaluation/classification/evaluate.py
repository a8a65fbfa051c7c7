"""Zero-shot classification of a data set: probabilities, metrics with intervals, thresholds from validation data.

The probabilities follow the published release. The release chooses its thresholds on the test set, so that F1, accuracy
and MCC are too optimistic. `compatible` reproduces this; the default chooses them on the validation split.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.classification.examples import write_mistakes
from afloc_jax.evaluation.classification.metrics import (
    METRICS,
    MULTICLASS,
    NATURAL_THRESHOLD,
    binary_statistic,
    choose_thresholds,
    multiclass_statistic,
)
from afloc_jax.evaluation.classification.result import Classification
from afloc_jax.evaluation.classification.settings import ClassificationSettings
from afloc_jax.evaluation.labelled import NO_FINDING, LabelledRecords, embed_records, own_phrases, read_labelled
from afloc_jax.evaluation.results import ByCategory
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Replicates, Statistic
from afloc_jax.evaluation.statistics.coverage import few_positives
from afloc_jax.evaluation.statistics.discrimination import ReliabilityBin, reliability
from afloc_jax.evaluation.task import JsonObject, Models
from afloc_jax.files import Path
from afloc_jax.inference.class_prompts import PromptSet, find_class
from afloc_jax.inference.model import Model
from data_pipelines.reading import Records, RecordSource

PER_SAMPLE_COLUMNS = ("id", "patient", "category", "label", "probability", "threshold", "predicted")
OWN = "own"  # name of the prompt set of the data set's own phrases

Row = tuple[str | int | float, ...]


@dataclass(frozen=True)
class Decisions:
    """The decision for each record and class, the thresholds (NaN for none), and the statistic that scores them."""

    predicted: Bool[np.ndarray, "n C"]
    thresholds: Float[np.ndarray, " C"]
    chosen_on: str
    statistic: Statistic


def evaluate_dataset(models: Models, out: str | os.PathLike[str], settings: ClassificationSettings) -> JsonObject:
    """`evaluate_classification` of the data set that the settings name. Raises UsageError, UserError."""
    source, validation = settings.open(settings.split), _validation(settings)
    return evaluate_classification(models.trained, source, out, settings, validation).to_json()


def _validation(settings: ClassificationSettings) -> RecordSource | None:
    multiclass = (settings.prompt_set or PromptSet()).multiclass
    if settings.compatible or multiclass or not settings.validation_split:
        return None
    if settings.validation_split == settings.split:
        raise UsageError(
            f"--validation_split {settings.split} is the scored split, which flatters the model; choose another, or "
            '"" for a threshold of 0.5'
        )
    try:
        return settings.open(settings.validation_split)
    except UserError as error:
        raise UserError(f'{error}; thresholds are chosen there: --validation_split NAME, or "" for 0.5') from None


def evaluate_classification(
    model: Model,
    source: Records,
    out: str | os.PathLike[str],
    settings: ClassificationSettings | None = None,
    validation: Records | None = None,
) -> Classification:
    """Classifies every labelled record; writes per_sample.csv, summary.json and summary.md to `out`.

    With a multi-class prompt set, records with none or several of the classes are left out.

    Args:
        model: the model to evaluate.
        source: the records to score (see `read_labelled` for their labels).
        out: the folder of results.
        settings: classes, prompts and intervals.
        validation: the records on which thresholds are chosen, and whose phrases are the prompts if there is no prompt
            set. Without them thresholds are 0.5 and prompts "Findings suggesting <class>.".

    Raises:
        UsageError, UserError: labels, prompts or weights are unusable.
    """
    settings = settings or ClassificationSettings()
    prompt_set, prompts_from = _prompts(settings, validation)
    queried = replace(settings, prompts=prompt_set)
    records = read_labelled(source, settings.classes, settings.labels, settings.unlisted)
    records, only_present = (_one_class_each(records), []) if prompt_set.multiclass else records.contrasted()
    bootstrap, classes = settings.resampling, list(records.classes)
    units = bootstrap.units(records.patients, records.ids)
    probabilities = _probabilities(model, source, records, queried)
    if prompt_set.multiclass:
        decided = _choose_one(records, probabilities)
    else:
        decided = _decide(model, records, probabilities, validation, queried)
    replicates = bootstrap.resample(decided.statistic, len(records), units.clusters)
    result = Classification(
        settings.account(model, source, records.sha256, units),
        multiclass=prompt_set.multiclass,
        n=len(records),
        n_left_out=records.left_out,
        n_per_category={name: int(np.isfinite(records.labels[:, c]).sum()) for c, name in enumerate(classes)},
        positives={name: int(np.nansum(records.labels[:, c])) for c, name in enumerate(classes)},
        few_positives=few_positives({name: units.number(records.labels[:, c] == 1) for c, name in enumerate(classes)}),
        never_known_absent=only_present,
        metrics=_intervals(replicates, classes, bootstrap, prompt_set.multiclass),
        thresholds=dict(zip(classes, decided.thresholds.tolist(), strict=True)),
        thresholds_chosen_on=decided.chosen_on,
        reliability=_reliability(records, probabilities),
        prompt_set=prompt_set.name,
        prompts_from=prompts_from,
        prompts=prompt_set.listing(classes),
        asked_without_phrases=prompt_set.without_entry(classes) if prompt_set.classes else [],
        aggregation=settings.aggregation,
    )
    write_mistakes(Path(out), source, records, probabilities, decided.predicted)
    result.write(out, PER_SAMPLE_COLUMNS, _rows(records, probabilities, decided))
    return result


def _intervals(
    replicates: Replicates, classes: list[str], bootstrap: Bootstrap, multiclass: bool
) -> dict[str, ByCategory]:
    """The metrics of replicates [C, M], or with `multiclass` [1 + C, M], all classes first."""
    if not multiclass:
        means = {m.name: (replicates[i], m.name == "auc") for i, m in enumerate(METRICS)}
        return {name: ByCategory.mean_of(of, classes, bootstrap, auc) for name, (of, auc) in means.items()}
    metrics = {}
    for i, name in enumerate(MULTICLASS):
        overall, *each = (bootstrap.limits_of(replicates[i][c], name == "auc") for c in range(1 + len(classes)))
        metrics[name] = ByCategory(overall, dict(zip(classes, each, strict=True)))
    return metrics


def _reliability(records: LabelledRecords, probabilities: Float[np.ndarray, "n C"]) -> dict[str, list[ReliabilityBin]]:
    """The reliability table of each class, over the records with a known label."""
    tables = {}
    for c, name in enumerate(records.classes):
        known = np.isfinite(records.labels[:, c])
        tables[name] = reliability(records.labels[known, c] == 1, probabilities[known, c])
    return tables


# Prompts and probabilities


def _prompts(settings: ClassificationSettings, validation: Records | None) -> tuple[PromptSet, str]:
    """The prompt set, and a description of its origin."""
    given = settings.prompt_set
    if given is not None:
        return given, f"prompt set {given.name or 'without a name'}"
    plain = PromptSet()
    phrases = {} if validation is None or settings.compatible else own_phrases(validation)
    if not phrases:
        return plain, plain.fallback
    count = sum(map(len, phrases.values()))
    return PromptSet(OWN, phrases), f"{count} phrases of the validation records, none taken from scored ones"


def _probabilities(
    model: Model, source: Records, records: LabelledRecords, settings: ClassificationSettings, name: str = "images"
) -> Float[np.ndarray, "n C"]:
    images = embed_records(model, source, records.rows, settings.framed, name)
    prompts = settings.prompt_set or PromptSet()
    how = (list(records.classes), prompts, settings.compatible, settings.aggregation)
    return model.classify_embedded(images, *how).astype(np.float64)


# Decisions


def _choose_one(records: LabelledRecords, probabilities: Float[np.ndarray, "n C"]) -> Decisions:
    """Decisions for the most probable class of each record."""
    classes = probabilities.shape[1]
    predicted = np.eye(classes, dtype=bool)[probabilities.argmax(axis=1)]
    statistic = multiclass_statistic(records.labels.argmax(axis=1), probabilities)
    return Decisions(predicted, np.full(classes, np.nan), "none: the most probable class", statistic)


def _decide(
    model: Model,
    records: LabelledRecords,
    probabilities: Float[np.ndarray, "n C"],
    validation: Records | None,
    settings: ClassificationSettings,
) -> Decisions:
    """Decisions for each class separately, by its own threshold."""
    tuned = (records, probabilities) if settings.compatible else _validate(model, validation, records.classes, settings)
    if tuned is None:
        thresholds, chosen_on = np.full(probabilities.shape[1], NATURAL_THRESHOLD), f"none: {NATURAL_THRESHOLD}"
    else:
        known, values = tuned
        chosen = dict(zip(known.classes, choose_thresholds(known.labels, values), strict=True))
        thresholds = np.array([chosen.get(name, NATURAL_THRESHOLD) for name in records.classes])
        chosen_on = "the scored records (compatible)" if settings.compatible else f"{len(known)} validation records"
    predicted = probabilities >= thresholds
    return Decisions(predicted, thresholds, chosen_on, binary_statistic(records.labels, probabilities, predicted))


def _validate(
    model: Model, validation: Records | None, classes: tuple[str, ...], settings: ClassificationSettings
) -> tuple[LabelledRecords, np.ndarray] | None:
    """The labels and probabilities of the validation records, for the classes that occur in them."""
    if validation is None:
        return None
    occurring = read_labelled(validation, (), settings.labels, settings.unlisted).classes
    known = [name for name in classes if find_class(name, [*occurring, NO_FINDING])]
    records = read_labelled(validation, known, settings.labels, settings.unlisted)
    return records, _probabilities(model, validation, records, settings, "validation images")


def _one_class_each(records: LabelledRecords) -> LabelledRecords:
    if len(records.classes) < 2:
        raise UsageError("a choice of one class needs at least two classes")
    chosen = np.flatnonzero(records.exclusive() >= 0)
    if not len(chosen):
        raise UserError("no record has exactly one of the classes, so there is no single class to choose")
    taken = records.take(chosen)
    labels = np.eye(len(records.classes))[taken.exclusive()]  # one class is present, so the others are absent
    return replace(taken, labels=labels, doubtful=np.zeros(labels.shape, bool))


def _rows(records: LabelledRecords, probabilities: Float[np.ndarray, "n C"], decided: Decisions) -> Iterator[Row]:
    for i, name in enumerate(records.ids):
        for c, label in enumerate(records.classes):
            truth = records.labels[i, c]
            known = "" if np.isnan(truth) else int(truth)
            values = (known, float(probabilities[i, c]), float(decided.thresholds[c]), int(decided.predicted[i, c]))
            yield (name, records.patients[i], label, *values)
