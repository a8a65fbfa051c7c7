"""The local similarity of definition.py and its gradient, in tiles: memory for one tile instead of B x B x T x N.

A tile is one image against one bin of packed captions. packing.py makes the bins; region_pooling.py computes a tile, or
kernels/ where `settings.kernel` is "pallas". Where the batch is sharded, a tile has one image per device, so that every
device works on images of its own. With r_t the relevance of unit t of caption i to image b,

    S[b, i] = temp3 log sum_t exp(temp2 r_t)
    dr_t = dS[b, i] temp3 temp2 exp(temp2 r_t) / sum_t exp(temp2 r_t)

The forward pass keeps S [B, B] and nothing of the tiles. The backward pass (a custom VJP) receives dS, computes r of
each tile again, and pulls dr back to regions, units and norms. The outer loop runs over images, the inner one over the
bins in use. The gradient of an image is complete after the inner loop; that of the text is carried through the outer
one.

Axes: g contrast groups at once, p images at once (one per device), J images one after the other, I captions of T units,
N regions, bins of U units. The regions have F channels, and D with their projection (F = D without low_rank.py).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from afloc_jax.losses import kernels
from afloc_jax.losses.low_rank import project, pull_back
from afloc_jax.losses.packing import Captions, Packing, bin_slots, pack, packed, unpacked
from afloc_jax.losses.region_pooling import REGION_POOLINGS, TileText, caption_max, caption_sum, in_slots
from afloc_jax.losses.settings import PUBLISHED, LossSettings
from afloc_jax.vectors import norm

TILE_UNITS = 96  # text units of a tile; more where the longest caption does not fit


class TileGradients(NamedTuple):
    """Gradients of regions, text and projection. That of the projection is kept for each of the p images at once."""

    regions: Float[Array, "g p J N F"]
    units: Float[Array, "g I T D"]
    norms: Float[Array, "g I T"]
    projection: Float[Array, "g p F D"] | None


class Tiling(NamedTuple):
    """How many contrast groups, and how many images of each, are computed at once."""

    groups: int
    images: int


def local_similarity(
    regions: Float[Array, "B N D"],
    units: Float[Array, "I T D"],
    counts: Int[Array, " I"],
    settings: LossSettings = PUBLISHED,
) -> Float[Array, "B I"]:
    """The same as `definition.local_similarity`. The result is float32 (float64 for float64 features)."""
    return grouped_similarity(regions[None], units[None], counts[None], settings)[0]


def grouped_similarity(
    regions: Float[Array, "G B N D"],
    units: Float[Array, "G I T D"],
    counts: Int[Array, "G I"],
    settings: LossSettings = PUBLISHED,
    unit_norms: Float[Array, "G I T"] | None = None,
    projection: Float[Array, "F D"] | None = None,
    devices: int | None = None,
) -> Float[Array, "G B I"]:
    """`local_similarity` within each of G contrast groups.

    Products are computed in the precision of the regions; the units are rounded to it for them.

    Args:
        regions: the image features, of F channels with a `projection`, else of the units' width D.
        units: the text units; the first `counts` of each caption are valid.
        counts: the number of valid units of each caption.
        settings: `config.loss`.
        unit_norms: the norms that the cosines use; by default those of `units` (see low_rank.py).
        projection: the regions are `regions @ projection`, made for one image at a time (see low_rank.py).
        devices: how many devices share the batch; by default those of the mesh in context, or all. As many images are
            computed at once, taken from equally spaced places of the batch, so that each device holds one of them
            where jit shards the batch. The text is gathered before the loops and its gradient summed after them.
            Kernels always use one device, because jit cannot split them.
    """
    groups, images = regions.shape[:2]
    mesh = jax.sharding.get_abstract_mesh()
    if settings.kernel == "pallas":
        devices = 1
    elif devices is None:
        devices = jax.device_count() if mesh.empty else mesh.size
    at_once = math.gcd(groups, devices)
    tiling = Tiling(at_once, math.gcd(images, devices // at_once))
    if unit_norms is None:
        unit_norms = norm(units.astype(jnp.promote_types(units.dtype, jnp.float32)))
    text = Captions(units, unit_norms, jnp.maximum(counts, 1))
    return _grouped_similarity(regions, text, projection, settings, tiling)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _grouped_similarity(
    regions: Array, text: Captions, projection: Array | None, settings: LossSettings, tiling: Tiling
) -> Float[Array, "G B I"]:
    def forward(step: tuple[Array, Captions]) -> Array:
        regions, captions = step
        return tile_rows(regions, captions, settings, projection)

    steps = _split(regions, tiling), _captions_by_step(text, regions, tiling)
    similarity = jax.lax.map(forward, steps)  # [G / g, g, p, B / p, I]
    return jnp.moveaxis(similarity, 0, 1).reshape(*regions.shape[:2], -1)


def _similarity_forward(
    regions: Array, text: Captions, projection: Array | None, settings: LossSettings, tiling: Tiling
) -> tuple[Array, PyTree]:
    return _grouped_similarity(regions, text, projection, settings, tiling), (regions, text, projection)


def _similarity_backward(
    settings: LossSettings, tiling: Tiling, saved: PyTree, d_similarity: Float[Array, "G B I"]
) -> tuple[Array, Captions, Array | None]:
    regions, text, projection = saved

    def backward(d_projection: Array | None, step: PyTree) -> tuple[Array | None, PyTree]:
        regions, d_similarity, captions = step
        here = tile_gradients(regions, captions, d_similarity, settings, projection)
        return jax.tree.map(jnp.add, d_projection, here.projection), (here.regions, here.units, here.norms)

    step = _split(regions, tiling), _split(d_similarity, tiling), _captions_by_step(text, regions, tiling)
    # One gradient for each image computed at once, as for the text in tile_gradients; None without a projection.
    nothing = jax.tree.map(lambda array: jnp.zeros((*tiling, *array.shape), array.dtype), projection)
    d_projection, gradients = jax.lax.scan(backward, nothing, step)
    d_regions, d_units, d_norms = (
        jnp.moveaxis(gradient, 0, 1).reshape(array.shape).astype(array.dtype)
        for gradient, array in zip(gradients, (regions, text.units, text.norms), strict=True)
    )
    d_projection = jax.tree.map(lambda total: total.sum(axis=(0, 1)), d_projection)
    none: PyTree = None  # integers have no gradient
    return d_regions, Captions(d_units, d_norms, none), d_projection


_grouped_similarity.defvjp(_similarity_forward, _similarity_backward)


def _by_step(array: Array, tiling: Tiling) -> Array:
    """[G, ...] -> [G / g, g, ...]. The g groups computed at once come from equally spaced places."""
    return jnp.moveaxis(array.reshape(tiling.groups, -1, *array.shape[1:]), 1, 0)


def _captions_by_step(text: Captions, regions: Array, tiling: Tiling) -> Captions:
    """The captions, g groups per step, with units in the precision of the regions."""
    units = _by_step(text.units.astype(regions.dtype), tiling)
    return Captions(units, _by_step(text.norms, tiling), _by_step(text.counts, tiling))


def _split(array: Array, tiling: Tiling) -> Array:
    """[G, B, ...] -> [G / g, g, p, B / p, ...]."""
    array = _by_step(array, tiling)
    return array.reshape(*array.shape[:2], tiling.images, -1, *array.shape[3:])


class _Packed(NamedTuple):
    """The packed captions of g groups. `used` is the largest number of bins in use by any of them."""

    packing: Packing
    units: Float[Array, "g bins U D"]
    norms: Float[Array, "g bins U"]
    used: Int[Array, ""]

    @classmethod
    def make(cls, text: Captions) -> "_Packed":
        length = text.units.shape[2]
        slots = bin_slots(length, TILE_UNITS)
        packing = jax.vmap(lambda counts: pack(counts, length, slots))(text.counts)
        in_bins = jax.vmap(packed)
        return cls(packing, in_bins(packing, text.units), in_bins(packing, text.norms), packing.used.max())

    def tile(self, index: Int[Array, ""]) -> TileText:
        """The captions of one bin."""

        caption = _at(self.packing.caption, index, 1)
        same = caption[:, :, None] == caption[:, None, :]
        return TileText(_at(self.units, index, 1), _at(self.norms, index, 1), _at(self.packing.valid, index, 1), same)


def _pooled(
    r: Float[Array, "g p U"], text: TileText, settings: LossSettings
) -> tuple[Float[Array, "g p slots"], Float[Array, "g p U"]]:
    """Pools the relevance over the units of each caption.

    Returns log sum_t exp(temp2 r_t) of the caption in each slot, and each unit's share of that sum,
    exp(temp2 r_t) / sum_t exp(temp2 r_t). Slots without a caption get 0.
    """
    scaled = jnp.where(text.valid[:, None], in_slots(settings.pooling_temperature * r, text), -jnp.inf)
    largest = caption_max(scaled.max(axis=3), text)
    largest = jnp.where(largest > -jnp.inf, largest, 0)
    weights = jnp.exp(scaled - largest[..., None])
    total = caption_sum(weights.sum(axis=3), text)
    total = jnp.where(total > 0, total, 1)  # empty slots
    return largest + jnp.log(total), (weights / total[..., None]).reshape(r.shape)


def tile_rows(
    regions: Float[Array, "g p J N F"],
    text: Captions,
    settings: LossSettings,
    projection: Float[Array, "F D"] | None = None,
) -> Float[Array, "g p J I"]:
    """Similarities S of all images with all captions of their group, one tile at a time.

    The units must be in the precision of the regions. p must be 1 for kernels. With a `projection` an image's regions
    are made when the outer loop reaches it. Kernels take many images in one call, so for them the regions of all J are
    made first.
    """
    if settings.kernel == "pallas":
        return kernels.tile_rows(project(regions[:, 0], projection), text, settings)[:, None]
    captions = _Packed.make(text)
    groups, images = regions.shape[:2]
    bins, slots = captions.packing.caption.shape[1:]
    pooling = REGION_POOLINGS[settings.region_pooling]

    def one_image(_: None, index: Array) -> tuple[None, Array]:
        image = project(_at(regions, index, 2), projection)  # [g, p, N, D]

        def one_bin(index: Array, similarity: Array) -> Array:
            text = captions.tile(index)
            r, _ = pooling.forward(image, text, settings)
            pooled, _ = _pooled(r, text, settings)
            similarity = jax.lax.dynamic_update_index_in_dim(similarity, pooled, index, axis=2)
            return similarity

        empty = jnp.zeros((groups, images, bins, slots), captions.norms.dtype)
        by_slot = jax.lax.fori_loop(0, captions.used, one_bin, empty).reshape(groups, images, -1)
        return None, jnp.take_along_axis(by_slot, captions.packing.first_slot[:, None], axis=2)

    _, similarity = jax.lax.scan(one_image, None, jnp.arange(regions.shape[2]))  # [J, g, p, I]
    return settings.contrast_temperature * jnp.moveaxis(similarity, 0, 2)


def tile_gradients(
    regions: Float[Array, "g p J N F"],
    text: Captions,
    d_similarity: Float[Array, "g p J I"],
    settings: LossSettings,
    projection: Float[Array, "F D"] | None = None,
    start: Float[Array, "g p J N F"] | None = None,
) -> TileGradients:
    """Gradients of `tile_rows` with respect to its arrays, from that of its result, `d_similarity`.

    Those of the text have the precision of the norms. `start` may be given where there is no projection: the gradient
    of the regions is then added to it, in the precision of `start`.
    """
    if settings.kernel == "pallas":
        start = None if start is None else start[:, 0]
        made = project(regions[:, 0], projection)
        d_made, d_units, d_norms = kernels.tile_gradients(made, text, d_similarity[:, 0], settings, start)
        d_regions, d_projection = pull_back(regions[:, 0], projection, d_made, apart=1)
        d_projection = None if d_projection is None else d_projection[:, None]
        return TileGradients(d_regions[:, None], d_units, d_norms, d_projection)
    captions = _Packed.make(text)
    groups, images = regions.shape[:2]
    pooling, wide = REGION_POOLINGS[settings.region_pooling], captions.norms.dtype
    # Empty slots belong to caption I (see Packing), whose gradient is 0.
    d_pooled = jnp.pad(settings.contrast_temperature * d_similarity, ((0, 0),) * 3 + ((0, 1),))

    def one_image(carry: PyTree, index: Array) -> tuple[PyTree, None]:
        d_all, d_projection, *d_text = carry
        own, d_image = _at(regions, index, 2), _at(d_pooled, index, 2)
        image = project(own, projection)

        def one_bin(index: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_regions, d_units, d_norms = carry
            text = captions.tile(index)
            r, saved = pooling.forward(image, text, settings)
            _, share = _pooled(r, text, settings)
            caption = _at(captions.packing.caption, index, 1)
            d_slots = jnp.take_along_axis(d_image, caption[:, None], axis=2)  # [g, p, slots]
            d_r = (in_slots(share, text) * d_slots[..., None]).reshape(r.shape) * settings.pooling_temperature
            d_tile = pooling.backward(image, text, saved, d_r, settings)
            return (
                d_regions + d_tile.regions,
                _add_at(d_units, d_tile.units, index),
                _add_at(d_norms, d_tile.norms, index),
            )

        so_far = _at(d_all, index, 2).astype(wide)
        so_far = so_far if projection is None else jnp.zeros(image.shape, wide)
        d_regions, *d_text = jax.lax.fori_loop(0, captions.used, one_bin, (so_far, *d_text))
        d_own, d_here = pull_back(own, projection, d_regions, apart=2)
        d_all = jax.lax.dynamic_update_index_in_dim(d_all, d_own.astype(d_all.dtype), index, axis=2)
        return (d_all, jax.tree.map(jnp.add, d_projection, d_here), *d_text), None

    # The gradients of text and projection are kept for each of the p images at once, which lie on different devices:
    # they are summed over devices once, after the loop, and not in every tile.
    d_shared = jax.tree.map(
        lambda array: jnp.zeros((groups, images, *array.shape), wide),
        (projection, *(array[0] for array in (captions.units, captions.norms))),
    )
    d_regions = jnp.zeros(regions.shape, regions.dtype) if start is None else start
    totals, _ = jax.lax.scan(one_image, (d_regions, *d_shared), jnp.arange(regions.shape[2]))
    d_regions, d_projection, *d_text_totals = totals
    d_units, d_norms = (jax.vmap(unpacked)(captions.packing, total.sum(axis=1)) for total in d_text_totals)
    return TileGradients(d_regions, d_units, d_norms, d_projection)


def _at(array: Array, index: Int[Array, ""], axis: int) -> Array:
    found: Array = jax.lax.dynamic_index_in_dim(array, index, axis, keepdims=False)
    return found


def _add_at(total: Float[Array, "g p bins ..."], part: Float[Array, "g p ..."], index: Int[Array, ""]) -> Array:
    total = jax.lax.dynamic_update_index_in_dim(total, _at(total, index, 2) + part, index, axis=2)
    return total
