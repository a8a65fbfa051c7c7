"""Prompt robustness: the same finding asked in several ways, and how far a model's scores spread over the wordings.

For every finding with paraphrases: the AUC of its presence, paraphrase against "no <class>.", and the IoU of its heat
maps (mean over samples and thresholds, scored as in localisation). A model that understands the finding rather than one
wording has a small spread.
"""

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from afloc_jax.errors import UserError
from afloc_jax.evaluation.files import csv_text, json_text, shown, write_folder
from afloc_jax.evaluation.labelled import LabelledRecords, embed_records, read_labelled
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.scores import score_sample
from afloc_jax.evaluation.records import Source, patient_of, place_of
from afloc_jax.evaluation.robustness.settings import RobustnessSettings
from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Replicates, mean_of_finite
from afloc_jax.evaluation.statistics.bootstrap import bootstrap as bootstrap_means
from afloc_jax.inference.class_prompts import PromptSet, find_class, read_prompt_set
from afloc_jax.inference.model import Model
from afloc_jax.inference.zero_shot import class_scores, contrast_probabilities

PARAPHRASES = Path(__file__).with_name("paraphrases.json")
PER_SAMPLE_COLUMNS = ("id", "patient", "category", "metric", "threshold", "value", "note")
SPREADS = ("mean", "deviation", "lowest", "highest", "range")


def evaluate_robustness(
    model: Model, source: Source, out: str | Path, settings: RobustnessSettings | None = None
) -> dict[str, Any]:
    """Score every paraphrase; write per_sample.csv, summary.json and summary.md into `out`.

    Args:
        model: what is evaluated.
        source: records with labelled and, for IoU, annotated findings.
        out: folder of the results.
        settings: see there. Every phrase of its prompt set is a prompt of its own; classes with one are left
            out, and named. With a table of labels, or without annotated places, there is no IoU.

    Returns:
        What summary.json holds: per metric and class `SPREADS` over the paraphrases and the value of every paraphrase,
        each with an interval.

    Raises:
        UserError: no class with paraphrases occurs.
    """
    settings = settings or RobustnessSettings()
    given = settings.prompt_set
    prompt_set = given if given and given.classes else read_prompt_set(PARAPHRASES)
    records = read_labelled(source, settings.classes, settings.labels, settings.unlisted)
    phrases = {name: prompt_set.prompts(name)[0] for name in records.classes}
    phrases = {name: texts for name, texts in phrases.items() if len(texts) > 1}
    if not phrases:
        raise UserError(f"no class of this data set has several phrases; the classes are {', '.join(records.classes)}")
    metrics: dict[str, Any] = {}
    means: dict[str, Any] = {}
    rows: list[tuple] = []
    told_apart = {name: texts for name, texts in phrases.items() if name in records.lacked()}
    if told_apart:
        metrics["auc"], overall, of_auc = _classify(model, source, records, told_apart, prompt_set, settings)
        means |= _overall_entries("auc", overall)
        rows += of_auc
    found = None if settings.labels else _localize(model, source, phrases, settings)
    if found is not None:
        metrics["iou"], overall, of_iou = found
        means |= _overall_entries("iou", overall)
        rows += of_iou
    if not metrics:
        records.contrasted()  # says why there is no AUC
        raise UserError("no class of this data set can be told apart, and none is annotated: nothing to evaluate")
    summary = {
        **settings.account(model, source, records.sha256),
        "n": len(records),
        "paraphrases": phrases,
        "left_out_classes": {
            **{name: "no AUC: no record is known to lack it" for name in phrases if name not in told_apart},
            **{name: "has no paraphrases" for name in records.classes if name not in phrases},
        },
        "spread": metrics,
        "metrics": means,
    }
    files = {"summary.md": to_markdown(summary), "summary.json": json_text(summary)}
    write_folder(out, {"per_sample.csv": csv_text(PER_SAMPLE_COLUMNS, rows), **files})
    return summary


def paraphrase_probabilities(
    model: Model, whole: Float[np.ndarray, "n D"], texts: Sequence[str], negative: Sequence[str], compatible: bool
) -> Float[np.ndarray, "n K"]:
    """Probability of a class in each image, asked with each phrase alone against the mean of the negative ones."""
    reports = np.asarray(model.embed_texts([*texts, *negative], compatible=compatible).report)
    present = class_scores(whole, [report[None] for report in reports[: len(texts)]])
    absent = class_scores(whole, [reports[len(texts) :]])
    return contrast_probabilities(present, np.broadcast_to(absent, present.shape))


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
    lines += [f"Left out: {name} ({why})." for name, why in summary["left_out_classes"].items()]
    for metric, classes in summary["spread"].items():
        lines += ["", f"## {metric.upper() if metric == 'auc' else 'IoU'}", ""]
        lines += [f"| | ways | {' | '.join(SPREADS)} | lowest by | highest by |", "|---|---|" + "---|" * 7]
        for name, values in classes.items():
            cells = [shown(values[part]) for part in SPREADS]
            order = by_value(values["per_paraphrase"])
            lines.append(f"| {name} | {len(order)} | {' | '.join(cells)} | {order[0]} | {order[-1]} |")
        cells = [shown(summary["metrics"][f"{metric} {part}"]["overall"]) for part in SPREADS]
        lines.append(f"| **mean over classes** | | {' | '.join(cells)} | | |")
    return "\n".join(lines) + "\n"


