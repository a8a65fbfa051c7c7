"""A step that was not finite, computed again to find the layer and the record (`launch.py --replay=FOLDER`).

The batch of a step depends on the step, the config and the records alone, so a run keeps only the state before it. The
step is computed by two programs: the gradient as in training, and a forward pass that notes for each layer which
records have values that are not finite. Batch statistics carry a NaN of one record to all others, so the records of the
first layer count. Where it has all of them, records are exchanged for others until the step is finite.

Nothing is written, and no text of a report is shown.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.tasks import EvaluationSettings
from afloc_jax.files import Path, read_json
from afloc_jax.losses.definition import length_order
from afloc_jax.training import start, workdir
from afloc_jax.training.assembly import Assembly
from afloc_jax.training.augment import augment
from afloc_jax.training.checkpoints import read_once
from afloc_jax.training.failures import NonFiniteError
from afloc_jax.training.gradients import build_gradient, token_batch
from afloc_jax.training.loop import NAMED_RECORDS, Data
from afloc_jax.training.mesh import build_mesh, place_batch
from afloc_jax.training.processes import say
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.step import LossMetrics, TrainState
from afloc_jax.training.train import open_data, put_together
from data_pipelines.batches import Batch
from data_pipelines.reading import Records

_FORWARD = "first layer whose output is not finite"


class _Kept(NamedTuple):
    """A folder of WORKDIR/nonfinite."""

    folder: Path
    trained: bool  # a training step, no validation
    step: int
    records: list[str]  # ids of the batch

    @classmethod
    def read(cls, folder: Path) -> "_Kept":
        kind = folder.name.split("_")[0]
        if folder.parent.name != workdir.NONFINITE or kind not in ("step", "validation"):
            raise UsageError(f"--replay={folder}: give a folder of {workdir.NONFINITE}/ in a workdir, such as step_7")
        told = read_json(folder / "batch.json", "only what a run kept can be computed again")
        return cls(folder, kind == "step", int(told["step"]), list(told["records"]))


class _Computed(NamedTuple):
    metrics: LossMetrics
    grad_norm: float
    broken: list[str]  # parameters whose gradient is not finite


class Layers(NamedTuple):
    """The layers of both towers in the order in which they end, and the records whose output of each is finite."""

    names: Sequence[str]
    finite: Bool[np.ndarray, "N B"]

    def first(self) -> int | None:
        """The first layer with an output that is not finite."""
        broken = np.flatnonzero(~self.finite.all(axis=1))
        return int(broken[0]) if len(broken) else None


def replay(folder: Path) -> None:
    """Computes the step or validation batch again that `folder` keeps, and says where it stops to be finite.

    Raises:
        UsageError: `folder` is not one that a run kept.
        UserError: the records of the batch are not those of the run.
        NonFiniteError: the loss or a gradient is not finite again, as is to be expected.
    """
    kept = _Kept.read(folder)
    home = folder.parent.parent
    given = RunConfig.from_config(read_json(home / workdir.CONFIG))
    config = start.adopt(given, start.foreign_sources(given))
    config = dataclasses.replace(config, evaluation=EvaluationSettings())  # its data need not be there
    data = open_data(config, home)
    training = config.training
    devices = jax.devices()[: math.gcd(training.micro_batch or training.batch_size, jax.device_count())]
    fsdp = math.gcd(training.fsdp, len(devices))
    run = put_together(config, data, build_mesh(devices, fsdp, one_group=config.one_group))
    batch = _batch(kept, run.config, data)
    state = TrainState.from_saved(read_once(folder / "state", run.state_like().to_saved()))

    step = Replay(Programs(run, kept.trained), state, batch)
    again, loss = step.is_finite(), step.told()
    say(f"{folder.name} of {home}, again: {loss}{'; all is finite this time' if again else ''}")
    for line in step.report(data.training if kept.trained else data.validation):
        say(line)
    if not again:
        raise NonFiniteError(f"{folder.name} is not finite again: {loss}. The lines above say what to look at")


def _batch(kept: _Kept, config: RunConfig, data: Data) -> Batch:
    """The whole batch, whose records must be those that were noted."""
    source: Records = data.training if kept.trained else data.validation
    if kept.trained:
        batches = iter([data.batches_to_train(config).batch_at(kept.step)])
    else:
        batches = iter(data.batches_to_validate(config, kept.step))
    for batch in batches:
        if [str(source[int(row)].id) for row in batch["index"] if row >= 0] == kept.records:
            return batch
    raise UserError(
        f"--replay={kept.folder}: no batch of this step has the records that were noted; they were prepared again "
        "since. Put the records of the run back where config.data.directory in its config.json says"
    )


class Programs:
    """What is compiled for a replay; `names` are those of the layers, once `forward` has run."""

    def __init__(self, run: Assembly, trained: bool) -> None:
        self.run, self.trained = run, trained
        self.names: list[str] = []
        self.gradient = jax.jit(build_gradient(run.model, run.config, run.mesh))
        self.forward = jax.jit(build_forward(run, trained, self.names))


class Replay:
    """One step on a state that stays as it is: a training step, or a batch of a validation."""

    def __init__(self, programs: Programs, state: TrainState, batch: Batch) -> None:
        self._programs, self._run, self._trained = programs, programs.run, programs.trained
        self._state, self._batch = state, batch
        self._key = jax.random.fold_in(jax.random.key(self._run.config.seed), state.step)

    def _placed(self, batch: Batch) -> Mapping[str, Array]:
        placed = place_batch(batch, self._run.mesh)
        numbers = placed.pop("augmentation", None)
        if numbers is not None:
            placed["image"] = augment(placed["image"], numbers, self._run.mesh)
        return placed

    @functools.cached_property
    def _own(self) -> "_Computed":
        return self._computed(self._batch)

    def _computed(self, batch: Batch) -> "_Computed":
        """The losses, the norm of the gradient, and which parameters have a gradient that is not finite."""
        state, placed = self._state, self._placed(batch)
        if not self._trained:
            return _Computed(self._run.validation_step(state.params, state.batch_stats, placed), 0.0, [])
        found = self._programs.gradient(state.params, state.batch_stats, placed, self._key)
        losses, gradient = found.losses, found.gradient
        metrics = LossMetrics(losses.total, losses.levels, losses.twins)
        return _Computed(metrics, float(optax.tree.norm(gradient)), not_finite(gradient))

    def is_finite(self, batch: Batch | None = None) -> bool:
        """Whether loss and gradient are, with this batch in place of the step's own."""
        found = self._own if batch is None else self._computed(batch)
        return math.isfinite(float(found.metrics.loss)) and math.isfinite(found.grad_norm)

    def told(self) -> str:
        """The losses, and the norm of the gradient of a training step."""
        values = {name: value for name, value in self._own.metrics.named().items() if name.startswith("loss")}
        if self._trained:
            values["gradient norm"] = self._own.grad_norm
        return ", ".join(f"{name} {value!r}" for name, value in values.items())

    def layers(self) -> Layers:
        """What the forward pass notes. With `training.micro_batch` it takes the same pairs together as the step."""
        config, pairs = self._run.config, len(self._batch["image"])
        rows = np.arange(pairs)
        if config.loss.contrast_group_order != "batch":
            rows = np.asarray(length_order(jnp.asarray(self._batch["token_ids"])))
        micro = config.training.micro_batch if self._trained else 0
        parts = rows.reshape(self._run.mesh.size, pairs // micro if micro else 1, -1).swapaxes(0, 1)
        finite = np.ones((0, pairs), bool)
        for number, part in enumerate(parts.reshape(len(parts), -1)):
            key = jax.random.fold_in(self._key, number) if micro else self._key
            placed = self._placed(_taken(self._batch, part))
            found = np.asarray(self._programs.forward(self._state.params, self._state.batch_stats, placed, key))
            finite = np.ones((len(found), pairs), bool) if not number else finite
            finite[:, part] = found
        return Layers(self._programs.names, finite)

    def report(self, source: Records) -> list[str]:
        """The lines for the user: values of the state, the first layer, its records, and gradients not finite."""
        state = {"params": self._state.params, "batch_stats": self._state.batch_stats}
        broken = not_finite(state | {"optimizer": self._state.optimizer_state})
        lines = [f"not finite before the step: {_some(broken)}"] if broken else []
        layers, pairs = self.layers(), len(self._batch["image"])
        first = layers.first()
        rows = np.flatnonzero(~layers.finite[first]) if first is not None else np.arange(pairs)
        if first is not None:
            lines.append(f"{_FORWARD}: {layers.names[first]}, for {len(rows)} of {pairs} records")
        else:
            lines.append("the outputs of all layers are finite")
        if len(rows) == pairs and not broken and not self.is_finite():
            found = culprit(pairs, lambda given: self.is_finite(_taken(self._batch, given)))
            rows = np.arange(0) if found is None else np.array([found])
            lines.append("without one record" + (" it is finite:" if len(rows) else ", whichever, it is not finite"))
        if len(rows) < pairs:
            named = [int(row) for row in self._batch["index"][rows] if row >= 0]
            lines += [f"record {row} of its split: {source[row].id}" for row in named[:NAMED_RECORDS]]
            lines += [f"and {len(named) - NAMED_RECORDS} more records"] if len(named) > NAMED_RECORDS else []
        if self._own.broken:
            order = {name: number for number, name in enumerate(layers.names)}
            from_loss = sorted(self._own.broken, key=lambda name: -order.get(name.rpartition("/")[0], -1))
            lines.append(f"gradients that are not finite, those near the loss first: {_some(from_loss)}")
        return lines


def build_forward(
    run: Assembly, train: bool, names: list[str]
) -> Callable[[PyTree[Array], PyTree[Array], Mapping[str, Array], PRNGKeyArray], Bool[Array, "N B"]]:
    """A forward pass that returns for each layer the records whose output is finite. Tracing it fills `names`."""
    model = run.model.clone(remat=False)  # in a loop over blocks no output could be kept

    def forward(
        params: PyTree[Array], batch_stats: PyTree[Array], batch: Mapping[str, Array], key: PRNGKeyArray
    ) -> Bool[Array, "N B"]:
        names.clear()
        finite: list[Bool[Array, " B"]] = []
        pairs = len(batch["image"])

        def watch(
            call: Callable[..., PyTree[Array]],
            arguments: tuple[PyTree[Array], ...],
            named: dict[str, PyTree[Array]],
            context: nn.module.InterceptorContext,
        ) -> PyTree[Array]:
            output = call(*arguments, **named)
            if context.method_name == "__call__" and context.module.path and jax.tree.leaves(output):
                names.append("/".join(context.module.path))
                finite.append(_finite_rows(output, pairs))
            return output

        with nn.intercept_methods(watch):
            model.apply(
                {"params": params, "batch_stats": batch_stats},
                batch["image"],
                token_batch(batch),
                train=train,
                mutable=["batch_stats"] if train else False,
                rngs={"dropout": key} if train else None,
            )
        return jnp.stack(finite)

    return forward


def _finite_rows(output: PyTree[Array], pairs: int) -> Bool[Array, " B"]:
    """Which pairs have finite values. An array without a row for each pair (or text of one) counts for all of them."""
    rows = jnp.ones(pairs, bool)
    for leaf in jax.tree.leaves(output):
        each = leaf.ndim and leaf.shape[0] % pairs == 0
        rows &= jnp.isfinite(leaf).reshape(pairs if each else 1, -1).all(axis=1)
    return rows


def culprit(pairs: int, is_finite: Callable[[Int[np.ndarray, " B"]], bool]) -> int | None:
    """The one row without which a batch is finite; None if there is none, or more than one is needed.

    Args:
        pairs: rows of the batch.
        is_finite: whether the batch is finite that has these rows of the original in place of its own.
    """

    def without(rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " B"]:
        taken = np.arange(pairs)
        taken[rows] = np.resize(np.setdiff1d(taken, rows), len(rows))
        return taken

    suspects = np.arange(pairs)
    while len(suspects) > 1:
        half, other = np.array_split(suspects, 2)
        suspects = half if is_finite(without(half)) else other
    return int(suspects[0]) if is_finite(without(suspects)) else None


def not_finite(tree: PyTree[Array]) -> list[str]:
    """The names of the arrays that have a value that is not finite."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return [
        "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
        for path, leaf in flat
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all())
    ]


def _taken(batch: Batch, rows: Int[np.ndarray, " n"]) -> Batch:
    taken: Batch = Batch(**{name: np.asarray(array)[rows] for name, array in batch.items()})  # type: ignore[typeddict-item]
    return taken


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_RECORDS} more" if len(names) > NAMED_RECORDS else ""
    return ", ".join(names[:NAMED_RECORDS]) + more
