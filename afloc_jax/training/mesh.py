"""The shardings of a run's arrays over a mesh of devices with the axes `data` and `fsdp`.

The batch is split over both axes. Parameters and the optimiser's state are split over `fsdp` alone (fully sharded data
parallel, ZeRO stage 3: Rajbhandari et al., arXiv 1910.02054), so devices that differ only in `data` hold the same part.
With one device along `fsdp`, the default, every device holds everything but the batch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped

from afloc_jax.errors import UsageError

if TYPE_CHECKING:
    from data_pipelines.batches import Batch  # which imports Grain

DATA, FSDP = "data", "fsdp"
WHOLE_BELOW = 2**14  # elements; smaller arrays are not split: gathering them costs more than splitting saves


def build_mesh(devices: Sequence[jax.Device] | None = None, fsdp: int = 1, *, one_group: bool = False) -> Mesh:
    """A mesh of all devices of all processes, or of `devices`. `fsdp` neighbours share one copy of the state.

    With `one_group`, TPUs that fill a flat grid (v5e, v6e) stand in the order of a closed walk over it. The captions of
    the loss then travel between neighbours. In JAX's own order, which all other meshes have, 64 chips of v5e stand row
    by row, and the compiler lets the matrix units wait for the captions (docs/compiled.md). Groups of devices need that
    order: the compiler of v5e aborts on pieces of the walk.

    The axes are Auto, so the compiler inserts the collectives. (Explicit axes, the default of `jax.make_mesh`, refuse
    products over a sharded batch.)

    Args:
        devices: by default all.
        fsdp: from `config.training.fsdp`.
        one_group: whether no collective but those of `fsdp` is among some of the devices (`RunConfig.one_group`).

    Raises:
        UsageError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    check_fsdp(fsdp, len(devices))
    shape, axis_types = (len(devices) // fsdp, fsdp), (AxisType.Auto,) * 2
    around = closed_walk(devices) if one_group and fsdp == 1 else None
    if around is not None:
        return Mesh(np.array(around).reshape(shape), (DATA, FSDP), axis_types=axis_types)
    return jax.make_mesh(shape, (DATA, FSDP), axis_types=axis_types, devices=devices)


def closed_walk(devices: Sequence[jax.Device]) -> list[jax.Device] | None:
    """The devices so that each is linked with the next, and the last with the first.

    None where there is no such order, or none is known: for other devices than TPUs, and for TPUs that do not fill a
    grid in the plane with an even number of chips and at least two rows and columns, each chip one device.
    """
    if any(device.platform != "tpu" for device in devices):
        return None
    at = {tuple(device.coords): device for device in devices}
    if len(at) < len(devices):
        return None  # two devices a chip
    low, high = np.min(list(at), axis=0), np.max(list(at), axis=0)
    rows, columns, *other = high - low + 1
    if any(size > 1 for size in other) or rows * columns != len(at) or min(rows, columns) < 2 or len(at) % 2:
        return None
    # Down the first column last: before that each row in turn, without its first chip. An odd number of rows would end
    # on the far side, so that rows and columns change places.
    turned = bool(rows % 2)
    rows, columns = (columns, rows) if turned else (rows, columns)
    walk = [(0, 0)]
    for row in range(rows):
        walk += [(row, column) for column in (range(1, columns) if row % 2 == 0 else range(columns - 1, 0, -1))]
    walk += [(row, 0) for row in range(rows - 1, 0, -1)]
    places = (place[::-1] if turned else place for place in walk)
    return [at[(low[0] + row, low[1] + column, *low[2:])] for row, column in places]


def check_fsdp(fsdp: int, devices: int) -> None:
    """Raises UsageError where `fsdp` does not divide the number of devices."""
    if devices % fsdp:
        raise UsageError(f"config.training.fsdp = {fsdp}: must be a divisor of the number of devices, {devices}")


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(tree: PyTree[Array], mesh: Mesh) -> PyTree[NamedSharding]:
    """The shardings of a tree of parameters, statistics or optimiser state, as a tree like `tree`.

    An array of at least `WHOLE_BELOW` elements is split along its largest dimension that `fsdp` divides (the last one
    of equal size); other arrays are replicated. The rule depends on shapes alone, so the moments of a parameter are
    split like the parameter.
    """
    parts = mesh.shape[FSDP]

    def sharding(leaf: Array | jax.ShapeDtypeStruct) -> NamedSharding:
        divisible = [axis for axis, length in enumerate(leaf.shape) if length % parts == 0]
        if parts == 1 or leaf.size < WHOLE_BELOW or not divisible:
            return replicated(mesh)
        split = max(divisible, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*[None] * split, FSDP))

    return jax.tree.map(sharding, tree)


