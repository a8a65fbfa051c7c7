"""One tile of the kernels in attention.py, on values in VMEM: attention, pooling and their gradients.

Units lie along sublanes and regions along lanes, so that a slot of 8 units is one row of vector registers. A softmax
over the units of a caption is a sum within its slots and then over its slots. Values of one number per unit are columns
[U, 1] here.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from afloc_jax.losses.definition import SMALLEST_NORM_PRODUCT
from afloc_jax.losses.packing import SLOT
from afloc_jax.losses.settings import LossSettings

Ref: TypeAlias = Any  # a block of memory that a kernel reads and writes; JAX has no public type for one

LANES = 128
BLOCK_REGIONS = 512  # regions of a block at most: values between two matrix products are [U, BLOCK_REGIONS]
HIDDEN = -1e30  # added to the scores of padding; finite, so that the difference of two such scores is not NaN
ROWS = 8  # sublanes of a float32 register: even one row takes as many


class Blocks(NamedTuple):
    """How N = `regions` regions are cut into `number` blocks of `size`; the last block is padded."""

    regions: int
    number: int
    size: int

    @classmethod
    def of(cls, regions: int) -> "Blocks":
        count = -(-regions // BLOCK_REGIONS)
        return cls(regions, count, -(-regions // (count * LANES)) * LANES)

    @property
    def padded(self) -> int:
        return self.number * self.size


def product(left: Array, right: Array, contract: tuple[int, int], wide: DTypeLike) -> Array:
    return lax.dot_general(left, right, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=wide)


def column(rows: Float[Array, "ROWS U"], index: int) -> Float[Array, "U 1"]:
    return rows.T[:, index : index + 1]


def row(column: Float[Array, "U 1"]) -> Float[Array, "1 U"]:
    return jnp.broadcast_to(column, (column.shape[0], LANES)).T[:1]


def spread(slot_values: Float[Array, "slots n"]) -> Float[Array, "U n"]:
    """Each slot's value for each of its units."""
    slots, width = slot_values.shape
    return jnp.broadcast_to(slot_values[:, None], (slots, SLOT, width)).reshape(slots * SLOT, width)


def by_slot(tile: Float[Array, "U n"]) -> Float[Array, "slots SLOT n"]:
    return tile.reshape(-1, SLOT, tile.shape[1])


def caption_max(slot_values: Float[Array, "slots n"], same: Float[Array, "slots slots"]) -> Float[Array, "slots n"]:
    """For each slot the largest value among the slots of its caption."""
    apart = 2 * HIDDEN * (1 - same)
    candidates = (slot_values[t : t + 1] + apart[:, t : t + 1] for t in range(same.shape[0]))
    return functools.reduce(jnp.maximum, candidates)


def caption_sum(slot_values: Float[Array, "slots n"], same: Float[Array, "slots slots"]) -> Float[Array, "slots n"]:
    """For each slot the sum over the slots of its caption. There are so few that a matrix product would cost more."""
    parts = (same[:, t : t + 1] * slot_values[t : t + 1] for t in range(same.shape[0]))
    return functools.reduce(jnp.add, parts)


def block_of(regions_ref: Ref, block: int, blocks: Blocks) -> Float[Array, "n D"]:
    """One block of regions, with zeros beyond the last region, where VMEM holds undefined numbers, possibly NaN."""
    start = block * blocks.size
    regions: Array = regions_ref[pl.ds(start, blocks.size), :]
    if start + blocks.size <= blocks.regions:
        return regions
    there = lax.broadcasted_iota(jnp.int32, regions.shape, 0) < blocks.regions - start
    return jnp.where(there, regions, jnp.zeros_like(regions))


class Pooled(NamedTuple):
    """The forward pass of one tile: columns of one number per unit."""

    relevance: Float[Array, "U 1"]  # r, the cosine
    denominator: Float[Array, "U 1"]  # |w| |v|, or the clamp
    norms: Float[Array, "U 1"]  # |w|
    v_squared: Float[Array, "U 1"]  # |v|^2
    free: Bool[Array, "U 1"]  # whether the denominator is not clamped
    pooled: Float[Array, "U 1"]  # log sum_t exp(temp2 r_t) over the units of the unit's caption
    share: Float[Array, "U 1"]  # exp(temp2 r) / sum_t exp(temp2 r_t); 0 for padding


