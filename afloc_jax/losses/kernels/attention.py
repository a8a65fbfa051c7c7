"""The local similarity with the published attention over regions, fused for a TPU core; the formula: definition.py.

One grid step is a tile: one image's N regions against one bin of packed captions (packing.py), U units. Nothing of the
size U x N leaves VMEM. Forward, over blocks of regions:

    s = W C^T, p = softmax of s over each caption's units, e = exp(temp1 p), v += e C, r = cos(w, v),
    log sum_t exp(temp2 r_t) of each caption

Backward computes the same, then from the gradient of that sum the gradients of C and W, again block by block. Units lie
along sublanes, regions along lanes: a slot of 8 units is one row of vector registers, and the softmax over a caption is
one over slots. What there is one of per unit is a column [U, 1] here and a row [1, U] in HBM, where a column would be
padded to 128 lanes.

The grid is cores x groups x images x bins, bins innermost: an image and the gradient of its regions stay in VMEM while
the bins pass by. The gradient of a bin comes back with every image, so it is read, added to and written by hand while
the products run. Cores (two on a v5p chip) have totals of their own.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from afloc_jax.losses.definition import SMALLEST_NORM_PRODUCT
from afloc_jax.losses.packing import SLOT
from afloc_jax.losses.settings import LocalSettings

LANES = 128
BLOCK_REGIONS = 512  # regions worked on at once: [U, BLOCK_REGIONS] is what stands between two products
CORES = 2  # shares of the images; a chip with one core works on them one after the other
VMEM_LIMIT = 48 * 2**20  # bytes a kernel may use: v5p has 64 MiB a core, v5e and v6e have 128
HIDDEN = -1e30  # added to the score of padding; finite, so that no difference of two is NaN
ROWS = 8  # sublanes of a float32 register: the least a row is stored in


class TileText(NamedTuple):
    """Packed captions of g groups, bins of U units in `slots` slots."""

    units: Float[Array, "g bins U D"]
    rows: Float[Array, "g bins ROWS U"]  # norms of the units; 0 for a unit, HIDDEN for padding; the rest unused
    same: Float[Array, "g bins slots slots"]  # 1 where two slots hold parts of one caption
    used: Int[Array, ""]  # the leading bins that hold anything


class _Blocks(NamedTuple):
    """How N regions are cut: `count` blocks of `size`, the last one padded."""

    regions: int
    count: int
    size: int

    @classmethod
    def of(cls, regions: int) -> "_Blocks":
        count = -(-regions // BLOCK_REGIONS)
        return cls(regions, count, -(-regions // (count * LANES)) * LANES)

    @property
    def padded(self) -> int:
        return self.count * self.size


def vmem_bytes(regions: int, width: int, units: int, itemsize: int, total_itemsize: int) -> int:
    """What the backward kernel holds in VMEM: blocks in and out twice (one is worked on, one under way), and scratch.

    `itemsize`: bytes of a feature; `total_itemsize`: of an element of the regions' gradient in HBM.
    """
    width = -(-width // LANES) * LANES
    padded = _Blocks.of(regions).padded
    image = 2 * padded * width * (itemsize + 2 * total_itemsize) + padded * width * 4
    text = 2 * units * width * itemsize + 3 * units * width * 4
    tile = 3 * units * padded * 4
    return image + text + tile


# --- Parts of both kernels, on values in VMEM ---


def _product(left: Array, right: Array, contract: tuple[int, int], wide: Any) -> Array:
    return lax.dot_general(left, right, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=wide)


def _column(rows: Float[Array, "ROWS U"], index: int) -> Float[Array, "U 1"]:
    return rows.T[:, index : index + 1]


def _row(column: Float[Array, "U 1"]) -> Float[Array, "1 U"]:
    return jnp.broadcast_to(column, (column.shape[0], LANES)).T[:1]


def _spread(slot_values: Float[Array, "slots n"]) -> Float[Array, "U n"]:
    """Each slot's value for each of its units."""
    slots, width = slot_values.shape
    return jnp.broadcast_to(slot_values[:, None], (slots, SLOT, width)).reshape(slots * SLOT, width)


def _by_slot(tile: Float[Array, "U n"]) -> Float[Array, "slots SLOT n"]:
    return tile.reshape(-1, SLOT, tile.shape[1])


