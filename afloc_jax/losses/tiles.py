"""The tiles of the local similarity, and of its gradient, of some contrast groups (tiled.py has the formulas).

A tile is m images of each device against one bin of packed captions. tile_size.py says how many images and units suit
the device, and how many tiles are kept between the passes; packing.py makes the bins; region_pooling.py computes a
tile, or kernels/ where `settings.kernel` is "pallas" or "triton". Where the batch is sharded, every device works on
images of its own.

The outer loop runs over images, m at a time, the inner one over the bins in use. The gradient of an image is complete
after the inner loop; that of the text is carried through the outer one.

Axes: g contrast groups at once, p devices that share them, J images of each device, I captions of T units, N regions,
bins of U units. The regions have F channels, and D with their projection (F = D without low_rank.py).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from afloc_jax.errors import UsageError
from afloc_jax.losses import kernels
from afloc_jax.losses.low_rank import project, pull_back
from afloc_jax.losses.packing import Captions, Packing, bins_at_most, first_fit, pack, packed, unpacked
from afloc_jax.losses.region_pooling import (
    REGION_POOLINGS,
    RegionPooling,
    Slots,
    TileText,
    present,
    text_softmax,
)
from afloc_jax.losses.settings import LossSettings
from afloc_jax.losses.tile_size import kept_memory, slots_of_bin, tile_size
from afloc_jax.losses.tpu_tile import pooling_for_tpu, slots_first, slots_last


class TileGradients(NamedTuple):
    """Gradients of regions, text and projection. That of the projection is kept for each of the p devices."""

    regions: Float[Array, "g p J N F"]
    units: Float[Array, "g I T D"]
    norms: Float[Array, "g I T"]
    projection: Float[Array, "g p F D"] | None


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


def tiles_to_keep(images: int, regions: int, text: Captions, settings: LossSettings, platform: str) -> int:
    """How many tiles of every image are kept: those that `loss.kept_memory` has room for, each `region_pooling.Kept`.

    That is half of the tiles at most that the shapes allow for: reports fill fewer (a mean of 36 of 97 words), and
    memory that is never used has to be written once, too.

    Args:
        images: of each device and contrast group.
        regions: of an image.
        text: the captions, of which only shapes are read.
    """
    if settings.kernel == "pallas" or not _pooling(settings, platform).kept:
        return 0
    captions, length, width = text.units.shape[1:]
    size, wide = tile_size(settings, platform, images, regions, length), text.norms.dtype.itemsize
    tiles = -(-bins_at_most(captions, length, *slots_of_bin(settings, platform, length)) // size.bins)
    of_unit = wide * (regions + -regions % size.multiple + width)
    of_tile = (images + -images % size.images) * size.bins * size.units * of_unit
    return min(-(-tiles // 2), kept_memory(settings, platform) // of_tile)


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
    return rows_and_kept(regions, text, settings, platform, projection, keep=0)[0]


def rows_and_kept(
    regions: Float[Array, "g p J N F"],
    text: Captions,
    settings: LossSettings,
    platform: str,
    projection: Float[Array, "F D"] | None,
    keep: int,
) -> tuple[Float[Array, "g p J I"], PyTree]:
    """`tile_rows`, and what `tile_gradients` may take of the first `keep` tiles of all images (see `kept_tiles`)."""
    if settings.kernel == "pallas":
        return kernels.tile_rows(project(regions[:, 0], projection), text, settings)[:, None], None
    count = regions.shape[2]
    size = tile_size(settings, platform, count, regions.shape[3], text.units.shape[2])
    captions, regions = _Packed.make(text, settings, platform, size.bins), _filled_up(regions, size.images)
    groups, devices = regions.shape[:2]
    bins, units = captions.norms.shape[1:]
    pooling = _pooling(settings, platform)

    def some_images(kept: PyTree, step: Array) -> tuple[PyTree, Array]:
        images = size.tile(project(_from(regions, step * size.images, size.images), projection), captions.norms.dtype)

        def one_tile(index: Array, relevance: Array) -> Array:
            r = pooling.relevance(images, captions.tile(index), settings)
            return captions.update(relevance, r, index, axis=2)

        def kept_tile(index: Array, carry: PyTree) -> PyTree:
            relevance, kept = carry
            r, here = pooling.forward_and_kept(images, captions.tile(index), settings)
            kept = jax.tree.map(lambda tiles, tile: tiles.at[step, index].set(tile), kept, here)
            return captions.update(relevance, r, index, axis=2), kept

        relevance = jnp.zeros((groups, devices, bins, units, size.images), captions.norms.dtype)
        first_tiles = jnp.minimum(captions.tiles, keep)
        if keep:
            relevance, kept = jax.lax.fori_loop(0, first_tiles, kept_tile, (relevance, kept))
        relevance = jax.lax.fori_loop(first_tiles, captions.tiles, one_tile, relevance)
        if pooling.slots_last:
            relevance = slots_first(relevance, captions.packing.valid.shape[3], axis=3)
        return kept, captions.pooled(relevance, settings)

    steps, kept = regions.shape[2] // size.images, None
    if keep:
        images = size.tile(project(regions[:, :, : size.images], projection), captions.norms.dtype)
        one = jax.eval_shape(lambda: pooling.forward_and_kept(images, captions.tile(jnp.zeros((), int)), settings)[1])
        kept = jax.tree.map(lambda tile: jnp.zeros((steps, keep, *tile.shape), tile.dtype), one)
    kept, similarity = jax.lax.scan(some_images, kept, jnp.arange(steps))  # [.., g, p, I, m]
    similarity = jnp.transpose(similarity, (1, 2, 0, 4, 3)).reshape(groups, devices, -1, similarity.shape[3])
    return settings.contrast_temperature * similarity[:, :, :count], kept


def tile_gradients(
    regions: Float[Array, "g p J N F"],
    text: Captions,
    similarity: Float[Array, "g p J I"],
    d_similarity: Float[Array, "g p J I"],
    settings: LossSettings,
    platform: str,
    projection: Float[Array, "F D"] | None = None,
    start: Float[Array, "g p J N F"] | None = None,
    kept: PyTree = None,
) -> TileGradients:
    """Gradients of `tile_rows` with respect to its arrays, from its result and the gradient of that.

    A similarity that is -inf has been left out of the loss, and its gradient is 0.
    Those of the text have the precision of the norms. `start` may be given where there is no projection: the gradient
    of the regions is then added to it, in the precision of `start`. `kept` is that of `rows_and_kept`: tiles that it
    holds are not computed again.
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
    tiles_kept = jax.tree.leaves(kept)[0].shape[1] if kept is not None else 0
    # dr = dS temp3 temp2 exp(temp2 r - S / temp3), with 0 for units that are not there.
    scale = settings.contrast_temperature
    d_scaled = settings.pooling_temperature * scale * d_similarity
    logarithm = jnp.where(similarity > -jnp.inf, similarity, jnp.inf) / scale
    # Empty slots belong to caption I (see Packing), whose gradient is 0.
    pooled = jnp.pad(jnp.stack([d_scaled, logarithm]), ((0, 0),) * 4 + ((0, 1),))  # [2, g, p, J, I + 1]
    pooled = jax.vmap(lambda array: _filled_up(array, size.images))(pooled)

    def some_images(carry: PyTree, step: tuple[Array, PyTree]) -> tuple[PyTree, None]:
        (first, kept), (d_all, d_projection, *d_text) = step, carry
        own = _from(regions, first, size.images)
        of_images = jax.lax.dynamic_slice_in_dim(pooled, first, size.images, axis=3)
        by_slot = jnp.take_along_axis(  # [2, g, p, bins * slots, m]
            jnp.swapaxes(of_images, 3, 4), captions.packing.caption.reshape(1, groups, 1, -1, 1), axis=3
        ).reshape(2, groups, devices, *captions.packing.caption.shape[1:], size.images)
        images = size.tile(project(own, projection), wide)

        def one_tile(index: Array, carry: tuple[Array, ...], kept: PyTree = None) -> tuple[Array, ...]:
            d_regions, d_total, d_units, d_norms = carry
            text = captions.tile(index)
            if kept is None:
                r, saved = pooling.forward(images, text, settings)
            else:
                r, saved = pooling.again(images, text, jax.tree.map(lambda tiles: tiles[index], kept), settings)
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
        totals = so_far, nothing, *d_text
        first_tiles = jnp.minimum(captions.tiles, tiles_kept)
        if tiles_kept:
            totals = jax.lax.fori_loop(0, first_tiles, functools.partial(one_tile, kept=kept), totals)
        d_regions, d_total, *d_text = jax.lax.fori_loop(first_tiles, captions.tiles, one_tile, totals)
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
    steps = jnp.arange(0, regions.shape[2], size.images), kept
    totals, _ = jax.lax.scan(some_images, (d_regions, *d_shared), steps)
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
