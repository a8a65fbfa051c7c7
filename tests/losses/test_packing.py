"""Captions in bins: all units there once, no caption split over bins, few bins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import first_fit_decreasing, pack

from afloc_jax.losses.packing import SLOT, bin_slots, packed, unpacked


@pytest.mark.parametrize(
    ("counts", "length", "slots"),
    [([97, 1, 50, 8, 9, 30, 33, 97], 97, 13), ([1], 1, 12), ([8] * 5, 8, 2), ([20, 20, 20, 1], 20, 7)],
)
def test_every_unit_lies_in_one_place_and_comes_back(counts, length, slots):
    packing = pack(jnp.array(counts), length, slots)
    units = np.arange(len(counts) * length).reshape(len(counts), length)
    inside = units[np.arange(length) < np.array(counts)[:, None]]
    assert sorted(np.asarray(packing.source)[packing.valid]) == inside.tolist()
    there = jax.jit(lambda packing, units: unpacked(packing, packed(packing, units)))(packing, units)
    packing = jax.tree.map(np.asarray, packing)
    np.testing.assert_array_equal(there, np.where(np.arange(length) < np.array(counts)[:, None], units, 0))
    for caption, first in enumerate(packing.first_slot):
        bins, slot = np.nonzero(packing.caption == caption)
        assert len(set(bins)) == 1 and len(slot) == -(-counts[caption] // SLOT)
        assert bins[0] * slots + slot[0] == first
        np.testing.assert_array_equal(np.diff(slot), 1)
    assert packing.used == len(np.unique(np.nonzero(packing.caption < len(counts))[0]))


def test_short_captions_use_few_bins():
    counts = jnp.array([3, 40, 8, 16, 9, 24, 24, 30])
    slots = bin_slots(97, 96)
    packing = pack(counts, 97, slots)
    assert slots == 13  # the longest caption decides
    assert packing.used == 2  # 22 slots in bins of 13


@pytest.mark.parametrize("slots", [13, 16, 32, 64])
def test_captions_lie_where_first_fit_decreasing_puts_them(slots):
    rng = np.random.default_rng(slots)
    for captions in (1, 7, 128):
        counts = np.clip(rng.normal(36, 25, captions).astype(int), 1, 97)
        packing = pack(jnp.array(counts), 97, slots)
        first_slot, filled = first_fit_decreasing(counts, slots)
        assert packing.first_slot.tolist() == first_slot and packing.used == len(filled)
