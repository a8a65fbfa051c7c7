"""The training step and the validation step: pure functions of state and batch, compiled over the mesh."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.stages import Lowered
from jaxtyping import Array, Bool, Float, Int, PyTree

from afloc_jax.levels import LevelName
from afloc_jax.losses import contrastive_losses
from afloc_jax.models import AFLoc
from afloc_jax.training.augment import augment
from afloc_jax.training.gradients import Batch, build_gradient, images_of, text_sides, token_batch
from afloc_jax.training.group_order import in_group_order
from afloc_jax.training.mesh import constrain, replicated
from afloc_jax.training.optimizer import LearningRate
from afloc_jax.training.ranks import Ranks
from afloc_jax.training.scales import scales_of
from afloc_jax.training.settings import RunConfig

# Fields that have another name in checkpoints, so that checkpoints of earlier versions can be restored.
_SAVED_NAMES = {"learning_rate_scale": "rate_scale", "all_finite": "healthy"}


@flax.struct.dataclass
class TrainState:
    """The values that a step changes.

    `learning_rate_scale` multiplies the learning rate; `Plateau` lowers it. `all_finite` becomes False at the first
    loss or gradient that is not finite. From then on steps change nothing, so the state is still the one before that
    batch when the loop, which reads metrics one step late, stops.
    """

    step: Int[Array, ""]
    params: PyTree[Array]
    batch_stats: PyTree[Array]
    optimizer_state: PyTree[Array]
    learning_rate_scale: Float[Array, ""]
    all_finite: Bool[Array, ""]

    def to_saved(self) -> dict[str, PyTree[Array]]:
        """The state under the names of a checkpoint."""
        return {_SAVED_NAMES.get(key, key): value for key, value in vars(self).items()}

    @classmethod
    def from_saved(cls, saved: Mapping[str, PyTree[Array]]) -> "TrainState":
        """The inverse of `to_saved`."""
        names = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: saved[_SAVED_NAMES.get(name, name)] for name in names})


@flax.struct.dataclass
class LossMetrics:
    """The total loss of a batch and the loss of each level that is on, as arrays on the device.

    `twins` is the share of twins among the pairs of pairs that are contrasted, see `losses.ContrastiveLosses`.
    """

    loss: Float[Array, ""]
    levels: dict[LevelName, Float[Array, ""]]
    twins: dict[str, Float[Array, ""]]

    def named(self) -> dict[str, float]:
        """The numbers under their names in metrics.jsonl."""
        levels = {f"loss/{level}": float(loss) for level, loss in self.levels.items()}
        twins = {f"twins/{kind}": float(share) for kind, share in self.twins.items()}
        return {"loss": float(self.loss)} | levels | twins


@flax.struct.dataclass
class StepMetrics(LossMetrics):
    """The metrics of a training step.

    Attributes:
        grad_norm: the global norm of the gradient of the trainable parameters, before clipping.
        learning_rate: the learning rate of the step, with the learning-rate scale.
        finite: whether the loss and the gradient norm are finite.
        ranks: the effective ranks of the embeddings (`ranks.ranks`).
    """

    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    finite: Bool[Array, ""]
    ranks: Ranks

    def named(self) -> dict[str, float]:
        """The numbers under their names in metrics.jsonl."""
        ranks = {f"rank/{name}": float(rank) for name, rank in self.ranks.items()}
        own = {"grad_norm": float(self.grad_norm), "learning_rate": float(self.learning_rate)}
        return super().named() | own | ranks


class TrainStep(Protocol):
    """A compiled training step."""

    def __call__(self, state: TrainState, batch: Batch, /) -> tuple[TrainState, StepMetrics]: ...

    def lower(self, state: TrainState, batch: Mapping[str, jax.ShapeDtypeStruct], /) -> Lowered: ...


ValidationStep = Callable[[PyTree[Array], PyTree[Array], Batch], LossMetrics]


def new_state(variables: Mapping[str, PyTree[Array]], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before step 0. `variables` holds `params` and `batch_stats`."""
    params = jax.tree.map(jnp.asarray, variables["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=jax.tree.map(jnp.asarray, variables.get("batch_stats", {})),
        optimizer_state=optimizer.init(params),
        learning_rate_scale=jnp.ones((), jnp.result_type(float)),
        all_finite=jnp.ones((), bool),
    )


def build_train_step(
    model: AFLoc, config: RunConfig, optimizer: optax.GradientTransformation, schedule: LearningRate, mesh: Mesh
) -> TrainStep:
    """`train_step(state, batch) -> (state, metrics)`, compiled at its first call. The passed state is donated.

    The batch is global: batch statistics and the contrast are over all its pairs, on any number of devices, unless
    `statistics_group`, `contrast_group` or `micro_batch` say otherwise. Dropout depends on the seed and the step. Both
    states are sharded by `mesh.state_sharding`.

    Args:
        model: the network.
        config: the sections `model`, `loss` and `training`, and `seed`, are read.
        optimizer: from `optimizer.build_optimizer`, then `optimizer.freeze`.
        schedule: from `optimizer.build_schedule`.
        mesh: the devices.
    """
    gradient_of = build_gradient(model, config, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        dropout = jax.random.fold_in(jax.random.key(config.seed), state.step)
        if "augmentation" in batch:  # data.augment_on = "device"
            image = augment(batch["image"], batch["augmentation"], mesh)
            batch = {name: array for name, array in batch.items() if name != "augmentation"} | {"image": image}
        losses, ranks, batch_stats, gradient = gradient_of(state.params, state.batch_stats, batch, dropout)
        grad_norm = optax.tree.norm(gradient)
        learning_rate = schedule(state.step) * state.learning_rate_scale
        update, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        params = jax.tree.map(
            lambda leaf, change: leaf - (learning_rate * change).astype(leaf.dtype), state.params, update
        )

        finite = jnp.isfinite(losses.total) & jnp.isfinite(grad_norm)
        all_finite = state.all_finite & finite
        stepped = TrainState(
            state.step + 1, params, batch_stats, optimizer_state, state.learning_rate_scale, all_finite
        )
        state = jax.tree.map(
            lambda new, old: jnp.where(all_finite, new, old),
            stepped,
            dataclasses.replace(state, all_finite=all_finite),
        )
        metrics = StepMetrics(losses.total, losses.levels, losses.twins, grad_norm, learning_rate, finite, ranks)
        return constrain(state, mesh), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(None, replicated(mesh)))


def build_validation_step(model: AFLoc, config: RunConfig, mesh: Mesh) -> ValidationStep:
    """`validation_step(params, batch_stats, batch) -> metrics`, compiled at its first call.

    It uses the running batch statistics, no dropout and no hard negatives. Pairs without a word, which pad a batch, are
    left out.
    """

    settings = dataclasses.replace(config.loss, hard_negatives=0)

    def validation_step(params: PyTree[Array], batch_stats: PyTree[Array], batch: Batch) -> LossMetrics:
        variables = {"params": params, "batch_stats": batch_stats}
        batch = in_group_order(batch, settings, mesh)
        image, text = model.bind(variables)(images_of(batch), token_batch(batch), with_factors=settings.is_low_rank)
        losses = contrastive_losses(image, text_sides(text, batch), settings, mesh=mesh, scales=scales_of(params))
        return LossMetrics(losses.total, losses.levels, losses.twins)

    return jax.jit(validation_step, out_shardings=replicated(mesh))
