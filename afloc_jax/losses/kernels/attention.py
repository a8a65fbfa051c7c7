"""The local similarity with the published attention over regions, fused for a TPU core; the formula: definition.py.

One grid step is a tile: one image's N regions against one bin of packed captions (packing.py), U units. Nothing of the
size U x N leaves VMEM. Forward, over blocks of regions:

    s = W C^T, p = softmax of s over each caption's units, e = exp(temp1 p), v += e C, r = cos(w, v),
    log sum_t exp(temp2 r_t) of each caption

Backward computes the same, then from the gradient of that sum the gradients of C and W, again block by block:
tile.py. What there is one of per unit is a row [1, U] in HBM, where a column would be padded to 128 lanes.

The grid is cores x groups x images x bins, bins innermost: an image and the gradient of its regions stay in VMEM while
the bins pass by. The gradient of a bin comes back with every image, so it is read, added to and written by hand while
the products run. Cores (two on a v5p chip) have totals of their own.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from afloc_jax.losses.kernels import tile
from afloc_jax.losses.kernels.tile import ROWS, Ref
from afloc_jax.losses.settings import LossSettings

CORES = 2  # shares of the images; a chip with one core works on them one after the other
VMEM_LIMIT = 48 * 2**20  # bytes a kernel may use: v5p has 64 MiB a core, v5e and v6e have 128


class TileText(NamedTuple):
    """Packed captions of g groups, bins of U units in `slots` slots."""

    units: Float[Array, "g bins U D"]
    rows: Float[Array, "g bins ROWS U"]  # norms of the units; 0 for a unit, HIDDEN for padding; the rest unused
    same: Float[Array, "g bins slots slots"]  # 1 where two slots hold parts of one caption
    used: Int[Array, ""]  # the leading bins that hold anything


def vmem_bytes(regions: int, width: int, units: int, itemsize: int, total_itemsize: int) -> int:
    """What the backward kernel holds in VMEM: blocks in and out twice (one is worked on, one under way), and scratch.

    `itemsize`: bytes of a feature; `total_itemsize`: of an element of the regions' gradient in HBM.
    """
    width = -(-width // tile.LANES) * tile.LANES
    padded = tile.Blocks.of(regions).padded
    image = 2 * padded * width * (itemsize + 2 * total_itemsize) + padded * width * 4
    text = 2 * units * width * itemsize + 3 * units * width * 4
    return image + text + 3 * units * padded * 4


# --- The kernels ---


def _forward_kernel(
    first: Ref,
    regions_ref: Ref,
    units_ref: Ref,
    rows_ref: Ref,
    same_ref: Ref,
    pooled_ref: Ref,
    v_ref: Ref,
    *,
    settings: LossSettings,
    blocks: tile.Blocks,
) -> None:
    done = tile.forward(regions_ref, units_ref, rows_ref, same_ref, v_ref, (), settings, blocks)
    pooled_ref[...] = tile.row(done.pooled)


def _backward_kernel(
    first: Ref,  # the first image of this call; the index maps read it
    regions_ref: Ref,
    units_ref: Ref,
    rows_ref: Ref,
    same_ref: Ref,
    d_pooled_ref: Ref,
    start_ref: Ref,
    d_units_before: Ref,  # the same memory as d_units_ref
    d_regions_ref: Ref,
    d_units_ref: Ref,  # [cores, g, bins, U, D], in HBM
    d_norms_ref: Ref,
    v_ref: Ref,
    kept_refs: tuple[Ref, Ref, Ref],  # s, p, e
    d_image_ref: Ref,
    *running: Ref,  # the buffers and semaphores of _added_in_hbm
    settings: LossSettings,
    blocks: tile.Blocks,
) -> None:
    index, bins = pl.program_id(3), pl.num_programs(3)

    def products() -> None:
        @pl.when(index == 0)
        def start() -> None:
            d_image_ref[...] = start_ref[...].astype(d_image_ref.dtype)

        units = units_ref[...]
        done = tile.forward(regions_ref, units_ref, rows_ref, same_ref, v_ref, kept_refs, settings, blocks)
        d_pooled = tile.column(jnp.broadcast_to(d_pooled_ref[...], (ROWS, units.shape[0])), 0)
        gradient = tile.backward(d_pooled, done, v_ref, settings)
        d_norms_ref[...] = tile.row(gradient.norms)
        # v is not needed any more: its place is taken by the gradient of the units.
        tile.features_backward(
            gradient, regions_ref, units, same_ref[...], kept_refs, d_image_ref, v_ref, settings, blocks
        )

        @pl.when(index == bins - 1)
        def end() -> None:
            d_regions_ref[...] = d_image_ref[...].astype(d_regions_ref.dtype)

    _added_in_hbm(d_units_ref, v_ref, products, *running)


def _added_in_hbm(
    total_ref: Ref, part_ref: Ref, make_part: Callable[[], None], here_ref: Ref, arrived: Ref, written: Ref
) -> None:
    """Adds what `make_part` leaves in `part_ref` to this core's, group's and bin's place in HBM.

    The place is read while the part is made, and written while the next grid step makes its own; `here_ref` has two
    buffers for that, taken in turn, and `written` a semaphore for each:

        step n      read place n -> buffer n % 2 | make the part | wait for the read | add | start writing buffer n % 2
        step n + 1  the write of step n runs on while buffer (n + 1) % 2 is filled, and has ended before its own starts

    With a single bin the next step reads the very place that is being written, so it has to wait for that write first.
    """
    core, group, image, index = (pl.program_id(axis) for axis in range(4))
    groups, images, bins = (pl.num_programs(axis) for axis in range(1, 4))
    step = (group * images + image) * bins + index
    mine = step % 2
    in_hbm, in_vmem = total_ref.at[core, group, index], here_ref.at[mine]
    read = pltpu.make_async_copy(in_hbm, in_vmem, arrived)
    write = pltpu.make_async_copy(in_vmem, in_hbm, written.at[mine])
    # For its wait alone, to which only the size of a copy matters.
    write_before = pltpu.make_async_copy(here_ref.at[1 - mine], in_hbm, written.at[1 - mine])
    pl.when((step > 0) & (bins == 1))(write_before.wait)
    read.start()
    make_part()
    read.wait()
    in_vmem[...] += part_ref[...]
    pl.when((step > 0) & (bins > 1))(write_before.wait)
    write.start()
    pl.when(step == groups * images * bins - 1)(write.wait)


# --- Calls: a run of images of every group, from `first` on ---


class _Grid(NamedTuple):
    """Grid and block specifications shared by both calls; index maps see (core, group, image, bin, first)."""

    blocks: tile.Blocks
    grid: tuple[int, int, int, Int[Array, ""]]
    image: pl.BlockSpec
    texts: list[pl.BlockSpec]
    row: pl.BlockSpec
    rows: jax.ShapeDtypeStruct


def _grid(regions: Array, text: TileText, images: int) -> _Grid:
    cores = math.gcd(CORES, images)
    share = images // cores
    groups, _, number, width = regions.shape
    bins, units = text.units.shape[1:3]
    blocks = tile.Blocks.of(number)
    slots = text.same.shape[2]
    image = pl.BlockSpec(
        (None, None, blocks.padded, width), lambda core, g, j, bin, first: (g, first[0] + core * share + j, 0, 0)
    )

    def of_bin(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *shape), lambda core, g, j, bin, first: (g, bin, 0, 0))

    row = pl.BlockSpec((None, None, None, 1, units), lambda core, g, j, bin, first: (g, core * share + j, bin, 0, 0))
    rows = jax.ShapeDtypeStruct((groups, images, bins, 1, units), text.rows.dtype)
    texts = [of_bin(units, width), of_bin(ROWS, units), of_bin(slots, slots)]
    return _Grid(blocks, (cores, groups, share, text.used), image, texts, row, rows)


def _compiler_params() -> pltpu.CompilerParams:
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
    settings: LossSettings,
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
    settings: LossSettings,
    interpret: bool,
) -> tuple[Array, Array, Array]:
    """Adds to `d_regions` and `d_units`, in place; also the gradient of the norms, [g, images, bins, 1, U]."""
    images = d_pooled.shape[1]
    blocks, grid, image, texts, row, rows = _grid(regions, text, images)
    units, width = text.units.shape[2:]
    wide = rows.dtype
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
                (pltpu.VMEM((units, blocks.padded), wide),) * 3,  # s, p, e
                pltpu.VMEM((blocks.padded, width), wide),
                pltpu.VMEM((2, units, width), wide),
                pltpu.SemaphoreType.DMA,
                pltpu.SemaphoreType.DMA((2,)),
            ],
        ),
        input_output_aliases={6: 0, 7: 1},
        compiler_params=_compiler_params(),
        cost_estimate=_cost(6, regions, text, images, 2),
        interpret=interpret,
        name="local_similarity_backward",
    )(first[None], regions, text.units, text.rows, text.same, d_pooled, d_regions, d_units)
