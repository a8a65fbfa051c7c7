"""Prompt robustness: the same finding asked in several ways, and how far a model's scores spread over the wordings.

For every finding with paraphrases: the AUC of its presence, paraphrase against "no <class>.", and the IoU of its heat
maps (mean over samples and thresholds, scored as in localisation). A model that understands the finding rather than one
wording has a small spread.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from afloc_jax.errors import UserError
from afloc_jax.evaluation import discrimination
from afloc_jax.evaluation.files import csv_text, json_text, shown, write_folder
from afloc_jax.evaluation.labelled import LabelledRecords, embed_records, read_labelled
from afloc_jax.evaluation.localization import ProtocolOptions, score_sample
from afloc_jax.evaluation.records import Source, patient_of
from afloc_jax.evaluation.settings import TaskSettings
from afloc_jax.evaluation.statistics import Bootstrap, Replicates, mean_of_finite
from afloc_jax.evaluation.statistics import bootstrap as bootstrap_means
from afloc_jax.inference.class_prompts import PromptSet, class_key, read_prompt_set
from afloc_jax.inference.model import Model
from afloc_jax.inference.zero_shot import contrast_probabilities

PARAPHRASES = Path(__file__).with_name("paraphrases.json")
PER_SAMPLE_COLUMNS = ("id", "patient", "category", "metric", "threshold", "value", "note")
SPREADS = ("mean", "deviation", "lowest", "highest", "range")


def evaluate_robustness(
    model: Model, source: Source, out: str | Path, settings: TaskSettings | None = None
) -> dict[str, Any]:
    """Score every paraphrase; write per_sample.csv, summary.json and summary.md into `out`.

    Args:
        model: what is evaluated.
        source: records with labelled and, for IoU, annotated findings.
        out: folder of the results.
        settings: see `TaskSettings`. Every phrase of its prompt set is a prompt of its own; classes with one are left
            out. With a table of labels there is no IoU.

    Returns:
        What summary.json holds: per metric and class `SPREADS` over the paraphrases and the value of every paraphrase,
        each with an interval.

    Raises:
        UserError: no class with paraphrases occurs.
    """
    settings = settings or TaskSettings("robustness")
    given = settings.prompt_set
    prompt_set = given if given and given.classes else read_prompt_set(PARAPHRASES)
    records = read_labelled(source, settings.classes, settings.labels)
    phrases = {name: prompt_set.prompts(name)[0] for name in records.classes}
    phrases = {name: texts for name, texts in phrases.items() if len(texts) > 1}
    if not phrases:
        raise UserError(f"no class of this data set has several phrases; the classes are {', '.join(records.classes)}")
    metrics: dict[str, Any] = {}
    metrics["auc"], rows = _classify(model, source, records, phrases, prompt_set, settings)
    if settings.labels is None:
        metrics["iou"], of_iou = _localize(model, source, phrases, settings)
        rows += of_iou
    summary = {
        **settings.account(model, source, records.sha256),
        "n": len(records),
        "paraphrases": phrases,
        "spread": metrics,
        "metrics": {
            f"{metric} {spread}": {"overall": _mean_over_classes(values, spread)}
            for metric, values in metrics.items()
            for spread in SPREADS
        },
    }
    files = {"summary.md": to_markdown(summary), "summary.json": json_text(summary)}
    write_folder(out, {"per_sample.csv": csv_text(PER_SAMPLE_COLUMNS, rows), **files})
    return summary


def paraphrase_probabilities(
    model: Model, whole: Float[np.ndarray, "n D"], texts: Sequence[str], negative: Sequence[str], compatible: bool
) -> Float[np.ndarray, "n K"]:
    """Probability of a class in each image, asked with each phrase alone against the mean of the negative ones."""
    reports = np.asarray(model.embed_texts([*texts, *negative], compatible=compatible).report)
    absent = np.repeat(reports[len(texts) :].mean(axis=0, keepdims=True), len(texts), axis=0)
    return contrast_probabilities(whole, reports[: len(texts)], absent)


def spread(values: Float[np.ndarray, "*R K"]) -> Float[np.ndarray, "*R 5"]:
    """`SPREADS` over the last axis; the deviation is that of the paraphrases (K - 1 in its denominator)."""
    lowest, highest = values.min(axis=-1), values.max(axis=-1)
    parts = [values.mean(axis=-1), values.std(axis=-1, ddof=1), lowest, highest, highest - lowest]
    return np.stack(parts, axis=-1)


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as tables that read well in plain text."""
    bootstrap = summary["bootstrap"]
    lines = [
        "# Prompt robustness",
        "",
        f"{summary['n']} records. Scores of the same finding asked in several ways: mean over the ways, their standard "
        f"deviation, lowest, highest, range. Value [95 % {bootstrap['interval']} interval, {bootstrap['resamples']} "
        f"resamples by {bootstrap['unit']}].",
    ]
    for metric, classes in summary["spread"].items():
        lines += ["", f"## {metric.upper() if metric == 'auc' else 'IoU'}", ""]
        lines += [f"| | ways | {' | '.join(SPREADS)} | lowest by | highest by |", "|---|---|" + "---|" * 7]
        for name, values in classes.items():
            cells = [shown(values[part]) for part in SPREADS]
            order = by_value(values["per_paraphrase"])
            lines.append(f"| {name} | {len(order)} | {' | '.join(cells)} | {order[0]} | {order[-1]} |")
    return "\n".join(lines) + "\n"


