"""The attention tile of region_pooling.py, arranged for the TPU compiler. Formulas and names are those of that file.

What differs is the order of axes and of work. tests/losses/test_tpu_tile.py compares the results.

Regions lie along sublanes and units along lanes: arrays over both are [.., N, U]. A bin's units are in the order
`slots_last`: first the first unit of every slot, then the second of every slot. The bin of KINDS["tpu"] has 128 slots
of 4 units, so the t-th units of all slots are one column of vector registers, `_parts(array)[t]`. A sum over the units
of each slot is then an addition of registers, and a sum over the slots of a caption a product with a 0/1 matrix of 128
rows. No array over units and regions is transposed.

The softmax over units needs a shift of the scores. Where all scores of a tile lie within CLOSE of their middle, that
is the shift: exp loses nothing then. Else it is the maximum of each caption, as elsewhere.

Barriers part what XLA would otherwise fuse and compute two or three times, exponentials among it. They do not change
what is computed. The compiler's own schedule shows what each is worth (`python -m benchmarks.tpu_schedule`).

Axes: g, p, m, N, U, D as in region_pooling.py.
"""

import functools
import operator

import jax.numpy as jnp
from jax import lax
from jax.lax import Precision, optimization_barrier
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from afloc_jax.losses.region_pooling import (
    REGION_POOLINGS,
    AttendedCosine,
    Gradients,
    RegionPooling,
    Slots,
    TileImages,
    TileText,
    product,
)
from afloc_jax.losses.settings import NEAR_ONE_TEMPERATURE, LossSettings

# exp(-80) is 1.8e-35, a normal float32, and 512 units of exp(80) add up to 3e37, so that a caption's sum and shares
# are as precise as with a shift of its own.
CLOSE = 80.0


def pooling_for_tpu(settings: LossSettings) -> RegionPooling:
    """The pooling of `settings` for TPUs: this file's where it applies, else that of region_pooling.py."""
    ours = settings.region_pooling == "attention" and settings.attention_temperature <= NEAR_ONE_TEMPERATURE
    tpu = RegionPooling(_forward, _backward, _relevance, slots_last=True)
    return tpu if ours else REGION_POOLINGS[settings.region_pooling]


def _forward(
    images: TileImages, text: TileText, settings: LossSettings, keep: bool = True
) -> tuple[Float[Array, "g p U m"], PyTree]:
    regions, temperature = images.regions, settings.attention_temperature
    narrow, wide = regions.dtype, text.norms.dtype
    s = product("gpmnd,gud->gpmnu", regions, text.units)
    s, largest, smallest = optimization_barrier((s, s.max(axis=3), s.min(axis=3)))
    largest, smallest = jnp.max(jnp.stack([largest, -smallest]), axis=(1, 2, 3, 4)) * jnp.asarray([1, -1], s.dtype)
    exponentials, of_slots = optimization_barrier(_exponentials(s, largest, smallest, text.slots))
    total = _caption_sum(of_slots, text.slots, narrow)
    inverse = optimization_barrier(1 / jnp.where(total > 0, total, 1))  # empty slots have 0
    shares = [part * inverse for part in exponentials]
    wide_g = [jnp.exp(temperature * share) - 1 for share in shares]
    g = jnp.concatenate([part.astype(narrow) for part in wide_g], axis=4)
    g_sum = jnp.concatenate([part.sum(axis=3) for part in wide_g], axis=3)
    p, g, g_sum = optimization_barrier((shares if keep else [], g, g_sum))
    behind = g[:, :, :, images.count :].astype(wide).sum(axis=3)  # regions that fill up the array
    v = images.total[:, :, :, None] + product("gpmnu,gpmnd->gpmud", g, regions)
    cosine = AttendedCosine.of(text.units[:, None, None], text.norms[:, None, None], v, images.count + g_sum - behind)
    return jnp.swapaxes(cosine.r, 2, 3), (p, g, cosine)


def _relevance(images: TileImages, text: TileText, settings: LossSettings) -> Float[Array, "g p U m"]:
    return _forward(images, text, settings, keep=False)[0]


def _backward(
    images: TileImages, text: TileText, saved: PyTree, d_r: Float[Array, "g p U m"], settings: LossSettings
) -> Gradients:
    cosine: AttendedCosine
    p, g, cosine = saved
    regions, slot = images.regions, text.slots.valid.shape[2]
    narrow, wide = regions.dtype, text.norms.dtype
    norms, d_r = text.norms[:, None, None], jnp.swapaxes(d_r, 2, 3)  # [g, 1, 1, U], [g, p, m, U]
    of_units = jnp.broadcast_to(text.units[:, None, None], cosine.v.shape)
    through_cosine = cosine.gradient(of_units, norms, d_r)
    d_v = through_cosine.v.astype(narrow)
    d_v, d_total = optimization_barrier((d_v, d_v.sum(axis=3, dtype=wide)))
    weight = settings.attention_temperature * jnp.concatenate(p, axis=4) * (g.astype(wide) + 1)
    d_e = product("gpmud,gpmnd->gpmnu", d_v, regions) + through_cosine.total[..., None, :]
    p_d_p = optimization_barrier(weight * d_e)
    of_slots = functools.reduce(operator.add, _parts(p_d_p, slot))
    within = optimization_barrier(_caption_sum(of_slots, text.slots, narrow))
    parts = zip(_parts(p_d_p, slot), p, strict=True)
    d_s = optimization_barrier(jnp.concatenate([(d - share * within).astype(narrow) for d, share in parts], axis=4))
    d_regions = product(
        "gpmnu,gpmud->gpmnd",
        jnp.concatenate([d_s, g], axis=4),
        jnp.concatenate([of_units, d_v], axis=3),
    )
    d_units = product("gpmnu,gpmnd->gpud", d_s, regions) + through_cosine.units.sum(axis=2)
    # What a tile adds is written in the precision of the products; it is summed over tiles in the wide one.
    return Gradients(
        (d_regions.astype(narrow),),
        d_total,
        d_units.astype(narrow),
        through_cosine.norms.sum(axis=2),
    )


