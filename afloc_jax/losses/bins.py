"""The captions of some contrast groups in bins, as tiles take them. packing.py says where each unit lies."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from afloc_jax.losses.packing import Captions, Packing, first_fit, pack, packed
from afloc_jax.losses.region_pooling import Slots, TileText, text_softmax
from afloc_jax.losses.settings import LossSettings
from afloc_jax.losses.tile_size import slots_of_bin
from afloc_jax.losses.tpu_tile import slots_last


class PackedCaptions(NamedTuple):
    """The packed captions of g groups, of which a tile takes `at_once` bins."""

    packing: Packing
    units: Float[Array, "g bins U D"]
    norms: Float[Array, "g bins U"]
    tiles: Int[Array, ""]  # as many as hold the bins in use by any group
    at_once: int

    @classmethod
    def make(
        cls, text: Captions, settings: LossSettings, platform: str, at_once: int, units_last: bool
    ) -> "PackedCaptions":
        """The captions packed; with `units_last` in the order of `tpu_tile.slots_last`."""
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
        if units_last:
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
