"""Contrastive losses of the three levels; `contrastive_losses` is the one entry point and picks the implementation."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from afloc_jax.errors import UsageError
from afloc_jax.levels import LEVELS, ImageLevels, LevelName, TextLevels
from afloc_jax.losses import definition, ring, tiled
from afloc_jax.losses.contrast import contrast
from afloc_jax.losses.low_rank import reduce_rank
from afloc_jax.losses.settings import LocalSettings, check_weights, group_size
from afloc_jax.losses.unit_contrast import grouped_unit_contrast
from afloc_jax.vectors import norm

__all__ = ["ContrastiveLosses", "LocalSettings", "contrast", "contrastive_losses"]

IMPLEMENTATIONS = ("auto", "definition", "tiled", "ring")


@flax.struct.dataclass
class ContrastiveLosses:
    """The loss of a batch and its parts; levels that are switched off are absent.

    `levels[name]` is unweighted: `image_to_text[name] + text_to_image[name]`. `total` is their weighted sum.
    """

    total: Float[Array, ""]
    levels: dict[LevelName, Float[Array, ""]]
    image_to_text: dict[LevelName, Float[Array, ""]]
    text_to_image: dict[LevelName, Float[Array, ""]]


class _Level(NamedTuple):
    """One level's two sides, of all pairs. The report level has one region and one unit."""

    regions: Float[Array, "B N F"]
    units: Float[Array, "B T D"]
    norms: Float[Array, "B T"]  # of the units, which with low_rank are not those of `units` themselves
    counts: Int[Array, " B"]
    projection: Float[Array, "F D"] | None = None  # of low_rank: the regions are `regions @ projection`


def contrastive_losses(
    image: ImageLevels,
    text: TextLevels,
    loss_config: Mapping[str, Any],
    sample_weights: Float[Array, " B"] | None = None,
    mesh: Mesh | None = None,
) -> ContrastiveLosses:
    """Losses of B image-report pairs at every level whose weight is not 0.

    `loss_config` is `config.loss` of configs/afloc.py: level weights, temperatures, `contrast_group` (pairs contrasted
    with each other; 0 for the whole batch), `implementation` (same numbers from each: "definition"; "tiled"; "ring",
    over the devices of `mesh`; "auto", a ring where there are several devices), `low_rank` (the word level from
    `image.shallow_factors`, same numbers again), and the options of `LocalSettings`. `sample_weights` are the published
    `weight_matrix` of the cross entropies.

    Pairs whose caption is empty (count 0), such as those that pad a batch, are left out of the contrast: the loss is
    that of the batch without them. Losses are float32, or float64 for float64 inputs. Raises UsageError.
    """
    check_weights(loss_config["weights"])
    settings = LocalSettings.from_config(loss_config)
    implementation = _implementation(loss_config, settings, mesh)
    group = group_size(int(loss_config.get("contrast_group", 0)), image.whole.shape[0])

    image_to_text: dict[LevelName, Array] = {}
    text_to_image: dict[LevelName, Array] = {}
    for name in LEVELS:
        if not loss_config["weights"].get(name, 0):
            continue
        level = _level(name, image, text, loss_config.get("low_rank", False))
        if settings.contrast_unit == "unit" and name != "report":
            image_to_text[name] = jnp.zeros(())
            text_to_image[name] = _unit_loss(level, group, settings, sample_weights)
        elif implementation == "ring":
            assert mesh is not None  # or _implementation would have raised
            losses = _ring_losses(name, level, ring.Ring.of(mesh, len(level.counts), group), settings, sample_weights)
            image_to_text[name], text_to_image[name] = losses
        else:
            similarity = _similarity(name, level, group, settings, implementation)
            weights = None if sample_weights is None else _grouped(sample_weights, group)
            losses = contrast(similarity, weights, _grouped(level.counts > 0, group))
            image_to_text[name], text_to_image[name] = losses
    levels = {name: image_to_text[name] + text_to_image[name] for name in image_to_text}
    total = sum((loss_config["weights"][name] * loss for name, loss in levels.items()), start=jnp.zeros(()))
    return ContrastiveLosses(total=total, levels=levels, image_to_text=image_to_text, text_to_image=text_to_image)


