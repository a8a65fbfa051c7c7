"""Pallas kernels of the local similarity with the published attention over regions (formula: definition.py).

One grid step is a tile: the regions C [N, D] of one image against the units W [U, D] of one bin of packed captions
(packing.py). No array of size U x N leaves VMEM. The forward kernel computes

    for each block of regions:   s = W C^T               [U, n]
                                 p = softmax of s over the units of each caption
                                 e = exp(temp1 (p - 1/2))
                                 v = v + e C             [U, D]
    after the last block:        r = cos(w, v)           [U]
                                 log sum_t exp(temp2 r_t) of each caption

The backward kernel computes these again and then, from the gradient of the last line, the gradients of C and W, block
by block (tile.py). Values of one number per unit are rows [1, U] in HBM, because a column would be padded to 128 lanes.

The grid is cores x groups x images x bins, with bins innermost. An image and the gradient of its regions therefore stay
in VMEM for all bins. The gradient of a bin, however, is needed again with every image: `_added_in_hbm` reads it from
HBM, adds to it and writes it back by asynchronous copies, while the matrix products run. Each core (a v5p chip has two)
has gradients of the text of its own; they are summed afterwards.
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

CORES = 2  # parts that the images are split into; a chip with one core computes them one after the other
VMEM_LIMIT = 48 * 2**20  # bytes a kernel may use: v5p has 64 MiB a core, v5e and v6e have 128


class TileText(NamedTuple):
    """Packed captions of g groups, in bins of U units in `slots` slots."""

    units: Float[Array, "g bins U D"]
    # Row 0: norms of the units. Row 1: what is added to scores, 0 for a unit and HIDDEN for padding. Others: unused.
    rows: Float[Array, "g bins ROWS U"]
    same: Float[Array, "g bins slots slots"]  # 1 where two slots hold parts of one caption, else 0
    used: Int[Array, ""] | int  # the number of bins in use, which come first; an int makes the grid static


def vmem_bytes(regions: int, width: int, units: int, itemsize: int, total_itemsize: int) -> int:
    """Bytes of VMEM of the backward kernel: input and output blocks twice (one is used, one copied), and scratch.

    Args:
        regions: N, of an image.
        width: D.
        units: U, of a bin.
        itemsize: bytes of an element of regions and units.
        total_itemsize: bytes of an element of the regions' gradient in HBM.
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
    """Adds the gradient of a bin that `make_part` leaves in `part_ref` to the total of this core, group and bin in HBM.

    The total is read while the part is computed, and written while the next grid step computes its own part. For that
    `here_ref` has two buffers, used in turn, and `written` a semaphore for each. Grid step n:

        start to read the total of step n into buffer n % 2
        compute the part
        wait for the read, add the part to the buffer
        wait for the write that step n - 1 started
        start to write buffer n % 2 to HBM; the last step also waits for it

    With a single bin steps n - 1 and n share one total, so the write of step n - 1 must have ended before step n reads.
    """
    core, group, image, index = (pl.program_id(axis) for axis in range(4))
    groups, images, bins = (pl.num_programs(axis) for axis in range(1, 4))
    step = (group * images + image) * bins + index
    mine = step % 2
    in_hbm, in_vmem = total_ref.at[core, group, index], here_ref.at[mine]
    read = pltpu.make_async_copy(in_hbm, in_vmem, arrived)
    write = pltpu.make_async_copy(in_vmem, in_hbm, written.at[mine])
    # Only waited for: a wait needs the semaphore and the size of the copy, not its true address in HBM.
    write_before = pltpu.make_async_copy(here_ref.at[1 - mine], in_hbm, written.at[1 - mine])
    pl.when((step > 0) & (bins == 1))(write_before.wait)
    read.start()
    make_part()
    read.wait()
    in_vmem[...] += part_ref[...]
    pl.when((step > 0) & (bins > 1))(write_before.wait)
    write.start()
    pl.when(step == groups * images * bins - 1)(write.wait)


# --- The calls: `images` images of every group, from image `first` on ---


class _Grid(NamedTuple):
    """Grid and block specifications of both calls. Index maps take (core, group, image, bin, first)."""

    blocks: tile.Blocks
    grid: tuple[int, int, int, Int[Array, ""] | int]
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
    # "arbitrary" steps run in order: _added_in_hbm and the image in VMEM depend on the steps before.
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
    )


def _cost(products: int, regions: Array, text: TileText, images: int, rereads: int) -> pl.CostEstimate:
    """The cost of a call, for the compiler's scheduler, with all bins in use.

    `products` are the matrix products of a tile; `rereads` how often a bin's gradient crosses HBM.
    """
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
    """log sum_t exp(temp2 r_t) of the caption of each unit. Bins that are not in use hold undefined numbers."""
    blocks, grid, image, texts, row, rows = _grid(regions, text, images)
    units, width = text.units.shape[2:]
    relevance: Array = pl.pallas_call(
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
    return relevance


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
    """`d_regions` and `d_units` with this call's gradients added, and the gradient of the norms.

    The first two are updated in place. The last is [g, images, bins, 1, U], undefined in bins that are not in use.
    """
    images = d_pooled.shape[1]
    blocks, grid, image, texts, row, rows = _grid(regions, text, images)
    units, width = text.units.shape[2:]
    wide = rows.dtype
    in_hbm = pl.BlockSpec(memory_space=pl.ANY)
    gradients: tuple[Array, Array, Array] = pl.pallas_call(
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
    return gradients
