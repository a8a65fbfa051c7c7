"""Properties of captions packed into bins, against a plain loop of first-fit decreasing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afloc_jax.losses import packing as packing_module
from afloc_jax.losses.packing import SLOT, bin_slots, packed, unpacked


@partial(jax.jit, static_argnums=(1, 2))
def pack(counts, length, slots):
    return packing_module.pack(counts, length, slots, packing_module.first_fit(counts, length, slots))


round_trip = jax.jit(lambda packing, units: unpacked(packing, packed(packing, units)))


def first_fit_decreasing(needs: list[int], slots: int) -> list[int]:
    """Slots filled in each bin."""
    bins: list[int] = []
    for need in sorted(needs, reverse=True):
        fitting = [number for number, filled in enumerate(bins) if filled + need <= slots]
        if fitting:
            bins[fitting[0]] += need
        else:
            bins.append(need)
    return bins


# Few shapes, because each is compiled.
@pytest.mark.parametrize(("captions", "length", "units"), [(1, 9, 8), (7, 40, 64), (16, 97, 128)])
@given(data=st.data())
def test_captions_are_packed_whole_and_as_tightly_as_first_fit_decreasing(captions, length, units, data):
    counts = data.draw(st.lists(st.integers(1, length), min_size=captions, max_size=captions))
    slots = bin_slots(length, units)
    packing = jax.tree.map(np.asarray, pack(jnp.array(counts), length, slots))

    taken = packing.source[packing.valid]
    assert sorted(taken) == [caption * length + unit for caption in range(captions) for unit in range(counts[caption])]
    needs = [-(-count // SLOT) for count in counts]
    filled = (packing.caption < captions).sum(axis=1)
    assert filled[filled > 0].tolist() == first_fit_decreasing(needs, slots)
    assert packing.used == (filled > 0).sum() and (filled[: packing.used] > 0).all()
    for caption in range(captions):
        bins, places = np.nonzero(packing.caption == caption)
        assert len(set(bins)) == 1 and places.tolist() == list(range(places[0], places[0] + needs[caption]))

    values = np.arange(captions * length * 2.0, dtype=np.float32).reshape(captions, length, 2)
    there = np.arange(length) < np.array(counts)[:, None]
    np.testing.assert_array_equal(round_trip(packing, values), np.where(there[..., None], values, 0))
