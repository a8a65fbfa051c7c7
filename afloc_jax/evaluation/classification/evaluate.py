"""Zero-shot classification of a data set: probabilities, metrics with intervals, thresholds from validation data.

Source: algorithm of the published system, section 7. The release chooses its thresholds on the test set, which flatters
F1, accuracy and MCC; `compatible` keeps that, the default takes them from the validation split.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.classification.examples import write_mistakes
from afloc_jax.evaluation.classification.metrics import (
    binary_statistic,
    metric_tables,
    multiclass_statistic,
    reliability_tables,
)
from afloc_jax.evaluation.classification.settings import ClassificationSettings
from afloc_jax.evaluation.files import csv_text, json_text, shown, write_folder
from afloc_jax.evaluation.labelled import NO_FINDING, LabelledRecords, embed_records, own_phrases, read_labelled
from afloc_jax.evaluation.records import Source
from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.task import JsonObject, Models
from afloc_jax.inference.class_prompts import PromptSet, find_class
from afloc_jax.inference.model import Model
from data_pipelines.reading import RecordSource

PER_SAMPLE_COLUMNS = ("id", "patient", "category", "label", "probability", "threshold", "predicted")
NATURAL_THRESHOLD = 0.5
OWN = "own"  # name of the prompt set that the data set's phrases make


@dataclass(frozen=True)
class Decisions:
    """What is said of each record and class, by which thresholds (NaN: none), and the statistic that scores it."""

    predicted: Bool[np.ndarray, "n C"]
    thresholds: Float[np.ndarray, " C"]
    chosen_on: str
    statistic: Callable[[Any], np.ndarray]


def evaluate_dataset(models: Models, out: Path, settings: ClassificationSettings) -> JsonObject:
    """`evaluate_classification` for a data set by its settings. Raises UsageError, UserError."""
    source, validation = settings.open(settings.split), _validation(settings)
    return evaluate_classification(models.trained, source, out, settings, validation)


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
    source: Source,
    out: str | Path,
    settings: ClassificationSettings | None = None,
    validation: Source | None = None,
) -> dict[str, Any]:
    """Classify every labelled record; write per_sample.csv, summary.json and summary.md into `out`.

    Args:
        model: what is evaluated.
        source: records to score, see `read_labelled` for their labels. Where one class is to be chosen, records with
            none or several of the classes are left out.
        out: folder of the results.
        settings: see `ClassificationSettings`.
        validation: records on which thresholds are chosen (without them: 0.5, the natural one of a softmax) and whose
            phrases ask where `settings` has no prompt set (without them: "Findings suggesting <class>.").

    Returns:
        What summary.json holds.

    Raises:
        UsageError, UserError: unusable labels, prompts or weights.
    """
    settings = settings or ClassificationSettings()
    prompt_set, prompts_from = _prompts(settings, validation)
    asked = replace(settings, prompts=prompt_set)
    records = read_labelled(source, settings.classes, settings.labels, settings.unlisted)
    records, only_present = (_one_class_each(records), []) if prompt_set.multiclass else records.contrasted()
    bootstrap, classes = settings.resampling, list(records.classes)
    clusters = bootstrap.clusters(records.patients)
    found = _probabilities(model, source, records, asked)
    if prompt_set.multiclass:
        decided = _choose_one(records, found)
    else:
        decided = _decide(model, records, found, validation, asked)
    replicates = bootstrap.resample(decided.statistic, len(records), clusters)
    summary = {
        **settings.account(model, source, records.sha256),
        "multiclass": prompt_set.multiclass,
        "n": len(records),
        "n_left_out": records.left_out,
        "n_per_category": {name: int(np.isfinite(records.labels[:, c]).sum()) for c, name in enumerate(classes)},
        "positives": {name: int(np.nansum(records.labels[:, c])) for c, name in enumerate(classes)},
        "never_known_absent": only_present,
        "metrics": metric_tables(replicates, classes, bootstrap, multiclass=prompt_set.multiclass),
        "thresholds": {name: _number(decided.thresholds[c]) for c, name in enumerate(classes)},
        "thresholds_chosen_on": decided.chosen_on,
        "reliability": reliability_tables(records.labels, found, classes),
        "prompt_set": prompt_set.name,
        "prompts_from": prompts_from,
        "prompts": prompt_set.listing(classes),
        "asked_without_phrases": prompt_set.without_entry(classes) if prompt_set.classes else [],
        "aggregation": settings.aggregation,
    }
    write_mistakes(Path(out), source, records, found, decided.predicted)
    table = csv_text(PER_SAMPLE_COLUMNS, _rows(records, found, decided))
    write_folder(out, {"per_sample.csv": table, "summary.md": to_markdown(summary), "summary.json": json_text(summary)})
    return summary


# Prompts and probabilities


def _prompts(settings: ClassificationSettings, validation: Source | None) -> tuple[PromptSet, str]:
    """How classes are asked for, and in words where that comes from."""
    given = settings.prompt_set
    if given is not None:
        return given, f"prompt set {given.name or 'without a name'}"
    plain = PromptSet()
    phrases = {} if validation is None or settings.compatible else own_phrases(validation)
    if not phrases:
        return plain, plain.fallback
    several = sum(len(texts) for texts in phrases.values())
    return PromptSet(OWN, phrases), f"{several} phrases of the validation records, none taken from scored ones"


def _probabilities(
    model: Model, source: Source, records: LabelledRecords, settings: ClassificationSettings, name: str = "images"
) -> Float[np.ndarray, "n C"]:
    whole = embed_records(model, source, records.rows, settings.framed, name)
    prompts = settings.prompt_set or PromptSet()
    classes = list(records.classes)
    found = model.classify_embedded(whole, classes, prompts, settings.compatible, settings.aggregation)
    return found.astype(np.float64)


# Decisions


def _choose_one(records: LabelledRecords, found: Float[np.ndarray, "n C"]) -> Decisions:
    """The most probable class."""
    classes = found.shape[1]
    predicted = np.eye(classes, dtype=bool)[found.argmax(axis=1)]
    statistic = multiclass_statistic(records.labels.argmax(axis=1), found)
    return Decisions(predicted, np.full(classes, np.nan), "none: the most probable class", statistic)


def _decide(
    model: Model,
    records: LabelledRecords,
    found: Float[np.ndarray, "n C"],
    validation: Source | None,
    settings: ClassificationSettings,
) -> Decisions:
    """Each class for itself, by a threshold of its own."""
    tuned = (records, found) if settings.compatible else _validate(model, validation, records.classes, settings)
    if tuned is None:
        thresholds, chosen_on = np.full(found.shape[1], NATURAL_THRESHOLD), f"none: {NATURAL_THRESHOLD}"
    else:
        known, probabilities = tuned
        chosen = dict(zip(known.classes, choose_thresholds(known.labels, probabilities), strict=True))
        thresholds = np.array([chosen.get(name, NATURAL_THRESHOLD) for name in records.classes])
        chosen_on = "the scored records (compatible)" if settings.compatible else f"{len(known)} validation records"
    predicted = found >= thresholds
    return Decisions(predicted, thresholds, chosen_on, binary_statistic(records.labels, found, predicted))


def _validate(
    model: Model, validation: Source | None, classes: tuple[str, ...], settings: ClassificationSettings
) -> tuple[LabelledRecords, np.ndarray] | None:
    """Labels and probabilities of the validation records, for those of the classes that occur among them."""
    if validation is None:
        return None
    occurring = read_labelled(validation, (), settings.labels, settings.unlisted).classes
    known = [name for name in classes if find_class(name, [*occurring, NO_FINDING])]
    records = read_labelled(validation, known, settings.labels, settings.unlisted)
    return records, _probabilities(model, validation, records, settings, "validation images")


def choose_thresholds(labels: Float[np.ndarray, "n C"], probabilities: Float[np.ndarray, "n C"]) -> np.ndarray:
    """[C]: of each class the threshold with the highest F1 among known labels; 0.5 where they are not of both kinds."""
    chosen = np.full(labels.shape[1], NATURAL_THRESHOLD)
    for c in range(labels.shape[1]):
        known = np.isfinite(labels[:, c])
        if len(np.unique(labels[known, c])) < 2:
            continue
        best = discrimination.best_threshold(labels[known, c] == 1, probabilities[known, c])
        chosen[c] = best if np.isfinite(best) else NATURAL_THRESHOLD
    return chosen


def _one_class_each(records: LabelledRecords) -> LabelledRecords:
    if len(records.classes) < 2:
        raise UsageError("a choice of one class needs at least two classes")
    chosen = np.flatnonzero(records.exclusive() >= 0)
    if not len(chosen):
        raise UserError("no record has exactly one of the classes, so there is no single class to choose")
    taken = records.take(chosen)
    labels = np.eye(len(records.classes))[taken.exclusive()]  # having one says that the others are absent
    return replace(taken, labels=labels, doubtful=np.zeros(labels.shape, bool))


# Files


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as tables that read well in plain text."""
    metrics, bootstrap = summary["metrics"], summary["bootstrap"]
    kind = "one class per record" if summary["multiclass"] else "each class for itself"
    remarks = [
        f"{words}: {', '.join(summary[key])}."
        for key, words in (
            ("never_known_absent", "Left out, since no record is known to lack them"),
            ("asked_without_phrases", "Asked by the rule alone, since the prompt set does not list them"),
        )
        if summary[key]
    ]
    lines = [
        f"# Zero-shot classification, {kind}{' (compatible)' if summary['compatible'] else ''}",
        "",
        f"{summary['n']} records; square: {summary['framing']}; prompts: {summary['prompts_from']}. "
        f"Value [95 % {bootstrap['interval']} interval, {bootstrap['resamples']} resamples by {bootstrap['unit']}].",
        f"Thresholds chosen on: {summary['thresholds_chosen_on']}.",
        *remarks,
        "",
        f"| | positive / known | {' | '.join(name.replace('_', ' ') for name in metrics)} | threshold |",
        "|---|---|" + "---|" * (len(metrics) + 1),
        f"| **all classes** | | {' | '.join(shown(values['overall']) for values in metrics.values())} | |",
    ]
    for name, known in summary["n_per_category"].items():
        threshold = summary["thresholds"][name]
        cells = [shown(values["per_category"][name]) for values in metrics.values()]
        cells.append("" if threshold is None else f"{threshold:.4g}")
        lines.append(f"| {name.replace('|', '/')} | {summary['positives'][name]} / {known} | {' | '.join(cells)} |")
    lines += ["", "## Reliability", "", "Mean probability and observed share of the records in each tenth.", ""]
    lines += ["| class | probability | n | mean probability | observed |", "|---|---|---|---|---|"]
    for name, table in summary["reliability"].items():
        for row in table:
            if row["n"]:
                span = f"{row['lower']:.1f} to {row['upper']:.1f}"
                lines.append(
                    f"| {name} | {span} | {row['n']} | {row['mean_probability']:.3f} | {row['observed']:.3f} |"
                )
    return "\n".join(lines) + "\n"


def _rows(records: LabelledRecords, found: Float[np.ndarray, "n C"], decided: Decisions) -> Iterator[tuple]:
    for i, name in enumerate(records.ids):
        for c, label in enumerate(records.classes):
            truth = records.labels[i, c]
            known = "" if np.isnan(truth) else int(truth)
            values = (known, float(found[i, c]), float(decided.thresholds[c]), int(decided.predicted[i, c]))
            yield (name, records.patients[i], label, *values)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
