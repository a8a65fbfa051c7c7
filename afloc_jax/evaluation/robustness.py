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
from afloc_jax.evaluation.labelled import embed_records, read_labelled
from afloc_jax.evaluation.localization import ProtocolOptions, score_sample
from afloc_jax.evaluation.records import Source, evaluation_provenance, patient_of
from afloc_jax.evaluation.statistics import Bootstrap, Replicates, mean_of_finite
from afloc_jax.evaluation.statistics import bootstrap as bootstrap_means
from afloc_jax.inference.class_prompts import PromptSet, class_key, read_prompt_set
from afloc_jax.inference.model import Model
from afloc_jax.inference.zero_shot import contrast_probabilities
from data_pipelines.images import Framing

PARAPHRASES = Path(__file__).with_name("paraphrases.json")
PER_SAMPLE_COLUMNS = ("id", "patient", "category", "metric", "threshold", "value", "note")
SPREADS = ("mean", "deviation", "lowest", "highest", "range")


def evaluate_robustness(
    model: Model,
    source: Source,
    out: str | Path,
    *,
    prompt_set: PromptSet | None = None,
    classes: Sequence[str] = (),
    framing: Framing = "pad",
    labels: str | Path | None = None,
    compatible: bool = False,
    bootstrap: Bootstrap | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score every paraphrase; write per_sample.csv, summary.json and summary.md into `out`.

    Args:
        model: what is evaluated.
        source: records with labelled and, for IoU, annotated findings.
        out: folder of the results.
        prompt_set: class -> positive phrases, each a prompt of its own; the ten of this package if not given.
        classes: names; those that both occur and have at least two phrases if empty.
        framing, labels, compatible, bootstrap, settings: as in `evaluate_classification` (heat maps are always padded).

    Returns:
        What summary.json holds: per metric and class `SPREADS` over the paraphrases, each with an interval, and the
        value of every paraphrase.

    Raises:
        UserError: no class with paraphrases occurs.
    """
    bootstrap = bootstrap or Bootstrap()
    prompt_set = prompt_set if prompt_set and prompt_set.classes else read_prompt_set(PARAPHRASES)
    records = read_labelled(source, classes, labels)
    phrases = {name: prompt_set.prompts(name)[0] for name in records.classes}
    phrases = {name: texts for name, texts in phrases.items() if len(texts) > 1}
    if not phrases:
        raise UserError(f"no class of this data set has several phrases; the classes are {', '.join(records.classes)}")
    whole = embed_records(model, source, records.rows, framing)
    clusters = bootstrap.clusters(records.patients)
    metrics: dict[str, Any] = {"auc": {}}
    rows: list[tuple] = []
    for name, texts in phrases.items():
        labels_of = records.labels[:, records.classes.index(name)]
        known = np.isfinite(labels_of)
        found = paraphrase_probabilities(model, whole[known], texts, prompt_set.prompts(name)[1], compatible)
        replicates = bootstrap.resample(_aucs(labels_of, found, known), len(records), clusters)
        metrics["auc"][name] = _spread(replicates, texts, bootstrap)
        for i, p in zip(np.flatnonzero(known), found, strict=True):
            sample = (records.ids[i], records.patients[i], name)
            rows += [(*sample, f"probability {k}", "", float(p[k]), "") for k in range(len(texts))]
    if labels is None:
        metrics["iou"], of_iou = _localize(model, source, phrases, compatible, bootstrap)
        rows += of_iou
    summary = {
        "task": "robustness",
        "compatible": compatible,
        "n": len(records),
        "paraphrases": phrases,
        "spread": metrics,
        "metrics": {
            f"{metric} {spread}": {"overall": _mean_over_classes(values, spread)}
            for metric, values in metrics.items()
            for spread in SPREADS
        },
        "framing": framing,
        "bootstrap": bootstrap.to_dict(),
        "settings": dict(settings or {}),
        "provenance": evaluation_provenance(model, source, records.sha256),
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
            order = sorted(values["per_paraphrase"], key=lambda text: values["per_paraphrase"][text] or 0.0)
            lines.append(f"| {name} | {len(order)} | {' | '.join(cells)} | {order[0]} | {order[-1]} |")
    return "\n".join(lines) + "\n"


def _aucs(labels: Float[np.ndarray, " n"], found: Float[np.ndarray, "k K"], known: np.ndarray):
    def statistic(weights: np.ndarray) -> np.ndarray:
        truth, w = labels[known] == 1, weights[:, known]
        return np.stack([discrimination.auc(truth, found[:, k], w) for k in range(found.shape[1])], axis=-1)

    return statistic


def _spread(replicates: Replicates, texts: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    spreads = replicates.map(spread)
    table: dict[str, Any] = {name: bootstrap.limits_of(spreads[i]).to_dict() for i, name in enumerate(SPREADS)}
    values = [float(value) if np.isfinite(value) else None for value in replicates.point]
    return {**table, "per_paraphrase": dict(zip(texts, values, strict=True))}


def _localize(
    model: Model, source: Source, phrases: Mapping[str, Sequence[str]], compatible: bool, bootstrap: Bootstrap
) -> tuple[dict[str, Any], list[tuple]]:
    """The spread of IoU per class, and rows of per_sample.csv; a sample is one finding of one record."""
    spreads, rows = {}, []
    for name, texts in phrases.items():
        places = [
            (row, k)
            for row in range(len(source))
            for k, finding in enumerate(source[row].findings)
            if class_key(finding.label) == class_key(name)
        ]
        table = overlaps_of_phrases(model, source, places, texts, compatible)
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