def slots_last(array: Shaped[Array, "..."], slot: int, axis: int) -> Shaped[Array, "..."]:
    """Units in the order of bins, slot by slot, to the first unit of every slot, the second of every slot, ..."""
    return _swapped(array, -1, slot, axis)


def slots_first(array: Shaped[Array, "..."], slot: int, axis: int) -> Shaped[Array, "..."]:
    """The inverse of `slots_last`."""
    return _swapped(array, slot, -1, axis)


def _swapped(array: Array, rows: int, columns: int, axis: int) -> Array:
    split = array.reshape(*array.shape[:axis], rows, columns, *array.shape[axis + 1 :])
    return jnp.swapaxes(split, axis, axis + 1).reshape(array.shape)


def _parts(array: Float[Array, "g p m N U"], slot: int) -> list[Float[Array, "g p m N slots"]]:
    """The first units of all slots, the second, ..."""
    slots = array.shape[4] // slot
    return [lax.slice_in_dim(array, t * slots, (t + 1) * slots, axis=4) for t in range(slot)]


def _caption_sum(
    of_slots: Float[Array, "g p m N slots"], slots: Slots, narrow: jnp.dtype
) -> Float[Array, "g p m N slots"]:
    """For each slot the sum over the slots of its caption, by products with ones and zeros.

    Where the features are bfloat16, a number is two of them, to 2^-17 of it; else full precision keeps a plain sum.
    """
    equation = "gst,gpmnt->gpmns"
    if narrow != jnp.bfloat16:
        return jnp.einsum(equation, slots.same.astype(of_slots.dtype), of_slots, precision=Precision.HIGHEST)
    same, high = slots.same.astype(narrow), of_slots.astype(narrow)
    low = (of_slots - high.astype(of_slots.dtype)).astype(narrow)
    return product(equation, same, high) + product(equation, same, low)


def _exponentials(
    s: Float[Array, "g p m N U"], largest: Float[Array, ""], smallest: Float[Array, ""], slots: Slots
) -> tuple[list[Float[Array, "g p m N slots"]], Float[Array, "g p m N slots"]]:
    """exp(s - shift) of the units of all slots in parts, 0 where there is no unit, and its sum over each slot's units.

    The shift is the same for all units of a caption and region. `largest` and `smallest` are those of all scores.
    """
    slot = slots.valid.shape[2]
    valid = optimization_barrier(jnp.moveaxis(slots.valid, 2, 0)[:, :, None, None, None].astype(s.dtype))

    def shifted(s: Array, shift: Array) -> tuple[list[Array], Array]:
        units = zip(_parts(s, slot), valid, strict=True)
        parts = [jnp.where(there > 0, jnp.exp(part - shift), 0) for part, there in units]
        return parts, functools.reduce(operator.add, parts)

    def of_captions(s: Array) -> tuple[list[Array], Array]:
        units = zip(_parts(s, slot), valid, strict=True)
        of_slots = functools.reduce(jnp.maximum, (jnp.where(there > 0, part, -jnp.inf) for part, there in units))
        found = caption_max(of_slots, slots.same)
        return shifted(s, jnp.where(found > -jnp.inf, found, largest))  # empty slots

    close = largest - smallest <= 2 * CLOSE
    found: tuple[list[Array], Array] = lax.cond(close, lambda s: shifted(s, (largest + smallest) / 2), of_captions, s)
    return found


def caption_max(
    of_slots: Float[Array, "g p m N slots"], same: Bool[Array, "g slots slots"]
) -> Float[Array, "g p m N slots"]:
    """For each slot the largest value among the slots of its caption, which are neighbours.

    After the step of distance d every slot has seen those at most 2 d - 1 away.
    """
    slots, distance = same.shape[1], 1
    while distance < slots:
        neighbours = same & jnp.eye(slots, k=distance, dtype=bool)  # not jnp.diagonal: a gather is slow
        linked = neighbours.any(axis=2)[:, None, None, None, :-distance]  # [g, 1, 1, 1, slots - distance]
        after = jnp.where(linked, of_slots[..., distance:], -jnp.inf)
        before = jnp.where(linked, of_slots[..., :-distance], -jnp.inf)
        nothing = jnp.full((*of_slots.shape[:4], distance), -jnp.inf, of_slots.dtype)
        after, before = (jnp.concatenate(pair, axis=4) for pair in ((after, nothing), (nothing, before)))
        of_slots = jnp.maximum(of_slots, jnp.maximum(after, before))
        distance *= 2
    return of_slots
