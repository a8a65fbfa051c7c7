"""The tile arranged for TPUs, on a CPU: the numbers of the definition, whatever the shapes, lengths and spreads."""

import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_all_close, assert_is_the_definition, assert_near_the_float64_definition, both, random_case

from afloc_jax.losses import tpu_tile
from afloc_jax.losses.settings import PUBLISHED

LENGTHS = [97, 20, 41, 96, 8, 9, 33, 1, 64, 97, 50, 3]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("regions", "units", "width", "counts", "devices", "spread"),
    [
        (5, 7, 3, [7, 1, 4], 1, 1),
        (1, 1, 1, [1], 1, 1),
        (9, 97, 16, LENGTHS, 4, 1),  # several bins
        (9, 97, 16, LENGTHS, 1, 30),  # scores so far apart that each caption needs a shift of its own
        (17, 600, 8, [600, 2], 1, 1),
    ],
)
def test_value_and_gradients_are_those_of_the_definition(regions, units, width, counts, devices, spread):
    found, *case = random_case(len(counts), regions, units, width, counts)
    assert_is_the_definition((found * spread, *case), devices=devices, platform="tpu", rtol=1e-11)


@pytest.mark.parametrize(("dtype", "of_loss", "of_gradient"), [("float32", 1e-5, 1e-4), ("bfloat16", 4e-4, 0.02)])
def test_lower_precisions_are_near_the_float64_definition(dtype, of_loss, of_gradient):
    case = random_case(7, 50, 40, 64, [40, 3, 11, 1, 8, 25, 17], jnp.dtype(dtype))
    assert_near_the_float64_definition(case, PUBLISHED, of_loss, of_gradient, "tpu")


@pytest.mark.usefixtures("float64")
def test_a_tiny_unit_is_clamped_as_in_the_definition():
    regions, units, counts = random_case(3, 6, 5, 4, [5, 2, 3])
    case = regions, units.at[0, 1].multiply(1e-9), counts
    (parts, gradients), (expected, expected_gradients) = both(case, platform="tpu")
    assert_all_close(parts, expected, rtol=1e-11, atol=1e-12)
    assert_all_close(gradients, expected_gradients, rtol=1e-7, atol=1e-9)


def test_the_largest_value_of_a_caption_reaches_all_its_slots():
    caption = np.array([0, 0, 0, 1, 2, 2, 2, 2, 2, 3, 3])
    values = np.random.default_rng(0).standard_normal((1, 1, 1, 4, len(caption)))
    found = tpu_tile.caption_max(jnp.asarray(values), jnp.asarray(caption[:, None] == caption)[None])
    for index in range(4):
        own = np.stack([values[..., caption == index].max(axis=-1)] * (caption == index).sum(), axis=-1)
        np.testing.assert_array_equal(found[..., caption == index], own.astype(np.float32))