def forward(
    regions_ref: Ref,
    units_ref: Ref,
    rows_ref: Ref,
    same_ref: Ref,
    v_ref: Ref,
    kept_refs: Sequence[Ref],
    settings: LossSettings,
    blocks: Blocks,
) -> Pooled:
    """Attention and pooling of one tile. Writes v [U, D] to `v_ref`, and s, p, e [U, N] to `kept_refs` where given."""
    rows, units, same = rows_ref[...], units_ref[...], same_ref[...]
    wide = rows.dtype
    norms, hidden = column(rows, 0), column(rows, 1)
    dot = e_sum = jnp.zeros_like(norms)
    for block in range(blocks.number):
        regions = block_of(regions_ref, block, blocks)
        s = product(units, regions, (1, 1), wide)
        scores = s + hidden
        largest = caption_max(by_slot(scores).max(axis=1), same)
        weights = jnp.exp(scores - spread(largest))
        p = weights * spread(1 / caption_sum(by_slot(weights).sum(axis=1), same))
        # The cosine does not depend on the scale of e, so any constant may be subtracted from p. region_pooling.py
        # subtracts the maximum over regions, which is not known here before the last block. p lies between 0 and 1, so
        # 1/2 keeps e between exp(-temp1 / 2) and exp(temp1 / 2): e and the square of v neither overflow nor vanish
        # (settings.py bounds temp1).
        e = jnp.exp(settings.attention_temperature * (p - 0.5))
        if (block + 1) * blocks.size > blocks.regions:
            there = lax.broadcasted_iota(jnp.int32, e.shape, 1) < blocks.regions - block * blocks.size
            e = jnp.where(there, e, 0)
        for ref, value in zip(kept_refs, (s, p, e), strict=False):
            ref[:, pl.ds(block * blocks.size, blocks.size)] = value
        v = product(e.astype(regions.dtype), regions, (1, 0), wide)
        v_ref[...] = v if block == 0 else v_ref[...] + v
        dot += jnp.sum(e * s, axis=1, keepdims=True)
        e_sum += jnp.sum(e, axis=1, keepdims=True)
    v_squared = jnp.sum(v_ref[...] ** 2, axis=1, keepdims=True)
    norm_product = norms * jnp.sqrt(v_squared)
    smallest = SMALLEST_NORM_PRODUCT * e_sum  # the published clamp is on the normalised mean
    denominator = jnp.maximum(norm_product, smallest)
    r = dot / denominator
    # r is at most 1, so temp2 takes the place of the maximum in the log-sum-exp (settings.py bounds temp2).
    t = settings.pooling_temperature
    weights = jnp.exp(t * (r - 1) + hidden)
    total = spread(caption_sum(by_slot(weights).sum(axis=1), same))
    total = jnp.where(total > 0, total, 1)  # empty slots
    return Pooled(r, denominator, norms, v_squared, norm_product > smallest, t + jnp.log(total), weights / total)


class Gradient(NamedTuple):
    """The gradients of one tile's attention: columns of one number per unit, and that of v through its norm."""

    dot: Float[Array, "U 1"]  # with respect to sum_n e_n s_n
    e_sum: Float[Array, "U 1"]  # with respect to sum_n e_n
    norms: Float[Array, "U 1"]
    v: Float[Array, "U D"]


def backward(d_pooled: Float[Array, "U 1"], tile: Pooled, v_ref: Ref, settings: LossSettings) -> Gradient:
    """From the gradient of each unit's `pooled`, the gradients of r = (sum_n e_n s_n) / denominator.

        dr = temp2 share dpooled                       d(sum_n e_n s_n) = dr / denominator
        d|w| = -dr r / |w|                             dv = -dr r v / |v|^2        (its part through the norm of v)

    Where the denominator is clamped to 1e-8 sum_n e_n, the last two are 0 and d(sum_n e_n) = -dr r 1e-8 / denominator.
    """
    d_r = settings.pooling_temperature * tile.share * d_pooled
    free, through = tile.free, -d_r * tile.relevance
    return Gradient(
        dot=d_r / tile.denominator,
        e_sum=jnp.where(free, 0, through / tile.denominator * SMALLEST_NORM_PRODUCT),
        norms=jnp.where(free, through / jnp.where(free, tile.norms, 1), 0),
        v=jnp.where(free, through / jnp.where(free, tile.v_squared, 1), 0) * v_ref[...],
    )


def features_backward(
    gradient: Gradient,
    regions_ref: Ref,
    units: Float[Array, "U D"],
    same: Float[Array, "slots slots"],
    kept_refs: Sequence[Ref],
    d_regions_ref: Ref,
    d_units_ref: Ref,
    settings: LossSettings,
    blocks: Blocks,
) -> None:
    """Adds the gradient of the regions to `d_regions_ref` [N, D]; writes that of the units to `d_units_ref` [U, D].

    For each block of regions, with g = d(sum_n e_n s_n), h = d(sum_n e_n) and dv of `backward`:

        de = g s + h + dv C^T                          ds = g e + temp1 (p e de - p sum_u p e de)
        dC = ds^T W + e^T dv                           dW = ds C

    w . v is computed as sum_n e_n s_n, so dr w / (|w| |v|) and dr v / (|w| |v|) of region_pooling.py come with ds.
    """
    wide = d_units_ref.dtype
    d_v = gradient.v.astype(units.dtype)
    for block in range(blocks.number):
        there = pl.ds(block * blocks.size, blocks.size)
        regions = block_of(regions_ref, block, blocks)
        s, p, e = (ref[:, there] for ref in kept_refs)
        d_e = gradient.dot * s + gradient.e_sum + product(d_v, regions, (1, 1), wide)
        p_d_p = settings.attention_temperature * p * e * d_e
        within = caption_sum(by_slot(p_d_p).sum(axis=1), same)
        d_s = (gradient.dot * e + p_d_p - p * spread(within)).astype(units.dtype)
        d_regions_ref[there, :] += product(d_s, units, (0, 0), wide)
        d_regions_ref[there, :] += product(e.astype(units.dtype), d_v, (0, 0), wide)
        d_units = product(d_s, regions, (1, 0), wide)
        d_units_ref[...] = d_units if block == 0 else d_units_ref[...] + d_units
