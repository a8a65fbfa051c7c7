"""The local similarity of definition.py and its gradient, in tiles: memory for one tile instead of B x B x T x N.

A tile is m images of each device against one bin of packed captions. tile_size.py says how many images and units suit
the device; packing.py makes the bins; region_pooling.py computes a tile, or kernels/ where `settings.kernel` is
"pallas" or "triton". Where the batch is sharded, every device works on images of its own. With r_t the relevance of
unit t of caption i to image b,

    S[b, i] = temp3 log sum_t exp(temp2 r_t)
    dr_t = dS[b, i] temp3 temp2 exp(temp2 r_t) / sum_t exp(temp2 r_t)

The forward pass keeps S [B, B] and nothing of the tiles. The backward pass (a custom VJP) receives dS, computes r of
each tile again, and pulls dr back to regions, units and norms. The outer loop runs over images, m at a time, the inner
one over the bins in use. The gradient of an image is complete after the inner loop; that of the text is carried through
the outer one.

Axes: g contrast groups at once, p devices that share them, J images of each device, I captions of T units, N regions,
bins of U units. The regions have F channels, and D with their projection (F = D without low_rank.py).
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from afloc_jax.errors import UsageError
from afloc_jax.losses import kernels
from afloc_jax.losses.low_rank import project, pull_back
from afloc_jax.losses.packing import Captions, Packing, first_fit, pack, packed, unpacked
from afloc_jax.losses.region_pooling import (
    REGION_POOLINGS,
    RegionPooling,
    Slots,
    TileText,
    present,
    text_softmax,
)
from afloc_jax.losses.settings import PUBLISHED, LossSettings
from afloc_jax.losses.tile_size import slots_of_bin, tile_size
from afloc_jax.losses.tpu_tile import pooling_for_tpu, slots_first, slots_last
from afloc_jax.vectors import norm


class TileGradients(NamedTuple):
    """Gradients of regions, text and projection. That of the projection is kept for each of the p devices."""

    regions: Float[Array, "g p J N F"]
    units: Float[Array, "g I T D"]
    norms: Float[Array, "g I T"]
    projection: Float[Array, "g p F D"] | None


class Tiling(NamedTuple):
    """How many contrast groups are computed at once, how many devices share each of them, and their kind."""

    groups: int
    devices: int
    platform: str


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
    platform: str | None = None,
) -> Float[Array, "G B I"]:
    """`local_similarity` within each of G contrast groups.

    Products are computed in the precision of the regions; the units are rounded to it for them.

    Args:
        regions: the image features, of F channels with a `projection`, else of the units' width D.
        units: the text units; the first `counts` of each caption are valid.
        counts: the number of valid units of each caption.
        settings: `config.loss`.
        unit_norms: the norms that the cosines use; by default those of `units` (see low_rank.py).
        projection: the regions are `regions @ projection`, made for one tile at a time (see low_rank.py).
        devices: how many devices share the batch; by default those of the mesh in context, or all. So many images, or a
            multiple, are computed at once, taken from equally spaced places of the batch, so that each device holds its
            own where jit shards the batch. The text is gathered before the loops and its gradient summed after them.
            Kernels always use one device, because jit cannot split them.
        platform: the kind of these devices, for the size of tiles; by default that of JAX's default backend.
    """
    groups, images = regions.shape[:2]
    mesh = jax.sharding.get_abstract_mesh()
    if settings.kernel != "xla":
        devices = 1
    elif devices is None:
        devices = jax.device_count() if mesh.empty else mesh.size
    at_once = math.gcd(groups, devices)
    tiling = Tiling(at_once, math.gcd(images, devices // at_once), platform or jax.default_backend())
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
        return tile_rows(regions, captions, settings, tiling.platform, projection)

    steps = _split(regions, tiling), _captions_by_step(text, regions, tiling)
    similarity = jax.lax.map(forward, steps)  # [G / g, g, p, B / p, I]
    return jnp.moveaxis(similarity, 0, 1).reshape(*regions.shape[:2], -1)


def _similarity_forward(
    regions: Array, text: Captions, projection: Array | None, settings: LossSettings, tiling: Tiling
) -> tuple[Array, PyTree]:
    similarity = _grouped_similarity(regions, text, projection, settings, tiling)
    return similarity, (regions, text, projection, similarity)


def _similarity_backward(
    settings: LossSettings, tiling: Tiling, saved: PyTree, d_similarity: Float[Array, "G B I"]
) -> tuple[Array, Captions, Array | None]:
    regions, text, projection, similarity = saved

    def backward(d_projection: Array | None, step: PyTree) -> tuple[Array | None, PyTree]:
        regions, similarity, d_similarity, captions = step
        here = tile_gradients(regions, captions, similarity, d_similarity, settings, tiling.platform, projection)
        return jax.tree.map(jnp.add, d_projection, here.projection), (here.regions, here.units, here.norms)

    by_image = (_split(array, tiling) for array in (regions, similarity, d_similarity))
    step = *by_image, _captions_by_step(text, regions, tiling)
    # One gradient for each device, as for the text in tile_gradients; None without a projection.
    apart = tiling.groups, tiling.devices
    nothing = jax.tree.map(lambda array: jnp.zeros((*apart, *array.shape), array.dtype), projection)
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
    return array.reshape(*array.shape[:2], tiling.devices, -1, *array.shape[3:])


class _Packed(NamedTuple):
    """The packed captions of g groups, of which a tile takes `at_once` bins."""

    packing: Packing
    units: Float[Array, "g bins U D"]
    norms: Float[Array, "g bins U"]
    tiles: Int[Array, ""]  # as many as hold the bins in use by any group
    at_once: int

    @classmethod
    def make(cls, text: Captions, settings: LossSettings, platform: str, at_once: int) -> "_Packed":
        text, length = placed(text, settings, platform), text.units.shape[2]
        slots, slot = slots_of_bin(settings, platform, length)
        packing = jax.vmap(lambda counts, first: pack(counts, length, slots, first, slot))(text.counts, text.first_slot)
        at_once = min(at_once, packing.caption.shape[1])
        if missing := -packing.caption.shape[1] % at_once:  # empty bins
            packing = dataclasses.replace(
                packing,
                source=jnp.pad(packing.source, ((0, 0), (0, missing), (0, 0), (0, 0))),
                valid=jnp.pad(packing.valid, ((0, 0), (0, missing), (0, 0), (0, 0))),
                caption=jnp.pad(packing.caption, ((0, 0), (0, missing), (0, 0)), constant_values=text.counts.shape[1]),
            )
        in_bins, tiles = jax.vmap(packed), -(-packing.used.max() // at_once)
        units, norms = in_bins(packing, text.units), in_bins(packing, text.norms)
        if _pooling(settings, platform).slots_last:
            units, norms = slots_last(units, slot, axis=2), slots_last(norms, slot, axis=2)
        return cls(packing, units, norms, tiles, at_once)

    def tile(self, index: Int[Array, ""]) -> TileText:
        """The captions of one tile."""
        valid, caption = (self.part(array, index, 1) for array in (self.packing.valid, self.packing.caption))
        units, norms = (self.part(array, index, 1) for array in (self.units, self.norms))
        return TileText(units, norms, _slots(caption, valid), self.at_once)

    def part(self, by_bin: Array, index: Int[Array, ""], axis: int) -> Array:
        """What a tile takes of an array [.., bins, U, ..]: [.., at_once * U, ..]."""
        found = jax.lax.dynamic_slice_in_dim(by_bin, index * self.at_once, self.at_once, axis)
        return found.reshape(*found.shape[:axis], -1, *found.shape[axis + 2 :])

    def update(self, by_bin: Array, part: Array, index: Int[Array, ""], axis: int) -> Array:
        """The array with another part."""
        part = part.reshape(*part.shape[:axis], self.at_once, -1, *part.shape[axis + 1 :])
        return jax.lax.dynamic_update_slice_in_dim(by_bin, part, index * self.at_once, axis)

    def pooled(self, r: Float[Array, "g p bins U m"], settings: LossSettings) -> Float[Array, "g p I m"]:
        """log sum_t exp(temp2 r_t) over the units of each caption."""
        groups, bins = self.packing.caption.shape[:2]
        by_bin = jnp.moveaxis(r, 2, 1)  # [g, bins, p, U, m]
        flat = (array.reshape(-1, *array.shape[2:]) for array in (by_bin, self.packing.caption, self.packing.valid))
        r, caption, valid = flat
        _, pooled = text_softmax(settings.pooling_temperature * r, _slots(caption, valid))  # [g * bins, p, slots, m]
        by_slot = jnp.moveaxis(pooled.reshape(groups, bins, *pooled.shape[1:]), 1, 2)
        by_slot = by_slot.reshape(groups, r.shape[1], -1, r.shape[3])
        return jnp.take_along_axis(by_slot, self.packing.first_slot[:, None, :, None], axis=2)


def _slots(caption: Int[Array, "g slots"], valid: Bool[Array, "g slots S"]) -> Slots:
    return Slots(valid, caption[:, :, None] == caption[:, None, :])


def placed(text: Captions, settings: LossSettings, platform: str) -> Captions:
    """The captions with their places in bins. A ring does this once, before the captions travel: it is a loop."""
    if text.first_slot is not None:
        return text
    length = text.units.shape[2]
    slots, slot = slots_of_bin(settings, platform, length)
    return text._replace(first_slot=jax.vmap(lambda counts: first_fit(counts, length, slots, slot))(text.counts))


def _filled_up(array: Shaped[Array, "g p J *N"], images: int) -> Shaped[Array, "g p K *N"]:
    """J images, and as many of zeros as are missing from the last tile."""
    missing = -array.shape[2] % images
    return jnp.pad(array, [(0, missing if axis == 2 else 0) for axis in range(array.ndim)]) if missing else array


def tile_rows(
    regions: Float[Array, "g p J N F"],
    text: Captions,
    settings: LossSettings,
    platform: str,
    projection: Float[Array, "F D"] | None = None,
) -> Float[Array, "g p J I"]:
    """Similarities S of all images with all captions of their group, one tile at a time.

    The units must be in the precision of the regions. p must be 1 for kernels. `platform` is the kind of device. With a
    `projection` the regions of images are made when the outer loop reaches them. Kernels take many images in one call,
    so for them the regions of all J are made first.
    """
    if settings.kernel == "pallas":
        return kernels.tile_rows(project(regions[:, 0], projection), text, settings)[:, None]
    count = regions.shape[2]
    size = tile_size(settings, platform, count, regions.shape[3], text.units.shape[2])
    captions, regions = _Packed.make(text, settings, platform, size.bins), _filled_up(regions, size.images)
    groups, devices = regions.shape[:2]
    bins, units = captions.norms.shape[1:]
    pooling = _pooling(settings, platform)

    def some_images(_: None, first: Array) -> tuple[None, Array]:
        images = size.tile(project(_from(regions, first, size.images), projection), captions.norms.dtype)

        def one_tile(index: Array, relevance: Array) -> Array:
            r = pooling.relevance(images, captions.tile(index), settings)
            return captions.update(relevance, r, index, axis=2)

        empty = jnp.zeros((groups, devices, bins, units, size.images), captions.norms.dtype)
        relevance = jax.lax.fori_loop(0, captions.tiles, one_tile, empty)
        if pooling.slots_last:
            relevance = slots_first(relevance, captions.packing.valid.shape[3], axis=3)
        return None, captions.pooled(relevance, settings)

    _, similarity = jax.lax.scan(some_images, None, jnp.arange(0, regions.shape[2], size.images))  # [.., g, p, I, m]
    similarity = jnp.transpose(similarity, (1, 2, 0, 4, 3)).reshape(groups, devices, -1, similarity.shape[3])
    return settings.contrast_temperature * similarity[:, :, :count]


def tile_gradients(
    regions: Float[Array, "g p J N F"],
    text: Captions,
    similarity: Float[Array, "g p J I"],
    d_similarity: Float[Array, "g p J I"],
    settings: LossSettings,
    platform: str,
    projection: Float[Array, "F D"] | None = None,
    start: Float[Array, "g p J N F"] | None = None,
) -> TileGradients:
    """Gradients of `tile_rows` with respect to its arrays, from its result and the gradient of that.

    A similarity that is -inf has been left out of the loss, and its gradient is 0.
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
    count = regions.shape[2]
    size = tile_size(settings, platform, count, regions.shape[3], text.units.shape[2])
    captions, regions = _Packed.make(text, settings, platform, size.bins), _filled_up(regions, size.images)
    d_regions = jnp.zeros(regions.shape, regions.dtype) if start is None else _filled_up(start, size.images)
    groups, devices = regions.shape[:2]
    pooling, wide = _pooling(settings, platform), captions.norms.dtype
    # dr = dS temp3 temp2 exp(temp2 r - S / temp3), with 0 for units that are not there.
    scale = settings.contrast_temperature
    d_scaled = settings.pooling_temperature * scale * d_similarity
    logarithm = jnp.where(similarity > -jnp.inf, similarity, jnp.inf) / scale
    # Empty slots belong to caption I (see Packing), whose gradient is 0.
    pooled = jnp.pad(jnp.stack([d_scaled, logarithm]), ((0, 0),) * 4 + ((0, 1),))  # [2, g, p, J, I + 1]
    pooled = jax.vmap(lambda array: _filled_up(array, size.images))(pooled)

    def some_images(carry: PyTree, first: Array) -> tuple[PyTree, None]:
        d_all, d_projection, *d_text = carry
        own = _from(regions, first, size.images)
        of_images = jax.lax.dynamic_slice_in_dim(pooled, first, size.images, axis=3)
        by_slot = jnp.take_along_axis(  # [2, g, p, bins * slots, m]
            jnp.swapaxes(of_images, 3, 4), captions.packing.caption.reshape(1, groups, 1, -1, 1), axis=3
        ).reshape(2, groups, devices, *captions.packing.caption.shape[1:], size.images)
        images = size.tile(project(own, projection), wide)

        def one_tile(index: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            d_regions, d_total, d_units, d_norms = carry
            text = captions.tile(index)
            r, saved = pooling.forward(images, text, settings)
            there, d_slots, logarithm = present(text.slots, 1), *captions.part(by_slot, index, 3)[:, :, :, :, None]
            if pooling.slots_last:  # [g, p, slots, S, m] -> [g, p, S, slots, m]
                there, d_slots, logarithm = (jnp.swapaxes(array, 2, 3) for array in (there, d_slots, logarithm))
            by_unit = r.reshape(*r.shape[:2], *there.shape[2:4], r.shape[3])
            d_r = d_slots * jnp.exp(settings.pooling_temperature * by_unit - logarithm)
            d_r = jnp.where(there, d_r, 0).reshape(r.shape)
            d_tile = pooling.backward(images, text, saved, d_r, settings)
            return (
                # In this order XLA lets each product add to the total in place on GPUs.
                functools.reduce(lambda total, part: part + total, d_tile.regions, d_regions),
                d_total + d_tile.total,
                captions.update(d_units, captions.part(d_units, index, 2) + d_tile.units, index, 2),
                captions.update(d_norms, captions.part(d_norms, index, 2) + d_tile.norms, index, 2),
            )

        so_far = jnp.zeros(images.regions.shape, wide)
        if projection is None:
            so_far = size.filled_up(_from(d_all, first, size.images).astype(wide))
        nothing = jnp.zeros(images.total.shape, wide)
        d_regions, d_total, *d_text = jax.lax.fori_loop(0, captions.tiles, one_tile, (so_far, nothing, *d_text))
        d_regions = d_regions[:, :, :, : images.count] + d_total[:, :, :, None]
        d_own, d_here = pull_back(own, projection, d_regions, apart=2)
        d_all = jax.lax.dynamic_update_slice_in_dim(d_all, d_own.astype(d_all.dtype), first, axis=2)
        return (d_all, jax.tree.map(jnp.add, d_projection, d_here), *d_text), None

    # The gradients of text and projection are kept for each of the p devices: they are summed over devices once, after
    # the loop, and not in every tile.
    d_shared = jax.tree.map(
        lambda array: jnp.zeros((groups, devices, *array.shape), wide),
        (projection, *(array[0] for array in (captions.units, captions.norms))),
    )
    totals, _ = jax.lax.scan(some_images, (d_regions, *d_shared), jnp.arange(0, regions.shape[2], size.images))
    d_regions, d_projection, *d_text_totals = totals
    d_text_totals = [total.sum(axis=1) for total in d_text_totals]
    if pooling.slots_last:
        d_text_totals = [slots_first(total, captions.packing.valid.shape[3], axis=2) for total in d_text_totals]
    d_units, d_norms = (jax.vmap(unpacked)(captions.packing, total) for total in d_text_totals)
    return TileGradients(d_regions[:, :, :count], d_units, d_norms, d_projection)


def _pooling(settings: LossSettings, platform: str) -> RegionPooling:
    if settings.kernel != "triton":
        return pooling_for_tpu(settings) if platform == "tpu" else REGION_POOLINGS[settings.region_pooling]
    if platform == "tpu":
        raise UsageError("loss.kernel = 'triton': is for GPUs; set it to 'xla' on TPUs")
    from afloc_jax.losses.kernels import triton  # only here: JAX says that this part of it will go one day

    return triton.POOLING


def _from(array: Shaped[Array, "g p J *N"], first: Int[Array, ""], images: int) -> Shaped[Array, "g p m *N"]:
    found: Array = jax.lax.dynamic_slice_in_dim(array, first, images, axis=2)
    return found
