"""The order of a batch before it is split into contrast groups: pairs move between devices as pixels and token ids.

Their features would be a hundred times larger. Pixels are most of a batch all the same: if every device gathered those
of all pairs to pick its own, it would hold 4.4 GB for 16,384 images of 518 x 518. So they go around a ring of all
devices, and a device keeps the rows that are its own. Each holds two parts at a time, and sends what a gather sends.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int, Shaped

from afloc_jax.losses import LossSettings
from afloc_jax.losses.definition import length_order
from afloc_jax.training.mesh import batch_axes, batch_sharding

PIXELS = 3  # dimensions of an array with pixels or features of regions; most of a text have fewer


def in_group_order(batch: Mapping[str, Array], settings: LossSettings, mesh: Mesh) -> Mapping[str, Array]:
    """The batch in the order in which it is split into groups, see `loss.contrast_group_order`."""
    if settings.contrast_group_order == "batch":
        return batch
    order = length_order(batch["token_ids"])

    def sorted_rows(array: Array) -> Array:
        if array.ndim >= PIXELS:
            return rows_around(array, order, mesh)
        placed: Array = lax.with_sharding_constraint(array[order], batch_sharding(mesh))
        return placed

    return {name: sorted_rows(array) for name, array in batch.items()}


def rows_around(array: Shaped[Array, "B *s"], order: Int[Array, " B"], mesh: Mesh) -> Shaped[Array, "B *s"]:
    """`array[order]`, both split over all devices of the mesh, without all rows on one device."""
    axes = batch_axes(mesh)
    devices = mesh.size
    if devices == 1:
        return array[order]
    send = functools.partial(
        lax.ppermute, axis_name=axes, perm=[(device, (device + 1) % devices) for device in range(devices)]
    )

    def on_device(part: Shaped[Array, "b *s"], wanted: Int[Array, " b"]) -> Shaped[Array, "b *s"]:
        size, place = len(wanted), lax.axis_index(axes)

        def pick(hop: Int[Array, ""], part: Array, picked: Array) -> Array:
            row = wanted - (place - hop) % devices * size  # of the part that has come here from `hop` devices away
            here = (row >= 0) & (row < size)
            here = here.reshape(-1, *[1] * (part.ndim - 1))
            return jnp.where(here, part[jnp.clip(row, 0, size - 1)], picked)

        def step(hop: Int[Array, ""], parts: tuple[Array, Array]) -> tuple[Array, Array]:
            part, picked = parts
            return send(part), pick(hop, part, picked)

        part, picked = lax.fori_loop(0, devices - 1, step, (part, jnp.zeros_like(part)))
        return pick(jnp.int32(devices - 1), part, picked)

    split = PartitionSpec(axes)
    # check_vma tracks how values vary over devices; only autodiff through the shard_map would need that.
    around = jax.shard_map(on_device, mesh=mesh, in_specs=(split, split), out_specs=split, check_vma=False)
    taken: Array = around(array, order)
    return taken