def _implementation(loss_config: Mapping[str, Any], settings: LocalSettings, mesh: Mesh | None) -> str:
    chosen = loss_config.get("implementation", "auto")
    if chosen not in IMPLEMENTATIONS:
        raise UsageError(f"loss.implementation is {chosen!r}; choose one of {', '.join(IMPLEMENTATIONS)}")
    by_unit = settings.contrast_unit == "unit"
    if chosen == "auto":
        chosen = "ring" if mesh is not None and mesh.size > 1 and not by_unit else "tiled"
    if chosen == "ring" and by_unit:
        raise UsageError("loss.implementation = 'ring' needs loss.contrast_unit = 'caption'; set it to 'tiled'")
    if chosen == "ring" and mesh is None:
        raise UsageError("loss.implementation = 'ring' needs the mesh that the batch is split over")
    if loss_config.get("low_rank", False) and chosen == "definition":
        raise UsageError("loss.low_rank is a faster way to the numbers of loss.implementation = 'definition'")
    if settings.kernel == "pallas" and chosen == "definition":
        raise UsageError("loss.kernel = 'pallas' needs loss.implementation = 'tiled' or 'ring', not 'definition'")
    if settings.kernel == "pallas" and chosen == "tiled" and mesh is not None and mesh.size > 1:
        raise UsageError(
            f"loss.kernel = 'pallas' on {mesh.size} devices needs loss.implementation = 'ring' (or 'auto')"
        )
    return chosen


def _level(name: LevelName, image: ImageLevels, text: TextLevels, low_rank: bool) -> _Level:
    if name == "report":
        regions, units, counts = _wide(image.whole)[:, None], _wide(text.report)[:, None], text.word_count
    elif name == "sentence":
        regions, units, counts = image.deep, text.sentences, text.sentence_count
    else:
        regions, units, counts = image.shallow, text.words, text.word_count
        if low_rank:
            if image.shallow_factors is None:
                raise UsageError(
                    "loss.low_rank needs image levels with shallow_factors (AFLoc.__call__ with_factors=True)"
                )
            features, kernel = image.shallow_factors
            projection, units, norms = reduce_rank(kernel, units)
            return _Level(features.reshape(len(counts), -1, len(kernel)), units, norms, counts, projection)
    regions = regions.reshape(len(counts), -1, regions.shape[-1])
    return _Level(regions, units, norm(_wide(units)), counts)


def _similarity(name: LevelName, level: _Level, group: int, settings: LocalSettings, implementation: str) -> Array:
    """Similarities [G, K, K] of G contrast groups of K pairs."""
    regions, units, norms, counts = (_grouped(array, group) for array in level[:4])
    if name == "report":
        similarity = jax.vmap(definition.report_similarity, in_axes=(0, 0, None))
        return similarity(regions[:, :, 0], units[:, :, 0], settings.contrast_temperature)
    if implementation == "definition":
        return definition.grouped_similarity(regions, units, counts, settings)
    return tiled.grouped_similarity(regions, units, counts, settings, norms, level.projection)


def _ring_losses(
    name: LevelName, level: _Level, around: ring.Ring, settings: LocalSettings, weights: Array | None
) -> tuple[Array, Array]:
    if name == "report":
        return ring.report_losses(level.regions[:, 0], level.units[:, 0], level.counts, around, settings, weights)
    return ring.local_losses(*level[:4], around, settings, weights, level.projection)


def _unit_loss(level: _Level, group: int, settings: LocalSettings, weights: Array | None) -> Array:
    regions, units, _, counts = (_grouped(array, group) for array in level[:4])
    weights = None if weights is None else _grouped(weights, group)
    return grouped_unit_contrast(regions, units, counts, settings, weights)


def _grouped(array: Array, group: int) -> Array:
    """[B, ...] -> [G, K, ...]."""
    return array.reshape(-1, group, *array.shape[1:])


def _wide(array: Float[Array, "..."]) -> Float[Array, "..."]:
    """At least float32: half-precision features are compared in full precision."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
