"""Zero-shot classification of a data set: probabilities, metrics with intervals, thresholds from validation data.

Source: algorithm of the published system, section 7. The release chooses its thresholds on the test set, which flatters
F1, accuracy and MCC; `compatible` keeps that, the default takes them from the validation split.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation import discrimination
from afloc_jax.evaluation.files import csv_text, json_text, shown, write_folder
from afloc_jax.evaluation.labelled import NO_FINDING, LabelledRecords, embed_records, read_labelled
from afloc_jax.evaluation.records import Source, evaluation_provenance
from afloc_jax.evaluation.statistics import Bootstrap, Replicates, mean_of_finite
from afloc_jax.inference.class_prompts import PromptSet, class_key
from afloc_jax.inference.model import Model
from data_pipelines.images import Framing

METRICS = ("auc", *discrimination.DECISION_METRICS, "brier", "ece")
MULTICLASS_METRICS = ("auc", "accuracy", "balanced_accuracy", "f1", "mcc")
PER_SAMPLE_COLUMNS = ("id", "patient", "category", "label", "probability", "threshold", "predicted")
NATURAL_THRESHOLD = 0.5


def evaluate_classification(
    model: Model,
    source: Source,
    out: str | Path,
    *,
    validation: Source | None = None,
    classes: Sequence[str] = (),
    prompt_set: PromptSet | None = None,
    framing: Framing = "pad",
    labels: str | Path | None = None,
    compatible: bool = False,
    bootstrap: Bootstrap | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Classify every labelled record; write per_sample.csv, summary.json and summary.md into `out`.

    Args:
        model: what is evaluated.
        source: records to score, see `read_labelled` for their labels.
        out: folder of the results.
        validation: records on which the thresholds are chosen. Without them: 0.5, the natural one of a softmax.
        classes: names; all that occur if empty.
        prompt_set: how classes are asked for; its `multiclass` makes this a choice of one class per record, and records
            with no or several of the classes are left out.
        framing: "pad" or "crop" of the square.
        labels: table of labels for both sources.
        compatible: prompts cleaned and thresholds chosen (on the scored records) as in the release.
        bootstrap: how intervals are made.
        settings: how the data set was opened; recorded.

    Returns:
        What summary.json holds.

    Raises:
        UsageError, UserError: unusable labels, prompts or weights.
    """
    prompt_set, bootstrap = prompt_set or PromptSet(), bootstrap or Bootstrap()
    records = read_labelled(source, classes, labels)
    if prompt_set.multiclass:
        records = _one_class_each(records)
    clusters = bootstrap.clusters(records.patients)
    asked = list(records.classes)
    found = model.classify_embedded(
        embed_records(model, source, records.rows, framing), asked, prompt_set, compatible
    ).astype(np.float64)
    names: Sequence[str] = MULTICLASS_METRICS if prompt_set.multiclass else METRICS
    if prompt_set.multiclass:
        thresholds, chosen_on = np.full(len(asked), np.nan), "none: the most probable class"
        statistic = multiclass_statistic(records.labels.argmax(1), found)
        predicted = np.eye(len(asked), dtype=bool)[found.argmax(1)]
    else:
        tuned = (records, found) if compatible else _validate(model, validation, asked, prompt_set, framing, labels)
        thresholds, chosen_on = _thresholds(asked, tuned, compatible)
        predicted = found >= thresholds
        statistic = binary_statistic(records.labels, found, predicted)
    replicates = bootstrap.resample(statistic, len(records), clusters)
    summary = {
        "task": "classification",
        "multiclass": prompt_set.multiclass,
        "compatible": compatible,
        "n": len(records),
        "n_left_out": records.left_out,
        "n_per_category": {name: int(np.isfinite(records.labels[:, c]).sum()) for c, name in enumerate(asked)},
        "positives": {name: int(np.nansum(records.labels[:, c])) for c, name in enumerate(asked)},
        "metrics": metric_tables(replicates, names, asked, bootstrap, multiclass=prompt_set.multiclass),
        "thresholds": {name: _number(thresholds[c]) for c, name in enumerate(asked)},
        "thresholds_chosen_on": chosen_on,
        "reliability": {name: _reliability(records.labels[:, c], found[:, c]) for c, name in enumerate(asked)},
        "framing": framing,
        "prompt_set": prompt_set.name,
        "prompts": prompt_set.listing(asked),
        "bootstrap": bootstrap.to_dict(),
        "settings": dict(settings or {}),
        "provenance": evaluation_provenance(model, source, records.sha256),
    }
    write_folder(
        out,
        {
            "per_sample.csv": csv_text(PER_SAMPLE_COLUMNS, _rows(records, found, thresholds, predicted)),
            "summary.md": to_markdown(summary),
            "summary.json": json_text(summary),
        },
    )
    return summary


def _validate(
    model: Model,
    validation: Source | None,
    classes: list[str],
    prompt_set: PromptSet,
    framing: Framing,
    labels: str | Path | None,
) -> tuple[LabelledRecords, np.ndarray] | None:
    """Labels and probabilities of the validation records, for those of the classes that occur among them."""
    if validation is None:
        return None
    occurring = {class_key(name) for name in read_labelled(validation, (), labels).classes} | {NO_FINDING}
    records = read_labelled(validation, [name for name in classes if class_key(name) in occurring], labels)
    whole = embed_records(model, validation, records.rows, framing, "validation images")
    return records, model.classify_embedded(whole, records.classes, prompt_set).astype(np.float64)


