"""Contrastive losses of the three levels; `contrastive_losses` is the one entry point and picks the implementation."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from afloc_jax.errors import UsageError
from afloc_jax.levels import LEVELS, ImageLevels, LevelName, TextLevels
from afloc_jax.losses import definition, tiled
from afloc_jax.losses.contrast import contrast
from afloc_jax.losses.low_rank import reduce_rank
from afloc_jax.losses.settings import LocalSettings, check_weights, group_size
from afloc_jax.losses.unit_contrast import grouped_unit_contrast

__all__ = ["ContrastiveLosses", "LocalSettings", "contrast", "contrastive_losses"]

IMPLEMENTATIONS = {"definition": definition.grouped_similarity, "tiled": tiled.grouped_similarity}


@flax.struct.dataclass
class ContrastiveLosses:
    """The loss of a batch and its parts; levels that are switched off are absent.

    `levels[name]` is unweighted: `image_to_text[name] + text_to_image[name]`. `total` is their weighted sum.
    """

    total: Float[Array, ""]
    levels: dict[LevelName, Float[Array, ""]]
    image_to_text: dict[LevelName, Float[Array, ""]]
    text_to_image: dict[LevelName, Float[Array, ""]]


def contrastive_losses(
    image: ImageLevels,
    text: TextLevels,
    loss_config: Mapping[str, Any],
    sample_weights: Float[Array, " B"] | None = None,
) -> ContrastiveLosses:
    """Losses of B image-report pairs at every level whose weight is not 0.

    `loss_config` is `config.loss` of configs/afloc.py: level weights, temperatures, `contrast_group` (pairs contrasted
    with each other; 0 for the whole batch), `implementation` ("tiled" or "definition", same numbers), `low_rank` (the
    word level from `image.shallow_factors`, same numbers again), and the options of `LocalSettings`. `sample_weights`
    are the published `weight_matrix` of the cross entropies.

    Pairs whose caption is empty (count 0), such as those that pad a batch, are left out of the contrast: the loss is
    that of the batch without them. Losses are float32, or float64 for float64 inputs. Raises UsageError.
    """
    check_weights(loss_config["weights"])
    settings = LocalSettings.from_config(loss_config)
    implementation = loss_config.get("implementation", "tiled")
    if implementation not in IMPLEMENTATIONS:
        raise UsageError(f"loss.implementation is {implementation!r}; choose one of {', '.join(IMPLEMENTATIONS)}")
    factors, image = image.shallow_factors, dataclasses.replace(image, shallow_factors=None)
    if not loss_config.get("low_rank", False):
        factors = None
    elif implementation != "tiled":
        raise UsageError(f"loss.low_rank needs loss.implementation = 'tiled', not {implementation!r}")
    elif factors is None:
        raise UsageError("loss.low_rank needs image levels with shallow_factors (AFLoc.__call__ with_factors=True)")
    batch = image.whole.shape[0]
    group = group_size(int(loss_config.get("contrast_group", 0)), batch)
    grouped_image, grouped_text = jax.tree.map(
        lambda leaf: leaf.reshape(batch // group, group, *leaf.shape[1:]), (image, text)
    )
    weights = None if sample_weights is None else sample_weights.reshape(-1, group)

    image_to_text: dict[LevelName, Array] = {}
    text_to_image: dict[LevelName, Array] = {}
    for level in LEVELS:
        if not loss_config["weights"].get(level, 0):
            continue
        if settings.contrast_unit == "unit" and level != "report":
            image_to_text[level] = jnp.zeros(())
            text_to_image[level] = grouped_unit_contrast(*_local(level, grouped_image, grouped_text), settings, weights)
        else:
            if level == "word" and factors is not None:
                similarity, counts = _low_rank_similarity(factors, grouped_text, settings)
            else:
                similarity, counts = _similarity(level, grouped_image, grouped_text, settings, implementation)
            image_to_text[level], text_to_image[level] = contrast(similarity, weights, counts > 0)
    levels = {level: image_to_text[level] + text_to_image[level] for level in image_to_text}
    total = sum((loss_config["weights"][level] * loss for level, loss in levels.items()), start=jnp.zeros(()))
    return ContrastiveLosses(total=total, levels=levels, image_to_text=image_to_text, text_to_image=text_to_image)


def _similarity(
    level: LevelName, image: ImageLevels, text: TextLevels, settings: LocalSettings, implementation: str
) -> tuple[Array, Array]:
    """`(similarities [G, B, B], unit counts [G, B])` of one level, for G contrast groups of B pairs."""
    if level == "report":
        similarity = jax.vmap(definition.report_similarity, in_axes=(0, 0, None))
        return similarity(_wide(image.whole), _wide(text.report), settings.contrast_temperature), text.word_count
    regions, units, counts = _local(level, image, text)
    return IMPLEMENTATIONS[implementation](regions, units, counts, settings), counts


def _low_rank_similarity(
    factors: tuple[Array, Array], text: TextLevels, settings: LocalSettings
) -> tuple[Array, Array]:
    """`_similarity` of the word level from the two factors of the shallow map."""
    (features, kernel), counts = factors, text.word_count
    features = features.reshape(*counts.shape, -1, features.shape[-1])  # [G, B, N, F]
    regions, units, unit_norms = reduce_rank(features, kernel, text.words)
    return tiled.grouped_similarity(regions, units, counts, settings, unit_norms), counts


def _local(level: LevelName, image: ImageLevels, text: TextLevels) -> tuple[Array, Array, Array]:
    """`(regions [G, B, N, D], units [G, B, T, D], unit counts [G, B])` of the word or sentence level."""
    maps, units, counts = (
        (image.deep, text.sentences, text.sentence_count)
        if level == "sentence"
        else (image.shallow, text.words, text.word_count)
    )
    return maps.reshape(*maps.shape[:2], -1, maps.shape[-1]), units, counts


def _wide(array: Float[Array, "..."]) -> Float[Array, "..."]:
    """At least float32: half-precision features are compared in full precision."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
