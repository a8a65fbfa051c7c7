"""Contrastive losses of the three levels; `contrastive_losses` is the one entry point and picks the implementation."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from afloc_jax.errors import UsageError
from afloc_jax.levels import LEVELS, ImageLevels, LevelName, TextLevels
from afloc_jax.losses import definition, ring, sigmoid, tiled
from afloc_jax.losses.definition import Scale, contrast
from afloc_jax.losses.low_rank import reduce_rank
from afloc_jax.losses.settings import LossSettings
from afloc_jax.losses.twins import Twins, find_twins
from afloc_jax.losses.unit_contrast import grouped_unit_contrast, made_contrast
from afloc_jax.vectors import norm

__all__ = ["ContrastiveLosses", "LossSettings", "Scale", "contrast", "contrastive_losses"]


@flax.struct.dataclass
class ContrastiveLosses:
    """The loss of a batch and its parts; levels that are switched off are absent.

    `levels[name]` is unweighted: `image_to_text[name] + text_to_image[name]`. `total` is their weighted sum. The
    sigmoid objective has no direction: both have half of it.
    `twins` is the share of twins among the pairs of pairs that are contrasted, by kind of level ("report", "local"); it
    is empty where the texts come without hashes.
    """

    total: Float[Array, ""]
    levels: dict[LevelName, Float[Array, ""]]
    image_to_text: dict[LevelName, Float[Array, ""]]
    text_to_image: dict[LevelName, Float[Array, ""]]
    twins: dict[str, Float[Array, ""]]


class _Level(NamedTuple):
    """One level's two sides, of all pairs. The report level has one region and one unit."""

    regions: Float[Array, "B N F"]
    units: Float[Array, "B T D"]
    norms: Float[Array, "B T"]  # norms of the units before low_rank reduced their width
    counts: Int[Array, " B"]
    projection: Float[Array, "F D"] | None = None  # with low_rank the regions are `regions @ projection`


class _Negatives(NamedTuple):
    """The captions made from each report."""

    units: Float[Array, "B n T D"]
    counts: Int[Array, "B n"]
    false: Bool[Array, "B n S"]  # which sentences are hard negatives


def contrastive_losses(
    image: ImageLevels,
    text: TextLevels,
    settings: LossSettings,
    sample_weights: Float[Array, " B"] | None = None,
    mesh: Mesh | None = None,
    scales: Mapping[LevelName, Scale] | None = None,
) -> ContrastiveLosses:
    """Losses of B image-report pairs at every level whose weight is not 0.

    Pairs whose caption is empty (count 0), such as those that pad a batch, are left out of the contrast: the loss is
    that of the batch without them. Losses are float32, or float64 for float64 inputs. definition.py has the formulas.

    Args:
        image: the features of the images. With `settings.is_low_rank` they need `shallow_factors`, and the shallow
            map itself is not read.
        text: the embeddings of the reports, in the order of the images. Their `hashes` say which are twins; where
            `settings.twins` is not "negative" they are needed. With `settings.hard_negatives`, `made` is needed too.
        settings: `config.loss`.
        sample_weights: weights of the pairs in the cross entropies. (The release's `weight_matrix` has no effect.)
        mesh: the devices that the batch is split over; "ring" needs it.
        scales: with `settings.objective` "sigmoid", the learned scale of each level; by default where it starts.

    Raises:
        UsageError: the batch does not divide into contrast groups, or the settings do not suit the mesh or the levels.
    """
    implementation = _implementation(settings, mesh)
    group = settings.group_size(image.whole.shape[0])
    around: ring.Ring | None = None
    if implementation == "ring":
        assert mesh is not None  # or _implementation would have raised
        around = ring.Ring.of(mesh, len(image.whole), group)
    twins = _twins(text, group, settings, around or _by_device(mesh, len(image.whole), group))
    negatives = _negatives(text, settings, twins)

    image_to_text: dict[LevelName, Array] = {}
    text_to_image: dict[LevelName, Array] = {}
    for name in LEVELS:
        if not settings.weights.of(name):
            continue
        with jax.named_scope(name):  # compiled programs name it: `afloc compile` counts the loops of each level
            level = _level(name, image, text, settings)
            alike = None if settings.twins == "negative" else twins.pairs["report" if name == "report" else "local"]
            made = negatives if name == "sentence" else None
            if settings.objective == "sigmoid":
                scale = scales[name] if scales else Scale.initial(settings)
                loss = _sigmoid_loss(
                    name, level, around or group, settings, implementation, mesh, sample_weights, alike, made, scale
                )
                image_to_text[name] = text_to_image[name] = loss / 2
            elif settings.contrast_unit == "unit" and name != "report":
                if name == "sentence":
                    level = _without_empty_slots(level, text)
                by_image, by_text = _unit_losses(level, group, settings, implementation, sample_weights, alike)
                image_to_text[name] = by_image + _made_loss(level, made, settings, sample_weights)
                text_to_image[name] = by_text
            elif around:
                losses = _ring_losses(
                    name, level, around, settings, sample_weights, alike, _made_rows(level, made, settings)
                )
                image_to_text[name], text_to_image[name] = losses
            else:
                similarity = _similarity(name, level, group, settings, implementation, mesh)
                weights, alike, rows = (
                    None if array is None else _grouped(array, group)
                    for array in (sample_weights, alike, _made_rows(level, made, settings))
                )
                losses = contrast(similarity, weights, _grouped(level.counts > 0, group), alike, settings.twins, rows)
                image_to_text[name], text_to_image[name] = losses
    levels = {name: image_to_text[name] + text_to_image[name] for name in image_to_text}
    total = sum((settings.weights.of(name) * loss for name, loss in levels.items()), start=jnp.zeros(()))
    return ContrastiveLosses(total, levels, image_to_text, text_to_image, twins.shares)