def gather(tree: PyTree[Array], mesh: Mesh) -> PyTree[Array]:
    """Every array in full on every device, with its gradient split as the state is. For use inside a compiled step.

    It is applied to parameters inside the differentiated function. Its forward pass is an all-gather. Its backward pass
    sums the gradients of all devices and leaves each device its part, which is a reduce-scatter. The custom VJP fixes
    the sharding of the gradient, which would otherwise be left to the compiler. Where the encoders are computed again
    in the backward pass, the parameters are gathered again and not kept.
    """
    if mesh.shape[FSDP] == 1:
        return tree

    def everywhere(tree: PyTree[Array]) -> PyTree[Array]:
        return jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda _: replicated(mesh), tree))

    def backward(_: None, d_tree: PyTree[Array]) -> tuple[PyTree[Array]]:
        # The full gradient first: if only a part of it were requested, the compiler might gather activations instead.
        return (constrain(everywhere(d_tree), mesh),)

    gathered = jax.custom_vjp(everywhere)
    gathered.defvjp(lambda tree: (gathered(tree), None), backward)
    return gathered(tree)


def constrain(tree: PyTree[Array], mesh: Mesh) -> PyTree[Array]:
    """Constrains a tree of arrays like the parameters to `state_sharding`. For use inside a compiled step."""
    return jax.lax.with_sharding_constraint(tree, state_sharding(tree, mesh))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes that the first dimension of a batch is split over, which are all axes of the mesh."""
    return tuple(mesh.axis_names)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: split along its first axis."""
    return NamedSharding(mesh, PartitionSpec(batch_axes(mesh)))


def place_batch(batch: "Batch", mesh: Mesh) -> dict[str, jax.Array]:
    """The global arrays of a batch over the mesh, from this process's rows of it.

    `index` is left out: it names records in messages, and no device needs it.
    """
    sharding = batch_sharding(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for key, rows in batch.items()
        if key != "index"
    }


class SharedNumber:
    """The maximum of a number over all processes, one call late.

    Each call passes a number in and returns the maximum of the numbers of the call before. The devices compute it in
    the meantime, so a loop that calls it once a step never waits. With one process each call returns its own number.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._largest = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._before: jax.Array | None = None

    def __call__(self, number: int) -> int:
        """The maximum of the call before. All processes must call it equally often."""
        if jax.process_count() == 1:
            return number
        own = np.full(len(self._mesh.local_devices), number, np.int32)
        everyone = jax.make_array_from_process_local_data(batch_sharding(self._mesh), own)
        before, self._before = self._before, self._largest(everyone)
        return 0 if before is None else int(before)


def pad_batch(batch: "Batch", multiple: int) -> "Batch":
    """The batch padded by empty pairs (black image, no token, counts 0, index -1) to a multiple of `multiple` rows.

    The losses leave out pairs without a word, so in evaluation mode no number depends on them.
    """
    missing = -len(batch["image"]) % multiple
    if not missing:
        return batch

    def padded(rows: Shaped[np.ndarray, "n *s"], value: int = 0) -> Shaped[np.ndarray, "N *s"]:
        return np.concatenate([rows, np.full((missing, *rows.shape[1:]), value, rows.dtype)])

    return {
        "image": padded(batch["image"]),
        "token_ids": padded(batch["token_ids"]),
        "word_ids": padded(batch["word_ids"], -1),
        "sentence_ids": padded(batch["sentence_ids"], -1),
        "word_count": padded(batch["word_count"]),
        "sentence_count": padded(batch["sentence_count"]),
        "report_hash": padded(batch["report_hash"]),
        "sentence_hashes": padded(batch["sentence_hashes"]),
        "index": padded(batch["index"], -1),
        **{name: padded(rows) for name, rows in batch.items() if name.startswith("features_")},  # type: ignore[arg-type, typeddict-item]
    }


def place_state(tree: PyTree[Array], mesh: Mesh) -> PyTree[Array]:
    """The tree's arrays placed over the mesh by `state_sharding`."""
    return jax.device_put(tree, state_sharding(tree, mesh))


def fetch(tree: PyTree[Array]) -> PyTree[np.ndarray]:
    """The arrays of a state, in full, in the memory of this process. With several processes all must call it."""

    def in_full(leaf: Array | np.ndarray) -> np.ndarray:
        # One array at a time, because the whole state may not fit one device.
        split = isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if split else leaf)

    return jax.tree.map(in_full, tree)