def _caption_max(slot_values: Float[Array, "slots n"], same: Float[Array, "slots slots"]) -> Float[Array, "slots n"]:
    """For each slot the largest value among the slots of its caption."""
    apart = 2 * HIDDEN * (1 - same)
    candidates = (slot_values[t : t + 1] + apart[:, t : t + 1] for t in range(same.shape[0]))
    return functools.reduce(jnp.maximum, candidates)


def _caption_sum(slot_values: Float[Array, "slots n"], same: Float[Array, "slots slots"]) -> Float[Array, "slots n"]:
    """For each slot the sum over the slots of its caption; so short that the matrix unit would cost more."""
    parts = (same[:, t : t + 1] * slot_values[t : t + 1] for t in range(same.shape[0]))
    return functools.reduce(jnp.add, parts)


def _regions(regions_ref: Any, block: int, blocks: _Blocks) -> Float[Array, "n D"]:
    """One block of regions, zero beyond the last: what lies there in VMEM is anything, NaN too."""
    start = block * blocks.size
    regions = regions_ref[pl.ds(start, blocks.size), :]
    if start + blocks.size <= blocks.regions:
        return regions
    there = lax.broadcasted_iota(jnp.int32, regions.shape, 0) < blocks.regions - start
    return jnp.where(there, regions, jnp.zeros_like(regions))


class _Pooled(NamedTuple):
    """One tile's forward pass, columns of one number per unit."""

    relevance: Float[Array, "U 1"]  # r, the cosine
    denominator: Float[Array, "U 1"]
    norms: Float[Array, "U 1"]
    v_squared: Float[Array, "U 1"]
    free: Array  # the denominator is not clamped
    pooled: Float[Array, "U 1"]  # log sum_t exp(temp2 r_t) of the unit's caption
    share: Float[Array, "U 1"]  # of the unit in that sum; 0 for padding


def _forward(regions_ref, units_ref, rows_ref, same_ref, v_ref, keep, settings: LocalSettings, blocks: _Blocks):
    """Attention and pooling of one tile. Leaves v in `v_ref`; `keep(block, s, p, e)` sees every block."""
    rows, units, same = rows_ref[...], units_ref[...], same_ref[...]
    wide = rows.dtype
    norms, hidden = _column(rows, 0), _column(rows, 1)
    dot = e_sum = jnp.zeros_like(norms)
    for block in range(blocks.count):
        regions = _regions(regions_ref, block, blocks)
        s = _product(units, regions, (1, 1), wide)
        scores = s + hidden
        largest = _caption_max(_by_slot(scores).max(axis=1), same)
        weights = jnp.exp(scores - _spread(largest))
        p = weights * _spread(1 / _caption_sum(_by_slot(weights).sum(axis=1), same))
        e = jnp.exp(settings.attention_temperature * p)
        if (block + 1) * blocks.size > blocks.regions:
            there = lax.broadcasted_iota(jnp.int32, e.shape, 1) < blocks.regions - block * blocks.size
            e = jnp.where(there, e, 0)
        keep(block, s, p, e)
        v = _product(e.astype(regions.dtype), regions, (1, 0), wide)
        v_ref[...] = v if block == 0 else v_ref[...] + v
        dot += jnp.sum(e * s, axis=1, keepdims=True)
        e_sum += jnp.sum(e, axis=1, keepdims=True)
    v_squared = jnp.sum(v_ref[...] ** 2, axis=1, keepdims=True)
    norm_product = norms * jnp.sqrt(v_squared)
    smallest = SMALLEST_NORM_PRODUCT * e_sum  # the published clamp is on the normalised mean
    denominator = jnp.maximum(norm_product, smallest)
    r = dot / denominator
    # A cosine is at most 1, so no maximum has to be found first (check_kernel: temp2 is not that large).
    t = settings.pooling_temperature
    weights = jnp.exp(t * (r - 1) + hidden)
    total = _spread(_caption_sum(_by_slot(weights).sum(axis=1), same))
    total = jnp.where(total > 0, total, 1)  # empty slots
    return _Pooled(r, denominator, norms, v_squared, norm_product > smallest, t + jnp.log(total), weights / total)