def _negatives(text: TextLevels, settings: LossSettings, twins: Twins) -> _Negatives | None:
    """The hard negatives of the batch. A sentence is one if it was changed, was not cut, and is not stated."""
    if not settings.hard_negatives:
        return None
    if text.made is None or text.made.sentence_count.shape[1] != settings.hard_negatives or twins.stated is None:
        raise UsageError(
            f"loss.hard_negatives = {settings.hard_negatives}: needs as many captions made from each report, and the "
            "hashes of the texts (TextLevels.made and .hashes)"
        )
    there = jnp.arange(twins.stated.shape[2]) + 1 < text.made.sentence_count[..., None]
    false = there & text.made.hashes.any(axis=(-2, -1)) & ~twins.stated
    return _Negatives(text.made.sentences, text.made.sentence_count, false)


def _by_device(mesh: Mesh | None, batch: int, group: int) -> ring.Ring | None:
    """How the devices of `mesh` find the twins of their own pairs, where no ring computes the losses; None for one.

    Without it the compiler for TPUs keeps each sentence compared with each other: 4 GB a device for 4,096 reports.
    """
    if mesh is None or mesh.size == 1 or batch % mesh.size or not ring.fits_around(group, batch // mesh.size):
        return None
    return ring.Ring.of(mesh, batch, group)


def _twins(text: TextLevels, group: int, settings: LossSettings, around: ring.Ring | None) -> Twins:
    """The twins of the batch; no kind without hashes."""
    if text.hashes is None:
        if settings.twins != "negative":
            raise UsageError(f"loss.twins = {settings.twins!r}: needs the hashes of the texts (TextLevels.hashes)")
        return Twins({}, {})
    made = text.made.hashes if settings.hard_negatives and text.made is not None else None
    return find_twins(text.hashes, text.word_count > 0, group, around, made)


def _implementation(settings: LossSettings, mesh: Mesh | None) -> str:
    """The implementation to use on the devices of `mesh`; settles what "auto" stands for."""
    chosen, devices = settings.implementation, 1 if mesh is None else mesh.size
    if chosen == "auto":
        chosen = "ring" if devices > 1 and settings.contrast_unit == "caption" else "tiled"
    if chosen == "ring" and mesh is None:
        raise UsageError("loss.implementation = 'ring': needs the mesh that the batch is split over")
    if settings.kernel != "xla" and chosen == "tiled" and devices > 1:
        raise UsageError(
            f"loss.kernel = {settings.kernel!r}: on {devices} devices needs loss.implementation = 'ring' (or 'auto')"
        )
    return chosen


def _level(name: LevelName, image: ImageLevels, text: TextLevels, settings: LossSettings) -> _Level:
    if name == "report":
        regions, units, counts = _wide(image.whole)[:, None], _wide(text.report)[:, None], text.word_count
    elif name == "sentence":
        regions, units, counts = image.deep, text.sentences, text.sentence_count
    else:
        regions = image.deep if settings.word_map == "deep" else image.shallow
        units, counts = text.words, text.word_count
        if settings.is_low_rank:
            if image.shallow_factors is None:
                raise UsageError(
                    "loss.low_rank needs image levels with shallow_factors (AFLoc.__call__ with_factors=True)"
                )
            features, kernel = image.shallow_factors
            projection, units, norms = reduce_rank(kernel, units)
            return _Level(features.reshape(len(counts), -1, len(kernel)), units, norms, counts, projection)
    regions = regions.reshape(len(counts), -1, regions.shape[-1])
    return _Level(regions, units, norm(_wide(units)), counts)


def _without_empty_slots(level: _Level, text: TextLevels) -> _Level:
    """The sentence level without slots that no report can fill: there are as many as tokens, and each is compared."""
    if text.hashes is None:
        return level
    slots = text.hashes.sentences.shape[1] + 1  # with [CLS]
    return level._replace(units=level.units[:, :slots], norms=level.norms[:, :slots])


def _similarity(
    name: LevelName, level: _Level, group: int, settings: LossSettings, implementation: str, mesh: Mesh | None
) -> Array:
    """Similarities [G, K, K] of G contrast groups of K pairs."""
    regions, units, norms, counts = (_grouped(array, group) for array in level[:4])
    if name == "report":
        similarity = jax.vmap(definition.report_similarity, in_axes=(0, 0, None))
        return similarity(regions[:, :, 0], units[:, :, 0], settings.contrast_temperature)
    if implementation == "definition":
        return definition.grouped_similarity(regions, units, counts, settings)
    platform = None if mesh is None else mesh.devices.flat[0].platform
    return tiled.grouped_similarity(regions, units, counts, settings, norms, level.projection, platform=platform)


def _ring_losses(
    name: LevelName,
    level: _Level,
    around: ring.Ring,
    settings: LossSettings,
    weights: Array | None,
    twins: Array | None,
    made: Array | None,
) -> tuple[Array, Array]:
    if name == "report":
        sides = level.regions[:, 0], level.units[:, 0]
        return ring.report_losses(*sides, level.counts, around, settings, weights, twins)
    return ring.local_losses(*level[:4], around, settings, weights, level.projection, twins, made)


def _unit_losses(
    level: _Level,
    group: int,
    settings: LossSettings,
    implementation: str,
    weights: Array | None,
    twins: Array | None,
) -> tuple[Array, Array]:
    if implementation == "definition" and settings.unit_negatives == "both" and group == len(level.counts):
        relevance = definition.unit_relevance(_wide(level.regions), _wide(level.units), settings)
        masked = None if settings.twins == "negative" else twins
        return definition.multi_positive_contrast(
            relevance, level.counts, settings.contrast_temperature, weights, masked
        )
    regions, units, _, counts = (_grouped(array, group) for array in level[:4])
    weights, twins = (None if array is None else _grouped(array, group) for array in (weights, twins))
    return grouped_unit_contrast(regions, units, counts, settings, weights, twins)


def _made_loss(level: _Level, made: _Negatives | None, settings: LossSettings, weights: Array | None) -> Array:
    if made is None:
        return jnp.zeros(())
    sides = level.regions, level.units, level.counts, made.units
    return made_contrast(*sides, made.false, settings, weights)


def _sigmoid_loss(
    name: LevelName,
    level: _Level,
    among: ring.Ring | int,
    settings: LossSettings,
    implementation: str,
    mesh: Mesh | None,
    weights: Array | None,
    twins: Array | None,
    made: _Negatives | None,
    scale: Scale,
) -> Array:
    """The loss of a level with `objective` "sigmoid", over a ring or in groups of so many pairs."""
    if isinstance(among, ring.Ring):
        if name == "report":
            vectors = level.regions[:, 0], level.units[:, 0], level.counts
            loss = sigmoid.ring_report_loss(*vectors, scale, among, settings, weights, twins)
        else:
            loss = sigmoid.ring_loss(*level[:4], scale, among, settings, weights, level.projection, twins)
    else:
        counts = _grouped(level.counts, among)
        weights_of, twins_of = (None if array is None else _grouped(array, among) for array in (weights, twins))
        if implementation == "tiled" and name != "report":
            regions, units, norms = (_grouped(array, among) for array in level[:3])
            platform = None if mesh is None else mesh.devices.flat[0].platform
            loss = sigmoid.tiled_loss(
                regions, units, norms, counts, scale, settings, weights_of, twins_of, level.projection, None, platform
            )
        else:
            similarity = _similarity(name, level, among, settings, implementation, mesh)
            relevance = (
                similarity / settings.contrast_temperature
                if name == "report"
                else definition.mean_relevance(similarity, counts[:, None], settings)
            )
            loss = definition.sigmoid_contrast(relevance, scale, weights_of, counts > 0, twins_of, settings.twins)
    rows = _made_rows(level, made, settings)
    if made is None or rows is None:
        return loss
    share = definition.shares(level.counts > 0, weights, rows.dtype)
    return loss + definition.made_sigmoid(definition.mean_relevance(rows, made.counts, settings), scale, share)


def _made_rows(level: _Level, made: _Negatives | None, settings: LossSettings) -> Float[Array, "B n"] | None:
    """The similarities of the images with their made captions. They are B n of B B, so tiles would save little."""
    if made is None:
        return None
    similarity = jax.checkpoint(functools.partial(definition.made_similarity, settings=settings))
    rows: Array = similarity(level.regions, *made)
    return rows


def _grouped(array: Array, group: int) -> Array:
    """[B, ...] -> [G, K, ...]."""
    return array.reshape(-1, group, *array.shape[1:])


def _wide(array: Float[Array, "..."]) -> Float[Array, "..."]:
    """The array in at least float32: half-precision features are compared in full precision."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
