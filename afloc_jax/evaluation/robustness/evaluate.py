"""Prompt robustness: the spread of a model's scores over several phrases for the same class.

Two metrics are computed for every class with paraphrases: the AUC of its presence, with the paraphrase against
"no <class>.", and the IoU of its heat maps (mean over samples and thresholds, scored as in localisation). The spread is
small if the scores do not depend on the wording.
"""

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm

from afloc_jax.errors import UserError
from afloc_jax.evaluation.labelled import LabelledRecords, embed_records, read_labelled
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.scores import score_sample
from afloc_jax.evaluation.results import PER_SAMPLE_COLUMNS, Overall, ScoreRow
from afloc_jax.evaluation.robustness.metrics import SPREADS
from afloc_jax.evaluation.robustness.result import Robustness, Spread
from afloc_jax.evaluation.robustness.settings import RobustnessSettings
from afloc_jax.evaluation.sharing import gathered, is_own
from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Replicates, Statistic, Units
from afloc_jax.evaluation.statistics.coverage import few_positives
from afloc_jax.evaluation.statistics.interval import Interval, mean_of_finite
from afloc_jax.evaluation.statistics.jackknife import Weights
from afloc_jax.evaluation.task import JsonObject, Models
from afloc_jax.evaluation.truth.sample import Drawing
from afloc_jax.inference.class_prompts import PromptSet, find_class, read_prompt_set
from afloc_jax.inference.model import Model
from afloc_jax.inference.zero_shot import class_scores, contrast_probabilities
from data_pipelines.reading import Records

PARAPHRASES = Path(__file__).with_name("paraphrases.json")

Phrases = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Measured:
    """One metric: its spread in each class, the means of spreads over classes, rows of per_sample.csv, its units.

    `positives` has the number of positive units of each class.
    """

    classes: Mapping[str, Spread]
    overall: Mapping[str, Interval]
    rows: Sequence[ScoreRow]
    units: Units
    positives: Mapping[str, int]


def evaluate_dataset(models: Models, out: str | os.PathLike[str], settings: RobustnessSettings) -> JsonObject:
    """`evaluate_robustness` of the data set that the settings name. Raises UsageError, UserError."""
    source = settings.open(settings.split)
    return evaluate_robustness(models.trained, source, out, settings).to_json()


def evaluate_robustness(
    model: Model, source: Records, out: str | os.PathLike[str], settings: RobustnessSettings | None = None
) -> Robustness:
    """Scores every paraphrase; writes per_sample.csv, summary.json and summary.md to `out`.

    Every phrase of the prompt set is a separate prompt. Classes with one phrase are left out and named. With a table of
    labels, or without masks and boxes, there is no IoU. Raises UserError if no class with paraphrases occurs.
    """
    settings = settings or RobustnessSettings()
    given = settings.prompt_set
    prompt_set = given if given and given.classes else read_prompt_set(PARAPHRASES)
    records = read_labelled(source, settings.classes, settings.labels, settings.unlisted)
    phrases = {name: prompt_set.prompts(name)[0] for name in records.classes}
    phrases = {name: texts for name, texts in phrases.items() if len(texts) > 1}
    if not phrases:
        raise UserError(f"no class of this data set has several phrases; the classes are {', '.join(records.classes)}")
    measured: dict[str, Measured] = {}
    told_apart = {name: texts for name, texts in phrases.items() if name in records.lacked()}
    if told_apart:
        measured["auc"] = _classify(model, source, records, told_apart, prompt_set, settings)
    places = {} if settings.labels else _places(source, phrases)
    if places:
        placed = {name: texts for name, texts in phrases.items() if name in places}
        measured["iou"] = _localize(model, source, places, placed, settings)
    if not measured:
        records.contrasted()  # its error says why there is no AUC
        raise UserError(
            "no class of this data set has positives and negatives, and none has masks or boxes: nothing to evaluate"
        )
    # Samples of the AUC are images; those of the IoU are findings, of which an image may have several.
    *_, units = sorted((values.units for values in measured.values()), key=lambda units: units.name != "sample")
    result = Robustness(
        settings.account(model, source, records.sha256, units),
        few_positives=few_positives({name: n for values in measured.values() for name, n in values.positives.items()}),
        n=len(records),
        paraphrases=phrases,
        left_out_classes={
            **{name: "no AUC: no record is known to lack it" for name in phrases if name not in told_apart},
            **{name: "has no paraphrases" for name in records.classes if name not in phrases},
        },
        spread={metric: values.classes for metric, values in measured.items()},
        metrics={
            f"{metric} {part}": Overall(interval)
            for metric, values in measured.items()
            for part, interval in values.overall.items()
        },
    )
    result.write(out, PER_SAMPLE_COLUMNS, [row for values in measured.values() for row in values.rows])
    return result


