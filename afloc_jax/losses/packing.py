"""Captions of different lengths packed into bins of one fixed size, so that little is spent on padding under jit.

A bin has `slots` slots of S units, together U = slots * S units. A caption of c units fills ceil(c / S) consecutive
slots of one bin and shares the bin with other captions. Every bin has the same shape, so one compiled tile
serves any mixture of lengths. The number of bins in use is a traced value: short captions mean fewer bins, not more
padding. With slots of 4 units, bins of 4 slots and captions A, B, C of 9, 6 and 3 units:

    bin 0   AAAA AAAA A... CCC.
    bin 1   BBBB BB.. .... ....

Captions are placed longest first, each into the first bin with room (first-fit decreasing).

jit needs a bound on the number of bins before any count is known. Let `longest` be the slots of a caption of full
length, and m = floor(slots / longest). A bin with fewer than m captions has at least `longest` free slots, so the next
caption fits and no further bin is opened. Therefore all bins before the last one in use hold at least m captions, and I
captions need at most ceil(I / m) bins.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

# Units of a slot, unless the kind of device has another (tile_size.py). A caption wastes about half a slot.
SLOT = 8


class Captions(NamedTuple):
    """The text side of one level: the captions of g contrast groups, I captions of T units each."""

    units: Float[Array, "g I T D"]
    norms: Float[Array, "g I T"]  # norms of the units, for the cosines; in at least float32
    counts: Int[Array, "g I"]  # the number of valid units, at least 1; they come first
    first_slot: Int[Array, "g I"] | None = None  # from `first_fit`, where the captions have been placed already


@flax.struct.dataclass
class Packing:
    """Where every unit of I captions lies among `bins` bins of `slots` slots. Made by `pack`."""

    source: Int[Array, "bins slots S"]  # index of the unit in the flattened [I * T] captions
    valid: Bool[Array, "bins slots S"]  # False where no unit lies; `source` is then 0
    caption: Int[Array, "bins slots"]  # index of the caption in each slot; I for an empty slot
    first_slot: Int[Array, " I"]  # each caption's first slot in the flattened [bins * slots]
    place: Int[Array, "I T"]  # each unit's index in the flattened [bins * U]; -1 for units that are not valid
    used: Int[Array, ""]  # the number of bins that hold a caption; they come first


def bin_slots(length: int, units: int, slot: int = SLOT) -> int:
    """The slots of a bin of at most `units` units, or of more where a caption of `length` units needs them."""
    return max(-(-length // slot), units // slot)


def first_fit(counts: Int[Array, " I"], length: int, slots: int, slot: int = SLOT) -> Int[Array, " I"]:
    """Each caption's first slot in the flattened [bins * slots], by first-fit decreasing (see the top of this file).

    Args:
        counts: the valid units of each caption, from 1 to `length`.
        length: T, the padded length of a caption; static.
        slots: slots of a bin, at least ceil(length / slot) (see `bin_slots`); static.
        slot: units of a slot; static.
    """
    captions = counts.shape[0]
    longest = -(-length // slot)
    bins = bins_at_most(captions, length, slots, slot)
    needs = -(-counts // slot)
    earlier = jnp.arange(captions) < jnp.arange(captions)[:, None]
    # Which caption of its need each one is.
    rank = jnp.sum(earlier & (needs == needs[:, None]), axis=1, dtype=needs.dtype)

    # All captions of one need are placed at once: each bin takes as many of them as it has room for, the first bin
    # first. That is what first-fit does with them one by one, in `longest` steps instead of I.
    def place(step: Int[Array, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
        filled, first_slot = carry
        need = (longest - step).astype(needs.dtype)
        room = (slots - filled) // need  # [bins], in captions
        until = jnp.cumsum(room, dtype=needs.dtype)
        chosen = jnp.sum(until <= rank[:, None], axis=1, dtype=needs.dtype)  # [I]
        start = chosen * slots + filled[chosen] + (rank - until[chosen] + room[chosen]) * need
        taken = jnp.clip(jnp.sum(needs == need, dtype=needs.dtype) - until + room, 0, room)
        return filled + taken * need, jnp.where(needs == need, start, first_slot)

    nothing = jnp.zeros(bins, needs.dtype), jnp.zeros(captions, needs.dtype)
    first_slot: Array
    _, first_slot = jax.lax.fori_loop(0, longest, place, nothing)
    return first_slot


def pack(counts: Int[Array, " I"], length: int, slots: int, first_slot: Int[Array, " I"], slot: int = SLOT) -> Packing:
    """Where every unit lies, with the captions' places from `first_fit` of the same counts, length, slots and slot."""
    captions, longest, needs = counts.shape[0], -(-length // slot), -(-counts // slot)
    bins = bins_at_most(captions, length, slots, slot)

    # Invert the assignment: for every slot of the bins, find its caption and which of the caption's slots it is
    # (`part`). Empty slots get an additional caption, index I, which has no units.
    parts = jnp.arange(longest, dtype=counts.dtype)
    places = jnp.where(parts < needs[:, None], first_slot[:, None] + parts, bins * slots)  # [I, longest]
    caption = jnp.full(bins * slots, captions).at[places].set(jnp.arange(captions)[:, None], mode="drop")
    part = jnp.zeros(bins * slots, counts.dtype).at[places].set(parts, mode="drop")
    unit = part[:, None] * slot + jnp.arange(slot)  # [bins * slots, S]
    valid = unit < jnp.append(counts, 0)[caption][:, None]
    source = jnp.where(valid, caption[:, None] * length + unit, 0)
    unit_place = first_slot[:, None] * slot + jnp.arange(length)
    return Packing(
        source=source.reshape(bins, slots, slot),
        valid=valid.reshape(bins, slots, slot),
        caption=caption.reshape(bins, slots),
        first_slot=first_slot,
        place=jnp.where(jnp.arange(length) < counts[:, None], unit_place, -1),
        used=first_slot.max() // slots + 1,
    )


def bins_at_most(captions: int, length: int, slots: int, slot: int = SLOT) -> int:
    """As many bins as captions of at most `length` units can need (see the top of this file)."""
    return -(-captions // (slots // -(-length // slot)))


def packed(packing: Packing, units: Shaped[Array, "I T *D"]) -> Shaped[Array, "bins U *D"]:
    """The units in the order of the bins, U = slots * S. Places that are not `valid` hold a copy of some unit."""
    flat = units.reshape(-1, *units.shape[2:])
    return flat[packing.source.reshape(packing.source.shape[0], -1)]


def unpacked(packing: Packing, values: Shaped[Array, "bins U *D"]) -> Shaped[Array, "I T *D"]:
    """The inverse of `packed`: values in the order of the captions, zero for units that are not valid."""
    flat = values.reshape(-1, *values.shape[2:])
    taken = flat[packing.place]
    there = packing.place >= 0
    return jnp.where(there.reshape(*there.shape, *[1] * (taken.ndim - 2)), taken, 0)
