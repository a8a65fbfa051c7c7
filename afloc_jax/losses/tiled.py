"""The local similarity of definition.py, value and gradients, holding one tile of the B x B x T x N work at a time.

A tile is one image (one per device where the batch is sharded, so that every device works on images of its own) against
one bin of packed captions: packing.py makes the bins, region_pooling.py computes what happens in a tile, or kernels/
where `settings.kernel` is "pallas". With r_t the relevance of unit t of caption i to image b,

    S[b, i] = temp3 log sum_t exp(temp2 r_t)
    dr_t = dS[b, i] temp3 temp2 exp(temp2 r_t) / sum_t exp(temp2 r_t)

Only S [B, B] outlives the forward pass. The backward pass is given dS, computes r in each tile anew, and pulls dr back
to regions, units and norms (custom VJP). Loops run over images and, inside, over the bins that are in use. The gradient
of an image is complete when its bins have passed by; that of the text is carried through all images.
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

TILE_UNITS = 96  # text units of a tile, more where the longest caption needs it


class TileGradients(NamedTuple):
    """Gradients of regions, text and projection; the last has one for every image that is worked on at once."""

    regions: Float[Array, "g p J N F"]
    units: Float[Array, "g I T D"]
    norms: Float[Array, "g I T"]
    projection: Float[Array, "g p F D"] | None


class Tiling(NamedTuple):
    """Contrast groups and images of each group that are worked on at once."""

    groups: int
    images: int


def local_similarity(
    regions: Float[Array, "B N D"],
    units: Float[Array, "I T D"],
    counts: Int[Array, " I"],
    settings: LossSettings = PUBLISHED,
) -> Float[Array, "B I"]:
    """Same as `definition.local_similarity`; float32 (float64 for float64 features) whatever the features' type."""
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
    """`local_similarity` of every contrast group.

    Products run in the precision of the regions, to which the units are rounded for them.
    With a `projection` the regions are `regions @ projection`, made for one image at a time. `unit_norms` are the norms
    that the cosines use where they are not those of `units` (both: see low_rank.py).
    `devices` is how many devices share the batch (by default those of the mesh in context, or all): as many images
    are worked on at once, taken from equally spaced places of the batch, so that with a batch sharded by jit each
    device holds one of them. The text is gathered before the loops and its gradient added up after them.
    Kernels are for one device: jit cannot split them.
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
    # None without a projection. One for every image that is worked on at once, as for the text in tile_gradients.
    nothing = jax.tree.map(lambda array: jnp.zeros((*tiling, *array.shape), array.dtype), projection)
    d_projection, gradients = jax.lax.scan(backward, nothing, step)
    d_regions, d_units, d_norms = (
        jnp.moveaxis(gradient, 0, 1).reshape(array.shape).astype(array.dtype)
        for gradient, array in zip(gradients, (regions, text.units, text.norms), strict=True)
    )
    d_projection = jax.tree.map(lambda total: total.sum(axis=(0, 1)), d_projection)
    none: PyTree = None  # the gradient of whole numbers
    return d_regions, Captions(d_units, d_norms, none), d_projection


_grouped_similarity.defvjp(_similarity_forward, _similarity_backward)


def _by_step(array: Array, tiling: Tiling) -> Array:
    """[G, ...] -> [G / g, g, ...], groups that are worked on at once coming from equally spaced places."""
    return jnp.moveaxis(array.reshape(tiling.groups, -1, *array.shape[1:]), 1, 0)


def _captions_by_step(text: Captions, regions: Array, tiling: Tiling) -> Captions:
    """The captions group by group, with units in the precision of the regions."""
    units = _by_step(text.units.astype(regions.dtype), tiling)
    return Captions(units, _by_step(text.norms, tiling), _by_step(text.counts, tiling))


def _split(array: Array, tiling: Tiling) -> Array:
    """[G, B, ...] -> [G / g, g, p, B / p, ...]."""
    array = _by_step(array, tiling)
    return array.reshape(*array.shape[:2], tiling.images, -1, *array.shape[3:])


class _Packed(NamedTuple):
    """The captions of g groups, packed; every field has g in front, except `used`, the bins that any group needs."""

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
    """Per slot the log-sum-exp of its caption, log sum_t exp(temp2 r_t), and per unit its share of that sum."""
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
    """Similarities of J images after each other, each with one bin of captions after the other.

    The units are in the precision of the regions. p images are worked on at once (p = 1 for kernels). With a
    `projection` an image's regions are made when its turn comes; for kernels, which take many images in one call, those
    of all J before it.
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
            return jax.lax.dynamic_update_index_in_dim(similarity, pooled, index, axis=2)

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
    """Gradients of what `tile_rows` takes.

    Those of the text are in the precision of the norms. The gradient of the regions is added to `start`, in its
    precision, where one is given (without a projection).
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
    # An extra caption with gradient 0 stands for the empty slots.
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

    # One gradient of text and projection per image that is worked on at once: added up over devices once, not in
    # every tile.
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
    return jax.lax.dynamic_index_in_dim(array, index, axis, keepdims=False)


def _add_at(total: Float[Array, "g p bins ..."], part: Float[Array, "g p ..."], index: Int[Array, ""]) -> Array:
    return jax.lax.dynamic_update_index_in_dim(total, _at(total, index, 2) + part, index, axis=2)