def _backward(d_pooled: Float[Array, "U 1"], tile: _Pooled, v_ref, settings: LocalSettings):
    """Gradients per unit of: the dot product, the sum of e, the unit's norm, and v [U, D]."""
    d_r = settings.pooling_temperature * tile.share * d_pooled
    free, through = tile.free, -d_r * tile.relevance
    # Through the norms: both are constant where the denominator is clamped; there e's sum takes their place.
    d_v = jnp.where(free, through / jnp.where(free, tile.v_squared, 1), 0) * v_ref[...]
    d_norms = jnp.where(free, through / jnp.where(free, tile.norms, 1), 0)
    d_sum = jnp.where(free, 0, through / tile.denominator * SMALLEST_NORM_PRODUCT)
    return d_r / tile.denominator, d_sum, d_norms, d_v


# --- The kernels ---


def _forward_kernel(_, regions_ref, units_ref, rows_ref, same_ref, pooled_ref, v_ref, *, settings, blocks):
    def keep(*_):
        pass

    tile = _forward(regions_ref, units_ref, rows_ref, same_ref, v_ref, keep, settings, blocks)
    pooled_ref[...] = _row(tile.pooled)


def _backward_kernel(
    _,
    regions_ref,
    units_ref,
    rows_ref,
    same_ref,
    d_pooled_ref,
    start_ref,
    __,
    d_regions_ref,
    d_units_ref,  # all bins, in HBM
    d_norms_ref,
    v_ref,
    s_ref,
    p_ref,
    e_ref,
    total_ref,
    d_units_here,
    arrived,
    written,
    *,
    settings,
    blocks,
):
    core, group, image, index = (pl.program_id(axis) for axis in range(4))
    groups, images, bins = (pl.num_programs(axis) for axis in range(1, 4))
    step = (group * images + image) * bins + index
    last = groups * images * bins - 1
    mine = step % 2
    in_hbm, in_vmem = d_units_ref.at[core, group, index], d_units_here.at[mine]
    read = pltpu.make_async_copy(in_hbm, in_vmem, arrived)
    write = pltpu.make_async_copy(in_vmem, in_hbm, written.at[mine])
    # Only the size of the copy matters to a wait.
    previous_write = pltpu.make_async_copy(d_units_here.at[1 - mine], in_hbm, written.at[1 - mine])

    @pl.when((step > 0) & (bins == 1))
    def _():
        previous_write.wait()  # it is this bin that was written

    read.start()

    @pl.when(index == 0)
    def _():
        total_ref[...] = start_ref[...].astype(total_ref.dtype)

    def keep(block, *tile):
        for ref, value in zip((s_ref, p_ref, e_ref), tile, strict=True):
            ref[:, pl.ds(block * blocks.size, blocks.size)] = value

    units, same = units_ref[...], same_ref[...]
    tile = _forward(regions_ref, units_ref, rows_ref, same_ref, v_ref, keep, settings, blocks)
    d_pooled = _column(jnp.broadcast_to(d_pooled_ref[...], (ROWS, units.shape[0])), 0)
    d_dot, d_sum, d_norms, d_v = _backward(d_pooled, tile, v_ref, settings)
    d_norms_ref[...] = _row(d_norms)
    d_v = d_v.astype(units.dtype)
    wide = v_ref.dtype
    for block in range(blocks.count):
        there = pl.ds(block * blocks.size, blocks.size)
        regions = _regions(regions_ref, block, blocks)
        s, p, e = s_ref[:, there], p_ref[:, there], e_ref[:, there]
        d_e = d_dot * s + d_sum + _product(d_v, regions, (1, 1), wide)
        p_d_p = settings.attention_temperature * p * e * d_e
        within = _caption_sum(_by_slot(p_d_p).sum(axis=1), same)
        d_s = (d_dot * e + p_d_p - p * _spread(within)).astype(units.dtype)
        total_ref[there, :] += _product(d_s, units, (0, 0), wide) + _product(e.astype(units.dtype), d_v, (0, 0), wide)
        d_units = _product(d_s, regions, (1, 0), wide)
        v_ref[...] = d_units if block == 0 else v_ref[...] + d_units  # v is not needed any more

    read.wait()
    in_vmem[...] += v_ref[...]

    @pl.when((step > 0) & (bins > 1))
    def _():
        previous_write.wait()

    write.start()

    @pl.when(step == last)
    def _():
        write.wait()

    @pl.when(index == bins - 1)
    def _():
        d_regions_ref[...] = total_ref[...].astype(d_regions_ref.dtype)


# --- Calls: a run of images of every group, from `first` on ---