# Replicates of all classes are [C, K] from the same draws. K is the largest number of phrases of a class; missing ones
# are NaN.


def spread(values: Float[np.ndarray, "*R K"]) -> Float[np.ndarray, "*R 5"]:
    """The `SPREADS` over the last axis. The standard deviation has K - 1 in its denominator."""
    lowest, highest = values.min(axis=-1), values.max(axis=-1)
    parts = [values.mean(axis=-1), values.std(axis=-1, ddof=1), lowest, highest, highest - lowest]
    return np.stack(parts, axis=-1)


def _measured(
    replicates: Replicates,
    phrases: Phrases,
    bootstrap: Bootstrap,
    rows: Sequence[ScoreRow],
    units: Units,
    positive: Sequence[Bool[np.ndarray, " n"]],
    of_auc: bool = False,
) -> Measured:
    """The spread of each class with the value of every phrase, and the means of spreads over classes."""
    classes = {}
    for c, (name, texts) in enumerate(phrases.items()):
        of_class = replicates.map(operator.itemgetter((..., c, slice(len(texts)))))
        values = {text: bootstrap.limits_of(of_class[k], of_auc) for k, text in enumerate(texts)}
        classes[name] = Spread(**_intervals(of_class.map(spread), bootstrap, of_auc), per_paraphrase=values)

    def over_classes(values: np.ndarray) -> np.ndarray:
        spreads = [spread(values[..., c, : len(texts)]) for c, texts in enumerate(phrases.values())]
        return mean_of_finite(np.stack(spreads, axis=-1), axis=-1)

    positives = {name: units.number(chosen) for name, chosen in zip(phrases, positive, strict=True)}
    return Measured(classes, _intervals(replicates.map(over_classes), bootstrap, of_auc), rows, units, positives)


def _intervals(spreads: Replicates, bootstrap: Bootstrap, of_auc: bool) -> dict[str, Interval]:
    return {part: bootstrap.limits_of(spreads[i], of_auc) for i, part in enumerate(SPREADS)}


def _padded(values: Float[np.ndarray, "*R k"], width: int) -> Float[np.ndarray, "*R K"]:
    """The values padded by columns of NaN to the largest number of phrases."""
    return np.concatenate([values, np.full((*values.shape[:-1], width - values.shape[-1]), np.nan)], axis=-1)


# AUC: a sample is one record


def _classify(
    model: Model,
    source: Records,
    records: LabelledRecords,
    phrases: Phrases,
    prompt_set: PromptSet,
    settings: RobustnessSettings,
) -> Measured:
    images = embed_records(model, source, records.rows, settings.framed)
    bootstrap = settings.resampling
    units = bootstrap.units(records.patients, records.ids)
    scored: list[tuple[np.ndarray, np.ndarray]] = []
    rows: list[ScoreRow] = []
    for name, texts in phrases.items():
        labels = records.labels[:, records.classes.index(name)]
        known = np.isfinite(labels)
        negative = prompt_set.prompts(name)[1]
        probabilities = paraphrase_probabilities(model, images[known], texts, negative, settings.compatible)
        scored.append((labels, probabilities))
        for i, values in zip(np.flatnonzero(known), probabilities, strict=True):
            rows += _rows((records.ids[i], records.patients[i], name), "probability", values)
    replicates = bootstrap.resample(_aucs(scored), len(records), units.clusters)
    return _measured(replicates, phrases, bootstrap, rows, units, [labels == 1 for labels, _ in scored], of_auc=True)


