"""One training step and one validation step: pure functions of state and batch, compiled over the mesh."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from afloc_jax.losses import ContrastiveLosses, contrastive_losses
from afloc_jax.models import AFLoc
from afloc_jax.training.gradients import Batch, build_gradient, token_batch
from afloc_jax.training.mesh import batch_sharding, constrain, replicated
from afloc_jax.training.optimizer import Schedule

Metrics = dict[str, Array]


@flax.struct.dataclass
class TrainState:
    """Everything a step changes. `rate_scale` multiplies the learning rate (a plateau lowers it).

    `healthy` turns False with the first loss or gradient that is not finite; from then on steps change nothing, so the
    state stays what it was before that batch however late the loop looks.
    """

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    optimizer_state: Any
    rate_scale: Float[Array, ""]
    healthy: Bool[Array, ""]


def new_state(variables: Mapping[str, Any], direction: optax.GradientTransformation) -> TrainState:
    """The state before step 0. `variables` holds `params` and `batch_stats`."""
    params = jax.tree.map(jnp.asarray, variables["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=jax.tree.map(jnp.asarray, variables.get("batch_stats", {})),
        optimizer_state=direction.init(params),
        rate_scale=jnp.ones((), jnp.result_type(float)),
        healthy=jnp.ones((), bool),
    )


def _loss_metrics(losses: ContrastiveLosses) -> Metrics:
    return {"loss": losses.total, **{f"loss/{level}": loss for level, loss in losses.levels.items()}}


def build_train_step(
    model: AFLoc, config: ConfigDict, direction: optax.GradientTransformation, schedule: Schedule, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compile-ready `train_step(state, batch) -> (state, metrics)`; the state that goes in is used up.

    The batch is global: batch statistics and the contrast see all of it, on however many devices it lies (unless
    `statistics_group`, `contrast_group` or `micro_batch` say otherwise). Dropout follows from the seed and the step.
    The state lies as `mesh.state_sharding` says, before and after.
    Metrics: loss, loss/<level> of the levels that are on, grad_norm (global, before clipping, of the parameters that
    train), learning_rate, finite.

    Args:
        config: the whole config; `model`, `loss` and `seed` are read.
        direction: of `optimizer.build_direction`, frozen parameters already handled.
        schedule: of `optimizer.build_schedule`.
    """

    gradient_of = build_gradient(model, config, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        dropout = jax.random.fold_in(jax.random.key(config.seed), state.step)
        losses, batch_stats, gradient = gradient_of(state.params, state.batch_stats, batch, dropout)
        grad_norm = optax.tree.norm(gradient)
        rate = schedule(state.step) * state.rate_scale
        descent, optimizer_state = direction.update(gradient, state.optimizer_state, state.params)
        params = jax.tree.map(lambda leaf, change: leaf - (rate * change).astype(leaf.dtype), state.params, descent)

        finite = jnp.isfinite(losses.total) & jnp.isfinite(grad_norm)
        healthy = state.healthy & finite
        stepped = TrainState(state.step + 1, params, batch_stats, optimizer_state, state.rate_scale, healthy)
        state = jax.tree.map(
            lambda new, old: jnp.where(healthy, new, old), stepped, dataclasses.replace(state, healthy=healthy)
        )
        metrics = _loss_metrics(losses) | {"grad_norm": grad_norm, "learning_rate": rate, "finite": finite}
        return constrain(state, mesh), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(None, replicated(mesh)))


def batch_like(config: ConfigDict, side: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a global batch on the devices; images are `side` pixels wide."""
    pairs, slots, sharding = config.training.batch_size, config.data.max_tokens, batch_sharding(mesh)
    tokens: dict[str, tuple[int, ...]] = dict.fromkeys(("token_ids", "word_ids", "sentence_ids"), (pairs, slots))
    counts: dict[str, tuple[int, ...]] = dict.fromkeys(("word_count", "sentence_count"), (pairs,))
    return {
        "image": jax.ShapeDtypeStruct((pairs, side, side), jnp.uint8, sharding=sharding),
        **{
            name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding) for name, shape in (tokens | counts).items()
        },
    }


def build_validation_step(model: AFLoc, config: ConfigDict, mesh: Mesh) -> Callable[[Any, Any, Batch], Metrics]:
    """Compile-ready `validation_step(params, batch_stats, batch) -> metrics`: losses in evaluation mode.

    Running batch statistics, no dropout. Pairs that pad a batch (no words) take no part.
    """

    def validation_step(params: Any, batch_stats: Any, batch: Batch) -> Metrics:
        variables = {"params": params, "batch_stats": batch_stats}
        inputs = batch["image"], token_batch(batch)
        image, text = cast(tuple, model.apply(variables, *inputs, with_factors=config.loss.low_rank))
        return _loss_metrics(contrastive_losses(image, text, config.loss, mesh=mesh))

    return jax.jit(validation_step, out_shardings=replicated(mesh))
