"""Captions of different lengths packed into bins of one fixed size, so that padding costs next to nothing under jit.

A bin has `slots` slots of `SLOT` units. A caption fills as many slots as it needs, all in the same bin, and shares the
bin with others. Every bin has the same shape, so one compiled tile serves any mixture of lengths, and the number of
bins in use is a traced value: short captions mean fewer bins, not more padding. With slots of 4 units, bins of 4 slots
and captions A, B, C of 9, 6 and 3 units:

    bin 0   AAAA AAAA A... CCC.
    bin 1   BBBB BB.. .... ....

jit needs the largest number of bins before it knows any count. Captions are placed longest first, each into the first
bin with room, so a bin is opened only when all open ones have less than `longest` free slots, and it then takes at
least floor(slots / longest) captions: I captions never need more than ceil(I / floor(slots / longest)) bins.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

SLOT = 8  # units; a caption wastes half of this on average, and accelerators like multiples of 8


class Captions(NamedTuple):
    """The text side of a level, of the captions of g contrast groups."""

    units: Float[Array, "g I T D"]
    norms: Float[Array, "g I T"]  # of the units, for the cosines; in at least float32
    counts: Int[Array, "g I"]  # valid units, which come first; at least 1


@flax.struct.dataclass
class Packing:
    """Where every unit of I captions lies among `bins` bins of `slots` slots. Made by `pack`."""

    source: Int[Array, "bins slots SLOT"]  # index of the unit in the flattened [I * T] captions
    valid: Bool[Array, "bins slots SLOT"]  # False: nothing lies here (source is then any existing unit)
    caption: Int[Array, "bins slots"]  # the caption in each slot; I for an empty slot
    first_slot: Int[Array, " I"]  # each caption's first slot in the flattened [bins * slots]
    place: Int[Array, "I T"]  # each unit's index in the flattened [bins * U]; -1 from the caption's count on
    used: Int[Array, ""]  # the leading bins that hold anything


def bin_slots(length: int, units: int) -> int:
    """Slots of a bin of about `units` units that a caption of `length` units fits into."""
    return max(-(-length // SLOT), units // SLOT)


def pack(counts: Int[Array, " I"], length: int, slots: int) -> Packing:
    """Packs captions of `counts` units (1 to `length`) into bins: longest first, each into the first bin with room."""
    captions = counts.shape[0]
    longest = -(-length // SLOT)
    bins = -(-captions // (slots // longest))
    needs = -(-counts // SLOT)
    order = jnp.argsort(-needs)

    def first_fit(filled: Int[Array, " bins"], need: Int[Array, ""]) -> tuple[Array, Array]:
        chosen = jnp.argmax(filled + need <= slots)
        return filled.at[chosen].add(need), chosen * slots + filled[chosen]

    filled, starts = jax.lax.scan(first_fit, jnp.zeros(bins, needs.dtype), needs[order])
    first_slot = jnp.zeros_like(starts).at[order].set(starts)

    # From the slots of captions to the units in each slot: a slot knows its caption and its part of it. Empty slots
    # belong to a caption of no units that stands behind the last.
    parts = jnp.arange(longest, dtype=counts.dtype)
    places = jnp.where(parts < needs[:, None], first_slot[:, None] + parts, bins * slots)  # [I, longest]
    caption = jnp.full(bins * slots, captions).at[places].set(jnp.arange(captions)[:, None], mode="drop")
    part = jnp.zeros(bins * slots, counts.dtype).at[places].set(parts, mode="drop")
    unit = part[:, None] * SLOT + jnp.arange(SLOT)  # [bins * slots, SLOT]
    valid = unit < jnp.append(counts, 0)[caption][:, None]
    source = jnp.where(valid, caption[:, None] * length + unit, 0)
    unit_place = first_slot[:, None] * SLOT + jnp.arange(length)
    return Packing(
        source=source.reshape(bins, slots, SLOT),
        valid=valid.reshape(bins, slots, SLOT),
        caption=caption.reshape(bins, slots),
        first_slot=first_slot,
        place=jnp.where(jnp.arange(length) < counts[:, None], unit_place, -1),
        used=(filled > 0).sum(),
    )


def packed(packing: Packing, units: Shaped[Array, "I T *D"]) -> Shaped[Array, "bins U *D"]:
    """The units in the order of the bins, U = slots * SLOT; where nothing lies there is some other unit."""
    flat = units.reshape(-1, *units.shape[2:])
    return flat[packing.source.reshape(packing.source.shape[0], -1)]


def unpacked(packing: Packing, values: Shaped[Array, "bins U *D"]) -> Shaped[Array, "I T *D"]:
    """The inverse of `packed`: values in the order of the captions, zero where a caption has no unit."""
    flat = values.reshape(-1, *values.shape[2:])
    taken = flat[packing.place]
    there = packing.place >= 0
    return jnp.where(there.reshape(*there.shape, *[1] * (taken.ndim - 2)), taken, 0)
