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

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped

from afloc_jax.errors import UsageError
from afloc_jax.losses import kernels
from afloc_jax.losses.bins import PackedCaptions
from afloc_jax.losses.low_rank import project, pull_back
from afloc_jax.losses.packing import Captions, bins_at_most, unpacked
from afloc_jax.losses.region_pooling import (
    REGION_POOLINGS,
    RegionPooling,
    Slots,
    in_slots,
    present,
    text_softmax,
)
from afloc_jax.losses.settings import LARGEST_KERNEL_TEMPERATURE, LossSettings
from afloc_jax.losses.tile_size import kept_memory, slots_of_bin, tile_size
from afloc_jax.losses.tpu_tile import pooling_for_tpu, slots_first, slots_last


class TileGradients(NamedTuple):
    """Gradients of regions, text and projection. That of the projection is kept for each of the p devices."""

    regions: Float[Array, "g p J N F"]
    units: Float[Array, "g I T D"]
    norms: Float[Array, "g I T"]
    projection: Float[Array, "g p F D"] | None


def _packed(text: Captions, settings: LossSettings, platform: str, at_once: int) -> PackedCaptions:
    return PackedCaptions.make(text, settings, platform, at_once, _pooling(settings, platform).slots_last)


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
    captions, regions = _packed(text, settings, platform, size.bins), _filled_up(regions, size.images)
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
        return kept, _pooled(captions, relevance, pooling, settings)

    steps, kept = regions.shape[2] // size.images, None
    if keep:
        images = size.tile(project(regions[:, :, : size.images], projection), captions.norms.dtype)
        one = jax.eval_shape(lambda: pooling.forward_and_kept(images, captions.tile(jnp.zeros((), int)), settings)[1])
        kept = jax.tree.map(lambda tile: jnp.zeros((steps, keep, *tile.shape), tile.dtype), one)
    kept, similarity = jax.lax.scan(some_images, kept, jnp.arange(steps))  # [.., g, p, I, m]
    return _similarities(similarity, count, settings), kept


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
    # dr = dS temp3 temp2 exp(temp2 r - S / temp3), with 0 for units that are not there.
    scale = settings.contrast_temperature
    d_scaled = settings.pooling_temperature * scale * d_similarity
    logarithm = jnp.where(similarity > -jnp.inf, similarity, jnp.inf) / scale
    slots_are_last = _pooling(settings, platform).slots_last

    def d_relevance(slots: Slots, r: Array, of_slots: Array) -> Array:
        there, d_slots, logarithm = present(slots, 1), *of_slots[:, :, :, :, None]
        if slots_are_last:  # [g, p, slots, S, m] -> [g, p, S, slots, m]
            there, d_slots, logarithm = (jnp.swapaxes(array, 2, 3) for array in (there, d_slots, logarithm))
        by_unit = r.reshape(*r.shape[:2], *there.shape[2:4], r.shape[3])
        d_r = d_slots * jnp.exp(settings.pooling_temperature * by_unit - logarithm)
        return jnp.where(there, d_r, 0).reshape(r.shape)

    of_captions = jnp.stack([d_scaled, logarithm])
    return _visit(regions, text, of_captions, d_relevance, settings, platform, projection, start, kept)[0]


def rows_and_gradients(
    regions: Float[Array, "g p J N F"],
    text: Captions,
    of_captions: Float[Array, "c g p J I"],
    d_rows: Callable[[Array, Array], Array],
    settings: LossSettings,
    platform: str,
    start: Float[Array, "g p J N F"] | None = None,
) -> tuple[Float[Array, "g p J I"], TileGradients]:
    """`tile_rows` and `tile_gradients` in one visit of each tile, for a loss that is a sum over pairs.

    A tile holds its captions whole, so their similarities are known in it, and with them the gradient of such a loss.

    Args:
        of_captions: c numbers of each pair, 0 where a pair has no loss.
        d_rows: the gradient of the loss with respect to similarities, from these and `of_captions`, both of any shape.
        start: as in `tile_gradients`.
    """
    d_relevance = d_relevance_in_visit(d_rows, _pooling(settings, platform).slots_last, settings)
    gradients, rows = _visit(regions, text, of_captions, d_relevance, settings, platform, start=start, with_rows=True)
    assert rows is not None
    return rows, gradients


