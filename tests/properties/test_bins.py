"""Properties of captions packed into bins, against a plain loop of first-fit decreasing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import first_fit_decreasing, pack
from hypothesis import given
from hypothesis import strategies as st

from afloc_jax.losses.packing import SLOT, bin_slots, packed, unpacked

round_trip = jax.jit(lambda packing, units: unpacked(packing, packed(packing, units)))


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
    assert filled[filled > 0].tolist() == first_fit_decreasing(counts, slots)[1]
    assert packing.used == (filled > 0).sum() and (filled[: packing.used] > 0).all()
    for caption in range(captions):
        bins, places = np.nonzero(packing.caption == caption)
        assert len(set(bins)) == 1 and places.tolist() == list(range(places[0], places[0] + needs[caption]))

    values = np.arange(captions * length * 2.0, dtype=np.float32).reshape(captions, length, 2)
    there = np.arange(length) < np.array(counts)[:, None]
    np.testing.assert_array_equal(round_trip(packing, values), np.where(there[..., None], values, 0))