def by_value(per_paraphrase: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """The phrases, that of the lowest mean first."""
    return sorted(per_paraphrase, key=lambda text: per_paraphrase[text]["mean"] or 0.0)


# Replicates of all classes are [C, K] from the same draws, K the most phrases that a class has, NaN where it has fewer.


def _classify(
    model: Model,
    source: Source,
    records: LabelledRecords,
    phrases: Mapping[str, Sequence[str]],
    prompt_set: PromptSet,
    settings: RobustnessSettings,
) -> tuple[dict[str, Any], dict[str, Any], list[tuple]]:
    """The spread of the AUC per class and over classes, and rows of per_sample.csv; a sample is one record."""
    whole = embed_records(model, source, records.rows, settings.framed)
    clusters = settings.resampling.clusters(records.patients)
    asked: list[tuple[np.ndarray, np.ndarray]] = []
    rows: list[tuple] = []
    for name, texts in phrases.items():
        labels = records.labels[:, records.classes.index(name)]
        known = np.isfinite(labels)
        negative = prompt_set.prompts(name)[1]
        found = paraphrase_probabilities(model, whole[known], texts, negative, settings.compatible)
        asked.append((labels, found))
        for i, p in zip(np.flatnonzero(known), found, strict=True):
            sample = (records.ids[i], records.patients[i], name)
            rows += [(*sample, f"probability {k}", "", float(p[k]), "") for k in range(len(texts))]
    replicates = settings.resampling.resample(_aucs(asked), len(records), clusters)
    return *_tables(replicates, phrases, settings.resampling), rows


def _aucs(asked: Sequence[tuple[Float[np.ndarray, " n"], Float[np.ndarray, "k K"]]]):
    """Of every class its labels, and the probabilities of the records that have one, by phrase."""
    most = max(found.shape[1] for _, found in asked)

    def statistic(weights: Any) -> np.ndarray:
        classes = []
        for labels, found in asked:
            known = np.isfinite(labels)
            truth, w = labels[known] == 1, weights[:, known]
            aucs = np.stack([discrimination.auc(truth, found[:, k], w) for k in range(found.shape[1])], axis=-1)
            classes.append(np.pad(aucs, ((0, 0), (0, most - aucs.shape[1])), constant_values=np.nan))
        return np.stack(classes, axis=1)

    return statistic


def _tables(
    replicates: Replicates, phrases: Mapping[str, Sequence[str]], bootstrap: Bootstrap
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The spread of each class with every phrase, and the mean of the spreads over classes."""
    classes = {}
    for c, (name, texts) in enumerate(phrases.items()):
        of_class = replicates.map(operator.itemgetter((..., c, slice(len(texts)))))
        spreads = of_class.map(spread)
        table: dict[str, Any] = {part: bootstrap.limits_of(spreads[i]).to_dict() for i, part in enumerate(SPREADS)}
        values = {text: bootstrap.limits_of(of_class[k]).to_dict() for k, text in enumerate(texts)}
        classes[name] = {**table, "per_paraphrase": values}

    def over_classes(values: np.ndarray) -> np.ndarray:
        spreads = [spread(values[..., c, : len(texts)]) for c, texts in enumerate(phrases.values())]
        return mean_of_finite(np.stack(spreads, axis=-1), axis=-1)

    overall = replicates.map(over_classes)
    return classes, {part: bootstrap.limits_of(overall[i]).to_dict() for i, part in enumerate(SPREADS)}


def _overall_entries(metric: str, overall: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of `metrics` in summary.json."""
    return {f"{metric} {part}": {"overall": interval} for part, interval in overall.items()}


def _localize(
    model: Model, source: Source, phrases: Mapping[str, Sequence[str]], settings: RobustnessSettings
) -> tuple[dict[str, Any], dict[str, Any], list[tuple]] | None:
    """The spread of IoU per class and over classes, and rows of per_sample.csv; a sample is one finding of one record.

    Classes without an annotated place are left out; None where no class has one.
    """
    places: dict[str, list[tuple[int, int]]] = {}
    for row in range(len(source)):
        for k, finding in enumerate(source[row].findings):
            name = find_class(finding.label, phrases)
            if name is not None:
                places.setdefault(name, []).append((row, k))
    placed = {name: texts for name, texts in phrases.items() if name in places}
    if not placed:
        return None
    most, bootstrap = max(map(len, placed.values())), settings.resampling
    tables, patients, rows = [], [], []
    for name, texts in placed.items():
        table = overlaps_of_phrases(model, source, places[name], texts, settings.compatible)
        tables.append(np.pad(table, ((0, 0), (0, most - len(texts))), constant_values=np.nan))
        for (row, number), values in zip(places[name], table, strict=True):
            record = source[row]
            patients.append(patient_of(record))
            sample = (f"{record.id}#{number}", patients[-1], name)
            rows += [(*sample, f"iou {k}", "", float(values[k]), "") for k in range(len(texts))]
    replicates = bootstrap_means(
        np.concatenate(tables),
        np.repeat(np.arange(len(tables)), [len(table) for table in tables]),
        len(tables),
        bootstrap.resamples,
        bootstrap.seed,
        clusters=bootstrap.clusters(patients),
        leave_out=bootstrap.leave_out,
    )
    return *_tables(replicates, placed, bootstrap), rows


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
            place = place_of(records[i], records[i].findings[places[start + i][1]], compatible)
            iou = score_sample(place, heatmap, options)["iou"]
            table[start + i, k] = mean_of_finite(iou, axis=0)
    return table