def paraphrase_probabilities(
    model: Model, images: Float[np.ndarray, "n D"], texts: Sequence[str], negative: Sequence[str], compatible: bool
) -> Float[np.ndarray, "n K"]:
    """The probability of a class in each image, for each phrase against the mean of the negative phrases."""
    reports = np.asarray(model.embed_texts([*texts, *negative], compatible=compatible).report)
    present = class_scores(images, [report[None] for report in reports[: len(texts)]])
    absent = class_scores(images, [reports[len(texts) :]])
    return contrast_probabilities(present, np.broadcast_to(absent, present.shape))


def _aucs(scored: Sequence[tuple[Float[np.ndarray, " n"], Float[np.ndarray, "_ _"]]]) -> Statistic:
    """The statistic of the AUC of every phrase, from the labels and the probabilities of each class."""
    most = max(probabilities.shape[1] for _, probabilities in scored)

    def statistic(weights: Weights) -> np.ndarray:
        classes = []
        for labels, probabilities in scored:
            known = np.isfinite(labels)
            truth, w = labels[known] == 1, weights[:, known]
            aucs = [discrimination.auc(truth, of_phrase, w) for of_phrase in probabilities.T]
            classes.append(_padded(np.stack(aucs, axis=-1), most))
        return np.stack(classes, axis=1)

    return statistic


# IoU: a sample is one finding of one record


def _places(source: Records, phrases: Phrases) -> dict[str, list[tuple[int, int]]]:
    """The annotated findings of each class: the row of the record, and the index of the finding in it."""
    places: dict[str, list[tuple[int, int]]] = {}
    for row in range(len(source)):
        for number, finding in enumerate(source[row].findings):
            name = find_class(finding.label, phrases)
            if name is not None:
                places.setdefault(name, []).append((row, number))
    return places


def _localize(
    model: Model,
    source: Records,
    places: Mapping[str, Sequence[tuple[int, int]]],
    phrases: Phrases,
    settings: RobustnessSettings,
) -> Measured:
    bootstrap, most = settings.resampling, max(map(len, phrases.values()))
    tables: list[np.ndarray] = []
    rows: list[ScoreRow] = []
    images: list[str] = []
    patients: list[str] = []
    for name, texts in phrases.items():
        table = overlaps_of_phrases(model, source, places[name], texts, settings.compatible)
        tables.append(_padded(table, most))
        for (row, number), values in zip(places[name], table, strict=True):
            record = source[row]
            images.append(record.id)
            patients.append(record.patient)
            rows += _rows((f"{record.id}#{number}", patients[-1], name), "iou", values)
    category = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    units = bootstrap.units(patients, images)
    replicates = bootstrap.means(np.concatenate(tables), category, len(tables), units.clusters)
    return _measured(replicates, phrases, bootstrap, rows, units, [category == c for c in range(len(tables))])


def overlaps_of_phrases(
    model: Model, source: Records, places: Sequence[tuple[int, int]], texts: Sequence[str], compatible: bool
) -> Float[np.ndarray, "n K"]:
    """The IoU (mean over thresholds) of findings, each with every phrase as prompt. `places`: see `_places`."""
    options, drawing = ProtocolOptions(compatible=compatible), Drawing(compatible)
    tables: list[np.ndarray | None] = []
    starts = range(0, len(places), model.batch_size)
    for number, start in enumerate(tqdm(starts, desc=texts[0], unit="batch", disable=None)):
        if not is_own(number):
            tables.append(None)
            continue
        records = [source[row] for row, _ in places[start : start + model.batch_size]]
        squares = np.stack([record.image for record in records])
        of_text, of_image = np.divmod(np.arange(len(texts) * len(records)), len(records))
        prompts = [texts[k] for k in of_text]
        table = np.full((len(records), len(texts)), np.nan)
        maps = model.heatmaps_of_pairs(squares, of_image, prompts, compatible=compatible)
        for heatmap, i, k in zip(maps, of_image, of_text, strict=True):
            place = drawing.of_finding(records[i], records[i].findings[places[start + i][1]])
            iou = score_sample(place, heatmap, options)["iou"]
            table[i, k] = mean_of_finite(iou, axis=0)
        tables.append(table)
    return np.concatenate([np.empty((0, len(texts))), *gathered(tables)])


def _rows(sample: tuple[str, str, str], metric: str, values: Float[np.ndarray, " K"]) -> list[ScoreRow]:
    """The rows of per_sample.csv: the value of every phrase."""
    return [(*sample, f"{metric} {k}", "", float(value), "") for k, value in enumerate(values)]