def d_relevance_in_visit(
    d_rows: Callable[[Array, Array], Array], slots_are_last: bool, settings: LossSettings
) -> Callable[[Slots, Array, Array], Array]:
    """The gradient of a tile's relevances from these alone, see `rows_and_gradients`."""
    temperature = settings.pooling_temperature

    def d_relevance(slots: Slots, r: Array, of_slots: Array) -> Array:
        r = slots_first(r, slots.valid.shape[2], axis=2) if slots_are_last else r
        # r is at most 1, so temp2 may take the place of the maximum, see settings.py.
        at_most = temperature if temperature <= LARGEST_KERNEL_TEMPERATURE else None
        p, pooled = text_softmax(temperature * r, slots, at_most)  # [g, p, U, m], [g, p, slots, m]
        d_similarity = d_rows(settings.contrast_temperature * pooled, of_slots)
        d_slots = temperature * settings.contrast_temperature * d_similarity[:, :, :, None]
        d_r = (d_slots * in_slots(p, slots)).reshape(r.shape)
        return slots_last(d_r, slots.valid.shape[2], axis=2) if slots_are_last else d_r

    return d_relevance


def _visit(
    regions: Float[Array, "g p J N F"],
    text: Captions,
    of_captions: Float[Array, "c g p J I"],
    d_relevance: Callable[[Slots, Array, Array], Array],
    settings: LossSettings,
    platform: str,
    projection: Float[Array, "F D"] | None = None,
    start: Float[Array, "g p J N F"] | None = None,
    kept: PyTree = None,
    with_rows: bool = False,
) -> tuple[TileGradients, Float[Array, "g p J I"] | None]:
    """The gradients of all tiles, one at a time, and their similarities where they are asked for.

    `d_relevance(slots, r, of_slots)` is the gradient of a tile's relevances r [g, p, U, m] from these and the numbers
    of the captions in its slots, `of_slots` [c, g, p, slots, m].
    """
    count = regions.shape[2]
    size = tile_size(settings, platform, count, regions.shape[3], text.units.shape[2])
    captions, regions = _packed(text, settings, platform, size.bins), _filled_up(regions, size.images)
    d_regions = jnp.zeros(regions.shape, regions.dtype) if start is None else _filled_up(start, size.images)
    groups, devices = regions.shape[:2]
    pooling, wide = _pooling(settings, platform), captions.norms.dtype
    tiles_kept = jax.tree.leaves(kept)[0].shape[1] if kept is not None else 0
    # Empty slots belong to caption I (see Packing), whose gradient is 0.
    pooled = jnp.pad(of_captions, ((0, 0),) * 4 + ((0, 1),))  # [c, g, p, J, I + 1]
    pooled = jax.vmap(lambda array: _filled_up(array, size.images))(pooled)

    def some_images(carry: PyTree, step: tuple[Array, PyTree]) -> tuple[PyTree, Array | None]:
        (first, kept), (d_all, d_projection, *d_text) = step, carry
        own = _from(regions, first, size.images)
        of_images = jax.lax.dynamic_slice_in_dim(pooled, first, size.images, axis=3)
        by_slot = jnp.take_along_axis(  # [c, g, p, bins * slots, m]
            jnp.swapaxes(of_images, 3, 4), captions.packing.caption.reshape(1, groups, 1, -1, 1), axis=3
        ).reshape(len(pooled), groups, devices, *captions.packing.caption.shape[1:], size.images)
        images = size.tile(project(own, projection), wide)

        def one_tile(index: Array, carry: tuple[PyTree, ...], kept: PyTree = None) -> tuple[PyTree, ...]:
            d_regions, d_total, d_units, d_norms, relevance = carry
            text = captions.tile(index)
            if kept is None:
                r, saved = pooling.forward(images, text, settings)
            else:
                r, saved = pooling.again(images, text, jax.tree.map(lambda tiles: tiles[index], kept), settings)
            d_r = d_relevance(text.slots, r, captions.part(by_slot, index, 3))
            d_tile = pooling.backward(images, text, saved, d_r, settings)
            return (
                # In this order XLA lets each product add to the total in place on GPUs.
                functools.reduce(lambda total, part: part + total, d_tile.regions, d_regions),
                d_total + d_tile.total,
                captions.update(d_units, captions.part(d_units, index, 2) + d_tile.units, index, 2),
                captions.update(d_norms, captions.part(d_norms, index, 2) + d_tile.norms, index, 2),
                None if relevance is None else captions.update(relevance, r, index, axis=2),
            )

        so_far = jnp.zeros(images.regions.shape, wide)
        if projection is None:
            so_far = size.filled_up(_from(d_all, first, size.images).astype(wide))
        nothing = jnp.zeros(images.total.shape, wide)
        relevance = jnp.zeros((groups, devices, *captions.norms.shape[1:], size.images), wide) if with_rows else None
        totals = so_far, nothing, *d_text, relevance
        first_tiles = jnp.minimum(captions.tiles, tiles_kept)
        if tiles_kept:
            totals = jax.lax.fori_loop(0, first_tiles, functools.partial(one_tile, kept=kept), totals)
        totals = jax.lax.fori_loop(first_tiles, captions.tiles, one_tile, totals)
        d_regions, d_total, *d_text, relevance = totals
        d_regions = d_regions[:, :, :, : images.count] + d_total[:, :, :, None]
        d_own, d_here = pull_back(own, projection, d_regions, apart=2)
        d_all = jax.lax.dynamic_update_slice_in_dim(d_all, d_own.astype(d_all.dtype), first, axis=2)
        rows = None if relevance is None else _pooled(captions, relevance, pooling, settings)
        return (d_all, jax.tree.map(jnp.add, d_projection, d_here), *d_text), rows

    # The gradients of text and projection are kept for each of the p devices: they are summed over devices once, after
    # the loop, and not in every tile.
    d_shared = jax.tree.map(
        lambda array: jnp.zeros((groups, devices, *array.shape), wide),
        (projection, *(array[0] for array in (captions.units, captions.norms))),
    )
    steps = jnp.arange(0, regions.shape[2], size.images), kept
    totals, rows = jax.lax.scan(some_images, (d_regions, *d_shared), steps)
    d_regions, d_projection, *d_text_totals = totals
    d_text_totals = [total.sum(axis=1) for total in d_text_totals]
    if pooling.slots_last:
        d_text_totals = [slots_first(total, captions.packing.valid.shape[3], axis=2) for total in d_text_totals]
    d_units, d_norms = (jax.vmap(unpacked)(captions.packing, total) for total in d_text_totals)
    gradients = TileGradients(d_regions[:, :, :count], d_units, d_norms, d_projection)
    return gradients, None if rows is None else _similarities(rows, count, settings)


def _pooled(
    captions: PackedCaptions, relevance: Float[Array, "g p bins U m"], pooling: RegionPooling, settings: LossSettings
) -> Float[Array, "g p I m"]:
    if pooling.slots_last:
        relevance = slots_first(relevance, captions.packing.valid.shape[3], axis=3)
    return captions.pooled(relevance, settings)


def _similarities(pooled: Float[Array, "steps g p I m"], images: int, settings: LossSettings) -> Array:
    """S [g, p, J, I] of the first `images` images, from `_pooled` of every step."""
    _, groups, devices, captions, _ = pooled.shape
    rows = jnp.transpose(pooled, (1, 2, 0, 4, 3)).reshape(groups, devices, -1, captions)
    return settings.contrast_temperature * rows[:, :, :images]


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
