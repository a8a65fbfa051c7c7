"""Where arrays live: one mesh axis, `data`. The batch is split over it, everything else is on every device."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def build_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices of all processes, or of `devices`.

    Axes are Auto: the compiler places the collectives. (Explicit ones, the default of `jax.make_mesh`, refuse products
    over a sharded batch.)
    """
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters, statistics and optimiser state."""
    return NamedSharding(mesh, PartitionSpec())


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes that a batch's first dimension is split over: all of them."""
    return tuple(mesh.axis_names)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: split along its first axis."""
    return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch, as global arrays over the mesh.

    `index` stays behind: it names records for messages and no device needs it.
    """
    sharding = batch_sharding(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items() if key != "index"
    }


def pad_batch(batch: Mapping[str, np.ndarray], multiple: int) -> Mapping[str, np.ndarray]:
    """The batch with empty pairs (black image, no token, counts 0) behind it, up to a multiple of `multiple` rows.

    The losses leave out pairs without a word, so in evaluation mode nothing depends on them.
    """
    rows = len(batch["image"])
    missing = -rows % multiple
    if not missing:
        return batch
    empty = {"word_ids": -1, "sentence_ids": -1}
    return {
        key: np.concatenate([value, np.full((missing, *value.shape[1:]), empty.get(key, 0), value.dtype)])
        for key, value in batch.items()
    }


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A tree of arrays on every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))
