"""Rows of a batch around the ring of devices, against plain indexing by NumPy, and what the program of a step sends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.training.group_order import in_group_order, rows_around
from afloc_jax.training.mesh import batch_sharding, build_mesh, place_batch
from tests.training.conftest import assembled, changed, tiny_config


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (2, 1), (3, 1), (8, 1), (8, 2), (8, 8)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, jnp.bfloat16])
def test_rows_are_those_of_plain_indexing(devices, fsdp, dtype):
    mesh = build_mesh(jax.devices()[:devices], fsdp)
    rng = np.random.default_rng(devices + fsdp)
    pairs = 5 * devices
    array = rng.integers(0, 256, (pairs, 3, 7)).astype(dtype)
    for order in (np.arange(pairs), np.arange(pairs)[::-1], rng.permutation(pairs), rng.integers(0, pairs, pairs)):
        placed = jax.device_put(array, batch_sharding(mesh)), jax.device_put(order, batch_sharding(mesh))
        found = jax.jit(lambda array, order: rows_around(array, order, mesh))(*placed)
        assert found.sharding.is_equivalent_to(batch_sharding(mesh), array.ndim) and found.dtype == array.dtype
        np.testing.assert_array_equal(found, array[order])


def test_no_device_gathers_the_images_of_all():
    """The images of all devices are an array of no device; those of one device travel. Texts are gathered."""
    run, _ = assembled(changed(tiny_config(), {"training.batch_size": 16}), 8)
    settings = changed(tiny_config(), {"loss.contrast_group": 8, "loss.contrast_group_order": "length"}).loss
    batch = {"image": np.zeros((16, 33, 31), np.uint8), "token_ids": np.ones((16, 9), np.int32)}
    order = jax.jit(lambda batch: in_group_order(batch, settings, run.mesh))
    program = order.lower(place_batch(batch, run.mesh)).compile().as_text()
    assert "u8[16,33,31]" not in program
    assert "u8[2,33,31]" in program and "collective-permute" in program
    assert "s32[16,9]" in program
