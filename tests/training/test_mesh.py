"""The order of devices in the mesh of a run."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from afloc_jax.training import mesh as mesh_module
from afloc_jax.training.mesh import build_mesh, closed_walk
from afloc_jax.training.settings import RunConfig
from configs.afloc import get_config


def chips(rows, columns, *, start=(0, 0), depth=1, cores=1, platform="tpu"):
    """Stand-ins for devices, with what JAX says of their place, in an order of no meaning."""
    found = [
        SimpleNamespace(platform=platform, coords=[start[0] + row, start[1] + column, layer], core_on_chip=core)
        for row in range(rows) for column in range(columns) for layer in range(depth) for core in range(cores)
    ]  # fmt: skip
    return [found[place] for place in np.random.default_rng(0).permutation(len(found))]


@pytest.mark.parametrize(
    ("rows", "columns"), [(2, 2), (2, 4), (4, 2), (4, 4), (4, 8), (8, 8), (16, 16), (3, 4), (4, 3), (5, 2), (2, 5)]
)
def test_each_chip_of_a_flat_grid_is_linked_with_the_next_and_the_last_with_the_first(rows, columns):
    devices = chips(rows, columns, start=(4, 8))
    walk = closed_walk(devices)
    assert sorted(map(id, walk)) == sorted(map(id, devices))
    places = np.array([device.coords for device in walk])
    np.testing.assert_array_equal(np.abs(places - np.roll(places, -1, axis=0)).sum(axis=1), 1)


@pytest.mark.parametrize(
    "devices",
    [
        chips(4, 4, platform="cpu"),
        chips(1, 8),
        chips(3, 3),
        chips(2, 2, depth=2),
        chips(2, 2, cores=2),
        [device for device in chips(4, 4) if device.coords[:2] not in ([0, 0], [3, 3])],
    ],
    ids=["other devices", "a line", "an odd number", "a cube", "two cores a chip", "gaps"],
)
def test_other_devices_have_no_closed_walk(devices):
    assert closed_walk(devices) is None


@pytest.mark.parametrize("one_group", [True, False])
def test_devices_of_a_cpu_keep_their_order(one_group):
    mesh = build_mesh(jax.devices()[:4], one_group=one_group)
    assert mesh.shape == {"data": 4, "fsdp": 1} and mesh.devices.reshape(-1).tolist() == jax.devices()[:4]


@pytest.mark.parametrize(("fsdp", "one_group", "walked"), [(1, True, True), (1, False, False), (2, True, False)])
def test_the_walk_is_taken_where_all_collectives_span_all_devices(fsdp, one_group, walked, monkeypatch):
    """Other groups of devices would have shapes for which the compiler of v5e aborts."""
    devices = jax.devices()[:4]
    monkeypatch.setattr(mesh_module, "closed_walk", lambda given: list(reversed(given)))
    found = build_mesh(devices, fsdp, one_group=one_group).devices.reshape(-1).tolist()
    assert (found == devices[::-1]) == walked and sorted(d.id for d in found) == sorted(d.id for d in devices)


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        ({}, True),
        ({"loss.contrast_group": 16, "model.image.statistics_group": 16}, True),
        ({"loss.contrast_group": 8}, False),
        ({"model.image.statistics_group": 8}, False),
    ],
)
def test_a_run_is_one_group_where_contrast_and_statistics_are(changes, whole):
    config = get_config()
    config.training.batch_size = 16
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    assert RunConfig.from_config(config).one_group is whole