def by_value(per_paraphrase: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """The phrases, that of the lowest mean first."""
    return sorted(per_paraphrase, key=lambda text: per_paraphrase[text]["mean"] or 0.0)


def _classify(
    model: Model,
    source: Source,
    records: LabelledRecords,
    phrases: Mapping[str, Sequence[str]],
    prompt_set: PromptSet,
    settings: TaskSettings,
) -> tuple[dict[str, Any], list[tuple]]:
    """The spread of the AUC per class, and rows of per_sample.csv; a sample is one record."""
    whole = embed_records(model, source, records.rows, settings.framing)
    clusters = settings.bootstrap.clusters(records.patients)
    spreads: dict[str, Any] = {}
    rows: list[tuple] = []
    for name, texts in phrases.items():
        labels = records.labels[:, records.classes.index(name)]
        known = np.isfinite(labels)
        negative = prompt_set.prompts(name)[1]
        found = paraphrase_probabilities(model, whole[known], texts, negative, settings.compatible)
        replicates = settings.bootstrap.resample(_aucs(labels, found, known), len(records), clusters)
        spreads[name] = _spread(replicates, texts, settings.bootstrap)
        for i, p in zip(np.flatnonzero(known), found, strict=True):
            sample = (records.ids[i], records.patients[i], name)
            rows += [(*sample, f"probability {k}", "", float(p[k]), "") for k in range(len(texts))]
    return spreads, rows


def _aucs(labels: Float[np.ndarray, " n"], found: Float[np.ndarray, "k K"], known: np.ndarray):
    def statistic(weights: Any) -> np.ndarray:
        truth, w = labels[known] == 1, weights[:, known]
        return np.stack([discrimination.auc(truth, found[:, k], w) for k in range(found.shape[1])], axis=-1)

    return statistic


def _spread(replicates: Replicates, texts: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    spreads = replicates.map(spread)
    table: dict[str, Any] = {name: bootstrap.limits_of(spreads[i]).to_dict() for i, name in enumerate(SPREADS)}
    values = {text: bootstrap.limits_of(replicates[k]).to_dict() for k, text in enumerate(texts)}
    return {**table, "per_paraphrase": values}


def _localize(
    model: Model, source: Source, phrases: Mapping[str, Sequence[str]], settings: TaskSettings
) -> tuple[dict[str, Any], list[tuple]]:
    """The spread of IoU per class, and rows of per_sample.csv; a sample is one finding of one record."""
    spreads, rows, bootstrap = {}, [], settings.bootstrap
    for name, texts in phrases.items():
        places = [
            (row, k)
            for row in range(len(source))
            for k, finding in enumerate(source[row].findings)
            if class_key(finding.label) == class_key(name)
        ]
        table = overlaps_of_phrases(model, source, places, texts, settings.compatible)
        ids = [f"{source[row].id}#{k}" for row, k in places]
        patients = [patient_of(source[row]) for row, _ in places]
        found = bootstrap_means(
            table,
            np.zeros(len(places), int),
            1,
            bootstrap.resamples,
            bootstrap.seed,
            clusters=bootstrap.clusters(patients),
            leave_out=bootstrap.leave_out,
        )
        of_class = Replicates(found.point[0], found.resampled[:, 0], tuple(part[:, 0] for part in found.left_out))
        spreads[name] = _spread(of_class, texts, bootstrap)
        for sample, patient, values in zip(ids, patients, table, strict=True):
            rows += [(sample, patient, name, f"iou {k}", "", float(values[k]), "") for k in range(len(texts))]
    return spreads, rows


def overlaps_of_phrases(
    model: Model, source: Source, places: Sequence[tuple[int, int]], texts: Sequence[str], compatible: bool
) -> Float[np.ndarray, "n K"]:
    """IoU, mean over the protocol's thresholds, of findings (row, number in the record) asked with each phrase."""
    options = ProtocolOptions(compatible=compatible)
    table = np.full((len(places), len(texts)), np.nan)
    starts = range(0, len(places), model.batch_size)
    for start in tqdm(starts, desc=texts[0], unit="batch", disable=None):
        records = [source[row] for row, _ in places[start : start + model.batch_size]]
        squares = np.stack([record.image for record in records])
        of_text, of_image = np.divmod(np.arange(len(texts) * len(records)), len(records))
        asked = [texts[k] for k in of_text]
        maps = model.heatmaps_of_pairs(squares, of_image, asked, compatible=compatible)
        for heatmap, i, k in zip(maps, of_image, of_text, strict=True):
            mask = np.asarray(records[i].findings[places[start + i][1]].mask)
            iou = score_sample((mask > 0).astype(np.uint8), heatmap, options).iou
            table[start + i, k] = mean_of_finite(iou, axis=0)
    return table


def _mean_over_classes(values: Mapping[str, Any], name: str) -> dict[str, float | None]:
    found = [of_class[name]["mean"] for of_class in values.values() if of_class[name]["mean"] is not None]
    return {"mean": float(np.mean(found)) if found else None, "lower": None, "upper": None}