def _thresholds(
    classes: list[str], tuned: tuple[LabelledRecords, np.ndarray] | None, compatible: bool
) -> tuple[np.ndarray, str]:
    """A threshold per class, and in words where they come from."""
    if tuned is None:
        return np.full(len(classes), NATURAL_THRESHOLD), f"none: {NATURAL_THRESHOLD}"
    records, probabilities = tuned
    chosen = dict(zip(records.classes, choose_thresholds(records.labels, probabilities), strict=True))
    where = "the scored records (compatible)" if compatible else f"{len(records)} validation records"
    return np.array([chosen.get(name, NATURAL_THRESHOLD) for name in classes]), where


def choose_thresholds(labels: Float[np.ndarray, "n C"], probabilities: Float[np.ndarray, "n C"]) -> np.ndarray:
    """[C]: of each class the threshold with the highest F1 among known labels; 0.5 where no record is positive."""
    chosen = np.full(labels.shape[1], NATURAL_THRESHOLD)
    for c in range(labels.shape[1]):
        known = np.isfinite(labels[:, c])
        best = discrimination.best_threshold(labels[known, c] == 1, probabilities[known, c])
        chosen[c] = best if np.isfinite(best) else NATURAL_THRESHOLD
    return chosen


def binary_statistic(labels: Float[np.ndarray, "n C"], probabilities: Float[np.ndarray, "n C"], predicted: np.ndarray):
    """Weights [R, n] -> `METRICS` of every class, [R, C, M]; records of unknown label do not count for a class."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        per_class = []
        for c in range(labels.shape[1]):
            known = np.isfinite(labels[:, c])
            truth, p, w = labels[known, c] == 1, probabilities[known, c], weights[:, known]
            decided = discrimination.decisions(truth, predicted[known, c], w)
            values = [discrimination.auc(truth, p, w), *(decided[name] for name in discrimination.DECISION_METRICS)]
            values += [discrimination.brier(truth, p, w), discrimination.calibration_error(truth, p, w)]
            per_class.append(np.stack(values, axis=-1))
        return np.stack(per_class, axis=1)

    return statistic


def multiclass_statistic(labels: np.ndarray, probabilities: Float[np.ndarray, "n C"]):
    """Weights [R, n] -> [R, 1 + C, M] of `MULTICLASS_METRICS`: all classes first, then each against the rest."""
    classes, predicted = probabilities.shape[1], probabilities.argmax(axis=1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        aucs = [discrimination.auc(labels == c, probabilities[:, c], weights) for c in range(classes)]
        together = discrimination.multiclass_decisions(labels, predicted, classes, weights)
        tables = [{"auc": mean_of_finite(np.stack(aucs), axis=0), **together}]
        tables += [
            {"auc": aucs[c], **discrimination.decisions(labels == c, predicted == c, weights)} for c in range(classes)
        ]
        return np.stack([np.stack([table[m] for m in MULTICLASS_METRICS], axis=-1) for table in tables], axis=1)

    return statistic


def metric_tables(
    replicates: Replicates,
    names: Sequence[str],
    classes: Sequence[str],
    bootstrap: Bootstrap,
    *,
    multiclass: bool = False,
) -> dict[str, Any]:
    """`metrics` of summary.json from replicates [C, M] ([1 + C, M] with all classes first where `multiclass`)."""
    tables = {}
    for m, name in enumerate(names):
        column = replicates[m]
        overall = column[0] if multiclass else column.map(lambda values: mean_of_finite(values, axis=-1))
        tables[name] = {
            "overall": bootstrap.limits_of(overall).to_dict(),
            "per_category": {
                label: bootstrap.limits_of(column[c + multiclass]).to_dict() for c, label in enumerate(classes)
            },
        }
    return tables


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as tables that read well in plain text."""
    metrics, bootstrap = summary["metrics"], summary["bootstrap"]
    kind = "one class per record" if summary["multiclass"] else "each class for itself"
    prompts = summary["prompt_set"] or "no set, the fallback phrase"
    lines = [
        f"# Zero-shot classification, {kind}{' (compatible)' if summary['compatible'] else ''}",
        "",
        f"{summary['n']} records; square: {summary['framing']}; prompts: {prompts}. "
        f"Value [95 % {bootstrap['interval']} interval, {bootstrap['resamples']} resamples by {bootstrap['unit']}].",
        f"Thresholds chosen on: {summary['thresholds_chosen_on']}.",
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


def _one_class_each(records: LabelledRecords) -> LabelledRecords:
    if len(records.classes) < 2:
        raise UsageError("a choice of one class needs at least two classes")
    chosen = np.flatnonzero(records.exclusive() >= 0)
    if not len(chosen):
        raise UserError("no record has exactly one of the classes, so there is no single class to choose")
    return records.take(chosen)


def _reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[dict[str, Any]]:
    known = np.isfinite(labels)
    return discrimination.reliability(labels[known] == 1, probabilities[known])


def _rows(records: LabelledRecords, found: np.ndarray, thresholds: np.ndarray, predicted: np.ndarray):
    for i, name in enumerate(records.ids):
        for c, label in enumerate(records.classes):
            truth = records.labels[i, c]
            known = "" if np.isnan(truth) else int(truth)
            values = (known, float(found[i, c]), float(thresholds[c]), int(predicted[i, c]))
            yield (name, records.patients[i], label, *values)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
