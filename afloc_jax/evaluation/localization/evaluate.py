"""Localisation scores of a model on a data set, with baselines on the same samples, and examples for the report.

location_prior   the mean mask of the category: how far the usual location of a finding leads without the image
prompt_prior     the mean mask of the prompt: how far the words lead that say where it is
shuffled_image   the model's map of another image for the same prompt: how much of a map comes from its image
class_name       the model's map for the name of the class alone: how much it owes to words about place and size
every_prompt     (generalised alone) boxes for every prompt: what judging presence is worth
untrained        the network before training: the effect of smoothing and architecture alone
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tqdm import tqdm

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.localization.baselines import LEAST
from afloc_jax.evaluation.localization.examples import write_examples
from afloc_jax.evaluation.localization.protocol import Samples
from afloc_jax.evaluation.localization.samples import Part, named_by_class, partners, parts_of, priors_of
from afloc_jax.evaluation.localization.scores import Scores
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.localization.summary import summarise, write_results
from afloc_jax.evaluation.results import evaluation_provenance
from afloc_jax.evaluation.sharing import is_own, own_items
from afloc_jax.evaluation.task import JsonObject, Models
from afloc_jax.evaluation.truth.heatmap_files import map_to_original
from afloc_jax.files import Path
from afloc_jax.inference.class_prompts import class_key
from afloc_jax.inference.model import Model
from afloc_jax.weights.calibration import PRESENT
from data_pipelines.reading import Records
from data_pipelines.reports import clean_prompt


def evaluate(
    model: Model,
    source: Records,
    out: str | Path,
    settings: LocalizationSettings | None = None,
    *,
    validation_source: Records | None = None,
    prior_source: Records | None = None,
    untrained: Model | None = None,
) -> JsonObject:
    """Scores a heat map for every finding; writes per_sample.csv, baselines.csv, summary.json, summary.md and examples.

    Args:
        model: the model to evaluate.
        source: the evaluation records.
        out: the folder of results.
        settings: protocol, prompts and intervals.
        validation_source: the records on which a tuned protocol chooses its thresholds.
        prior_source: the records whose masks make the priors (the training split). Without it, or if it has no masks,
            the priors of each sample are mean masks of the evaluation images of other patients.
        untrained: the model of the last baseline, by default `model.untrained()`.

    Returns:
        The content of summary.json.

    Raises:
        UsageError: a tuned protocol has no validation data.
        UserError: there is no annotated finding, or a map is not finite.
    """
    settings = settings or LocalizationSettings()
    if other_maps := settings.sharpen or settings.prune or settings.windows > 1:
        model = model.with_maps(sharpen=settings.sharpen or None, prune=settings.prune, windows=settings.windows)
    protocol, bootstrap = settings.scoring, settings.resampling
    if protocol.tuned and validation_source is None:
        raise UsageError(f"protocol {protocol.name} chooses its thresholds on validation data; give a validation split")
    sources = [source, validation_source] if protocol.tuned and validation_source is not None else [source]
    parts = parts_of(protocol, sources, settings.class_prompt)
    scored = parts[0]
    truths = scored.truths
    # This fails early if a sample has no patient.
    bootstrap.units([truth.patient for truth in truths], [truth.image for truth in truths])

    def scores_of(maps_of: Callable[[Part], Iterable[np.ndarray | None]], name: str, by_class: bool = False) -> Scores:
        samples = []
        for part in map(named_by_class, parts) if by_class else parts:
            maps = _placed(part, maps_of(part)) if protocol.original else maps_of(part)
            maps = tqdm(maps, total=len(part.truths), desc=name, unit="map", disable=None)
            samples.append(Samples(part.truths, maps))
        return protocol.score(*samples)

    def maps_of(
        system: Model, shuffled: bool = False, judged: bool = protocol.absent
    ) -> Callable[[Part], Iterable[np.ndarray | None]]:
        return lambda part: _heatmaps(system, part, protocol.compatible, shuffled, judged)

    if protocol.absent and model.calibration is None:
        raise UserError("the model is not calibrated; run: afloc calibrate MODEL --dataset NAME --data DIR")

    scores = scores_of(maps_of(model), settings.title or "model")
    priors = priors_of(prior_source, [truth for part in parts for truth in part.truths])
    rare = priors.rare(truths)
    made_from = {
        "location_prior": priors.about("the category"),
        "prompt_prior": priors.about("the same prompt") + _on_rare(rare, len(truths)),
        "shuffled_image": "the model's map of another image (of another patient, if any) for the prompt",
        "class_name": "the model's map for the name of the class, against all findings of the class",
        "every_prompt": "the model's boxes for every prompt, as if each were present",
    }
    baselines = {
        "location_prior": scores_of(lambda part: own_items(priors.maps(part.truths)), "location prior"),
        "prompt_prior": scores_of(lambda part: own_items(priors.maps(part.truths, by_prompt=True)), "prompt prior"),
    }
    if all(len(np.unique(part.rows)) > 1 for part in parts):
        baselines["shuffled_image"] = scores_of(maps_of(model, shuffled=True), "another image")
    if all(_has_words(truth.category, protocol.compatible) for part in parts for truth in part.truths):
        baselines["class_name"] = scores_of(maps_of(model), "class name", by_class=True)
    if protocol.absent:
        baselines["every_prompt"] = scores_of(maps_of(model, judged=False), "every prompt")
    random = untrained or model.untrained()
    if other_maps:
        own = model.heatmap_settings.sharpen
        random = random.with_maps(sharpen=own, prune=model.prune, windows=model.windows)
    baselines["untrained"] = scores_of(maps_of(random, judged=False), "untrained model")
    provenance = evaluation_provenance(model, source, scored.sha256)
    summary = summarise(
        scores,
        bootstrap,
        baselines,
        made_from={name: said for name, said in made_from.items() if name in baselines},
        rare_prompts={"prompt_prior": rare},
        about={"title": settings.title, "settings": settings.recorded(), "provenance": provenance},
    )

    def image_of(sample: int) -> np.ndarray:
        return np.asarray(source[int(scored.rows[sample])].image)

    def map_of(sample: int) -> np.ndarray:
        prompts = [truths[sample].label_text]
        return np.asarray(model.heatmaps_of_squares(image_of(sample)[None], prompts, compatible=protocol.compatible)[0])

    write_examples(Path(out), scores, image_of, map_of)
    write_results(out, scores, summary, baselines)
    return summary.to_json()


def evaluate_dataset(models: Models, out: Path, settings: LocalizationSettings) -> JsonObject:
    """`evaluate` for the data set of the settings. Raises UsageError and UserError as `evaluate` does."""
    source = settings.open(settings.split)
    return evaluate(
        models.trained,
        source,
        out,
        settings,
        validation_source=settings.open(settings.validation_split) if settings.scoring.tuned else None,
        prior_source=open_prior(settings),
        untrained=models.untrained,
    )


def open_prior(settings: LocalizationSettings) -> Records | None:
    """The split that makes the location prior; None if the data set has no such split."""
    if not settings.prior_split or settings.prior_split == settings.split:
        return None
    try:
        return settings.open(settings.prior_split)
    except UserError:
        return None  # evaluation data without a training split


def _placed(part: Part, maps: Iterable[np.ndarray | None]) -> Iterator[np.ndarray | None]:
    """The maps of the squares, one after the other, in pixels of the original images."""
    for truth, heatmap in zip(part.truths, maps, strict=True):
        yield None if heatmap is None else map_to_original(np.asarray(heatmap), truth)


def _on_rare(rare: int, samples: int) -> str:
    """The end of the description of the prompt prior; empty if every prompt is seen often enough."""
    why = f"whose prompt is seen fewer than {LEAST} times"
    return f"; that of the category for {rare:,} of {samples:,} samples, {why}" if rare else ""


def _has_words(category: str, compatible: bool) -> bool:
    """Whether the name of a class can be a prompt."""
    try:
        return bool(clean_prompt(class_key(category), compatible=compatible))
    except UserError:
        return False


def _heatmaps(
    model: Model, part: Part, compatible: bool, shuffled: bool = False, judged: bool = False
) -> Iterator[np.ndarray | None]:
    """The maps of all samples in order, or None for batches of other processes. `shuffled`: each of another image.

    `judged`: a prompt that the calibrated model judges absent, or does not judge, has a constant map.

    Each image is read and encoded once, as its samples are consecutive.
    """
    images = np.unique(part.rows)
    shown = partners(part.rows, part.about) if shuffled else {row: row for row in images.tolist()}
    for number, start in enumerate(range(0, len(images), model.batch_size)):
        chosen = images[start : start + model.batch_size]
        samples = np.flatnonzero((part.rows >= chosen[0]) & (part.rows <= chosen[-1]))
        if not is_own(number):
            yield from [None] * len(samples)
            continue
        squares = np.stack([part.source[shown[int(row)]].image for row in chosen])
        position = np.searchsorted(chosen, part.rows[samples])
        prompts = [part.truths[int(i)].label_text for i in samples]
        if not judged:
            yield from model.heatmaps_of_pairs(squares, position, prompts, compatible=compatible)
            continue
        for heatmap, present in zip(*model.maps_and_presence(squares, position, prompts), strict=True):
            yield heatmap if (present or 0) >= PRESENT else np.zeros_like(heatmap)
