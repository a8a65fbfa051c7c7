"""Localisation scores of a model on a data set, with two baselines on the same samples, and examples for the report.

The location prior, the mean training mask of a category, shows how far the usual location of a finding leads without
the image. The untrained network shows the effect of smoothing and architecture alone.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tqdm import tqdm

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.localization.examples import write_examples
from afloc_jax.evaluation.localization.protocol import Samples
from afloc_jax.evaluation.localization.samples import Part, parts_of, prior_maps
from afloc_jax.evaluation.localization.scores import Scores
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.localization.summary import summarise, write_results
from afloc_jax.evaluation.results import evaluation_provenance
from afloc_jax.evaluation.sharing import is_own, own_items
from afloc_jax.evaluation.task import JsonObject, Models
from afloc_jax.evaluation.truth.heatmap_files import map_to_original
from afloc_jax.files import Path
from afloc_jax.inference.model import Model
from data_pipelines.reading import Records


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
    """Scores a heat map for every finding; writes per_sample.csv, summary.json, summary.md and the examples.

    Args:
        model: the model to evaluate.
        source: the evaluation records.
        out: the folder of results.
        settings: protocol, prompts and intervals.
        validation_source: the records on which a tuned protocol chooses its thresholds.
        prior_source: the records whose masks make the location prior (the training split). Without it, or if it has no
            masks, the prior of each sample is the mean mask of the other evaluation images.
        untrained: the second baseline, by default `model.untrained()`.

    Returns:
        The content of summary.json.

    Raises:
        UsageError: a tuned protocol has no validation data.
        UserError: there is no annotated finding, or a map is not finite.
    """
    settings = settings or LocalizationSettings()
    protocol, bootstrap = settings.scoring, settings.resampling
    if protocol.tuned and validation_source is None:
        raise UsageError(f"protocol {protocol.name} chooses its thresholds on validation data; give a validation split")
    sources = [source, validation_source] if protocol.tuned and validation_source is not None else [source]
    parts = parts_of(protocol, sources, settings.class_prompt)
    scored = parts[0]
    truths = scored.truths
    # This fails early if a sample has no patient.
    bootstrap.units([truth.patient for truth in truths], [truth.image for truth in truths])

    def scores_of(maps_of: Callable[[Part], Iterable[np.ndarray | None]], name: str) -> Scores:
        samples = []
        for part in parts:
            maps = _placed(part, maps_of(part)) if protocol.original else maps_of(part)
            maps = tqdm(maps, total=len(part.truths), desc=name, unit="map", disable=None)
            samples.append(Samples(part.truths, maps))
        return protocol.score(*samples)

    def maps_of(system: Model) -> Callable[[Part], Iterable[np.ndarray | None]]:
        return lambda part: _heatmaps(system, part, protocol.compatible)

    scores = scores_of(maps_of(model), settings.title or "model")
    make_prior, prior_from = prior_maps(prior_source, truths[0].mask.shape[0])
    baselines = {
        "location_prior": scores_of(lambda part: own_items(make_prior(part.truths)), "location prior"),
        "untrained": scores_of(maps_of(untrained or model.untrained()), "untrained model"),
    }
    provenance = evaluation_provenance(model, source, scored.sha256)
    summary = summarise(
        scores,
        bootstrap,
        baselines,
        made_from={"location_prior": prior_from},
        about={"title": settings.title, "settings": settings.recorded(), "provenance": provenance},
    )

    def image_of(sample: int) -> np.ndarray:
        return np.asarray(source[int(scored.rows[sample])].image)

    def map_of(sample: int) -> np.ndarray:
        prompts = [truths[sample].label_text]
        return np.asarray(model.heatmaps_of_squares(image_of(sample)[None], prompts, compatible=protocol.compatible)[0])

    write_examples(Path(out), scores, image_of, map_of)
    write_results(out, scores, summary)
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


def _heatmaps(model: Model, part: Part, compatible: bool) -> Iterator[np.ndarray | None]:
    """The maps of all samples in order, or None for batches of other processes.

    Each image is read and encoded once, as its samples are consecutive.
    """
    images = np.unique(part.rows)
    for number, start in enumerate(range(0, len(images), model.batch_size)):
        chosen = images[start : start + model.batch_size]
        samples = np.flatnonzero((part.rows >= chosen[0]) & (part.rows <= chosen[-1]))
        if not is_own(number):
            yield from [None] * len(samples)
            continue
        squares = np.stack([part.source[int(row)].image for row in chosen])
        position = np.searchsorted(chosen, part.rows[samples])
        prompts = [part.truths[int(i)].label_text for i in samples]
        yield from model.heatmaps_of_pairs(squares, position, prompts, compatible=compatible)
