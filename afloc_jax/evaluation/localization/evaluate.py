"""Score a model on a data set, beside two baselines on the same samples, and leave everything the report needs.

The baselines say what a score is worth: the mean training mask of the category (knows where findings usually are,
never looks at the image), and the same network without training (what smoothing and architecture give for free).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.localization.examples import write_examples
from afloc_jax.evaluation.localization.protocol import LocalizationProtocol, Samples
from afloc_jax.evaluation.localization.protocols import get_protocol
from afloc_jax.evaluation.localization.results import write_results
from afloc_jax.evaluation.localization.samples import prior_maps, truths_for
from afloc_jax.evaluation.localization.scores import Scores
from afloc_jax.evaluation.localization.settings import CLASS_PROMPT, LocalizationSettings
from afloc_jax.evaluation.localization.summary import add_baselines, summarise
from afloc_jax.evaluation.records import Source, evaluation_provenance
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.evaluation.task import JsonObject, Models
from afloc_jax.evaluation.truth.sample import Truth
from afloc_jax.inference.model import Model


@dataclass(frozen=True)
class Part:
    """A split as a protocol sees it: its samples, the record of each, and the hash of the data."""

    source: Source
    truths: list[Truth]
    rows: np.ndarray
    data_hash: str

    @property
    def classes(self) -> list[str]:
        """The categories of the samples."""
        return sorted({truth.category for truth in self.truths})


def evaluate(
    model: Model,
    source: Source,
    out: str | Path,
    protocol: str | LocalizationProtocol = "afloc",
    *,
    validation_source: Source | None = None,
    class_prompt: str = CLASS_PROMPT,
    prior_source: Source | None = None,
    untrained: Model | None = None,
    compatible: bool = False,
    bootstrap: Bootstrap | None = None,
    title: str = "",
    settings: JsonObject | None = None,
) -> JsonObject:
    """Heat maps for every finding of a data set, scored; per_sample.csv, summary.json, summary.md, examples.npz.

    Args:
        model: what is scored.
        source: random-access records with `id`, `image` [S, S] uint8 and `findings` (label, prompt, mask).
        out: folder of the results.
        protocol: itself or its name, see `protocols`.
        validation_source: records that a protocol chooses its thresholds on; used by "chexlocalize" alone.
        class_prompt: how that protocol asks for a class, "{finding}" replaced by its name.
        prior_source: records whose masks make the location prior (the training split). Without it, or when it has no
            masks, each sample meets the mean mask of the other evaluation images.
        untrained: the second baseline; `model.untrained()` when not given.
        compatible: prompts and scores as the published release has them, defects included.
        bootstrap: how intervals are made.
        title: name of the data set for readers.
        settings: how the data set was opened; recorded.

    Returns:
        What summary.json holds.

    Raises:
        UsageError: an unknown protocol. UserError: no annotated finding, or maps that are not finite.
    """
    chosen = get_protocol(protocol) if isinstance(protocol, str) else protocol
    parts = _parts(chosen, source, validation_source, class_prompt, compatible)
    truths, rows, data_hash = parts[0].truths, parts[0].rows, parts[0].data_hash
    bootstrap = bootstrap or Bootstrap()
    bootstrap.clusters([truth.patient for truth in truths])  # samples without a patient should not take hours to say so

    def scored(maps_of: Callable[[Part], Iterable[np.ndarray]], name: str) -> Scores:
        samples = []
        for part in parts:
            maps = tqdm(maps_of(part), total=len(part.truths), desc=name, unit="map", disable=None)
            samples.append(Samples(part.truths, maps))
        return chosen.score(samples[0], compatible, *samples[1:])

    def maps_of(system: Model) -> Callable[[Part], Iterable[np.ndarray]]:
        return lambda part: _heatmaps(system, part.source, part.rows, part.truths, compatible)

    scores = scored(maps_of(model), title or "model")
    make_prior, prior_from = prior_maps(prior_source, truths[0].mask.shape[0])
    baselines = {
        "location_prior": scored(lambda part: make_prior(part.truths), "location prior"),
        "untrained": scored(maps_of(untrained or model.untrained()), "untrained model"),
    }
    summary = add_baselines(summarise(scores, bootstrap), scores, baselines, bootstrap)
    summary["baselines"]["location_prior"]["from"] = prior_from
    summary["title"] = title
    summary["settings"] = settings or {}
    summary["provenance"] = evaluation_provenance(model, source, data_hash)

    def map_of(sample: int) -> np.ndarray:
        image = source[int(rows[sample])].image[None]
        return model.heatmaps_of_squares(image, [truths[sample].label_text], compatible=compatible)[0]

    write_examples(Path(out), scores, lambda sample: source[int(rows[sample])].image, map_of)
    write_results(out, scores, summary)
    return summary


def evaluate_dataset(models: Models, out: Path, settings: LocalizationSettings) -> JsonObject:
    """`evaluate` for a data set by its settings. Raises UsageError, UserError."""
    protocol = get_protocol(settings.protocol, settings.scored_thresholds, settings.margin)
    source = settings.open(settings.split)
    return evaluate(
        models.trained,
        source,
        out,
        protocol,
        validation_source=settings.open(settings.validation_split) if protocol.tuned else None,
        class_prompt=settings.class_prompt,
        prior_source=open_prior(settings),
        untrained=models.untrained,
        compatible=settings.compatible,
        bootstrap=settings.resampling,
        title=settings.title,
        settings=settings.recorded(),
    )


def open_prior(settings: LocalizationSettings) -> Source | None:
    """The split that makes the location prior; None when the data set has no such split."""
    if not settings.prior_split or settings.prior_split == settings.split:
        return None
    try:
        return settings.open(settings.prior_split)
    except UserError:
        return None  # evaluation data without a training part


def _parts(
    protocol: LocalizationProtocol,
    source: Source,
    validation_source: Source | None,
    class_prompt: str,
    compatible: bool,
) -> list[Part]:
    """The data and, for a protocol that is tuned, the validation data, asked for the same classes."""
    part = Part(source, *truths_for(protocol, source, (), class_prompt, compatible))
    if not protocol.tuned:
        return [part]
    if validation_source is None:
        raise UsageError(f"protocol {protocol.name} chooses its thresholds on validation data; give a validation split")
    known = Part(validation_source, *truths_for(protocol, validation_source, part.classes, class_prompt, compatible))
    return [Part(source, *truths_for(protocol, source, known.classes, class_prompt, compatible)), known]


def _heatmaps(
    model: Model, source: Source, rows: np.ndarray, truths: Sequence[Truth], compatible: bool
) -> Iterator[np.ndarray]:
    """The map of every sample in order; each image is read and encoded once (its samples are neighbours)."""
    images = np.unique(rows)
    for chosen in _batches(images.tolist(), model.batch_size):
        samples = np.flatnonzero((rows >= chosen[0]) & (rows <= chosen[-1]))
        squares = np.stack([source[row].image for row in chosen])
        position = np.searchsorted(chosen, rows[samples])
        prompts = [truths[int(i)].label_text for i in samples]
        yield from model.heatmaps_of_pairs(squares, position, prompts, compatible=compatible)


def _batches(items: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