def _grid(regions: Array, text: TileText, images: int):
    """Grid and block specifications shared by both calls; index maps see (core, group, image, bin, first)."""
    cores = math.gcd(CORES, images)
    share = images // cores
    groups, _, number, width = regions.shape
    bins, units = text.units.shape[1:3]
    blocks = _Blocks.of(number)
    slots = text.same.shape[2]
    image = pl.BlockSpec(
        (None, None, blocks.padded, width), lambda core, g, j, bin, first: (g, first[0] + core * share + j, 0, 0)
    )

    def of_bin(*shape):
        return pl.BlockSpec((None, None, *shape), lambda core, g, j, bin, first: (g, bin, 0, 0))

    row = pl.BlockSpec((None, None, None, 1, units), lambda core, g, j, bin, first: (g, core * share + j, bin, 0, 0))
    rows = jax.ShapeDtypeStruct((groups, images, bins, 1, units), text.rows.dtype)
    texts = [of_bin(units, width), of_bin(ROWS, units), of_bin(slots, slots)]
    return blocks, (cores, groups, share, text.used), image, texts, row, rows


def _compiler_params():
    # The gradient of the text is added up over groups, images and bins in turn.
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
    )


def _cost(products: int, regions: Array, text: TileText, images: int, rereads: int) -> pl.CostEstimate:
    """For the compiler's scheduler, as if all bins were in use."""
    groups, _, number, width = regions.shape
    bins, units = text.units.shape[1:3]
    tiles = groups * images * bins
    of_image = groups * images * number * width * regions.dtype.itemsize
    of_bins = tiles * units * width * (text.units.dtype.itemsize + rereads * text.rows.dtype.itemsize)
    return pl.CostEstimate(
        flops=2 * products * tiles * units * number * width,
        transcendentals=2 * tiles * units * number,
        bytes_accessed=of_image * (3 if rereads else 1) + of_bins,
    )


def forward_call(
    regions: Float[Array, "g J N D"],
    text: TileText,
    first: Int[Array, ""],
    images: int,
    settings: LocalSettings,
    interpret: bool,
) -> Float[Array, "g images bins 1 U"]:
    """log sum_t exp(temp2 r_t) of each unit's caption; anything in bins that are not used."""
    blocks, grid, image, texts, row, rows = _grid(regions, text, images)
    units, width = text.units.shape[2:]
    return pl.pallas_call(
        functools.partial(_forward_kernel, settings=settings, blocks=blocks),
        out_shape=rows,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[image, *texts],
            out_specs=row,
            scratch_shapes=[pltpu.VMEM((units, width), rows.dtype)],
        ),
        compiler_params=_compiler_params(),
        cost_estimate=_cost(2, regions, text, images, 0),
        interpret=interpret,
        name="local_similarity_forward",
    )(first[None], regions, text.units, text.rows, text.same)


def backward_call(
    regions: Float[Array, "g J N D"],
    text: TileText,
    d_pooled: Float[Array, "g images bins 1 U"],
    d_regions: Float[Array, "g J N D"],
    d_units: Float[Array, "cores g bins U D"],
    first: Int[Array, ""],
    settings: LocalSettings,
    interpret: bool,
) -> tuple[Array, Array, Array]:
    """Adds to `d_regions` and `d_units`, in place; also the gradient of the norms, [g, images, bins, 1, U]."""
    images = d_pooled.shape[1]
    blocks, grid, image, texts, row, rows = _grid(regions, text, images)
    units, width = text.units.shape[2:]
    wide = rows.dtype
    tile = pltpu.VMEM((units, blocks.padded), wide)
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        functools.partial(_backward_kernel, settings=settings, blocks=blocks),
        out_shape=(
            jax.ShapeDtypeStruct(d_regions.shape, d_regions.dtype),
            jax.ShapeDtypeStruct(d_units.shape, d_units.dtype),
            rows,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[image, *texts, row, image, in_hbm],
            out_specs=(image, in_hbm, row),
            scratch_shapes=[
                pltpu.VMEM((units, width), wide),
                tile,
                tile,
                tile,
                pltpu.VMEM((blocks.padded, width), wide),
                pltpu.VMEM((2, units, width), wide),
                pltpu.SemaphoreType.DMA,
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        input_output_aliases={6: 0, 7: 1},
        compiler_params=_compiler_params(),
        cost_estimate=_cost(7, regions, text, images, 2),
        interpret=interpret,
        name="local_similarity_backward",
    )(first[None], regions, text.units, text.rows, text.same, d_pooled, d_regions, d_units)
