"""The recipe's optimiser: what is added to the parameters is `-learning_rate * direction`.

The direction comes from an optax chain, the learning rate from a function of the step and of the plateau scale that the
state carries, so that a schedule that reacts to the validation loss needs no hidden state.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

EPSILON = 1e-8  # of Adam, the default of the framework the recipe was published in
PLATEAU_PATIENCE = 5  # validations without improvement that are tolerated before the rate drops

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


def build_direction(config: ConfigDict) -> optax.GradientTransformation:
    """Gradient -> direction of descent (positive: to be subtracted after multiplication with the learning rate).

    Clips by the global norm, then
    - adam: adds `weight_decay * parameter` to the gradient (L2, as published), then Adam's moments;
    - adamw: Adam's moments of the gradient alone, then adds `weight_decay * parameter` (Loshchilov & Hutter 2019);
    - sgd: L2 as in adam, then momentum `b1` (heavy ball, not Nesterov).

    Args:
        config: `config.optimizer`.
    """
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    decay = [optax.add_decayed_weights(config.weight_decay)] if config.weight_decay else []
    adam = [optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=EPSILON)]
    momentum = [optax.trace(decay=config.b1)] if config.b1 else []
    order = {"adam": decay + adam, "adamw": adam + decay, "sgd": decay + momentum}
    return optax.chain(*clip, *order[config.name])


def build_schedule(config: ConfigDict, steps_per_epoch: int, total_steps: int) -> Schedule:
    """The learning rate of step s = 0, 1, ...

    - exponential: `lr * decay ** (s // steps_per_epoch)`, a drop after each epoch (published);
    - cosine: half a cosine from `lr` after the warm-up to 0 at `total_steps`;
    - plateau, constant: `lr` (a plateau multiplies it by the scale in the state, see `Plateau`).
    During the first `warmup_steps` all are multiplied by (s + 1) / warmup_steps.
    """
    warmup = config.warmup_steps

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        if config.schedule == "exponential":
            factor = config.decay ** jnp.asarray(step // steps_per_epoch, jnp.result_type(float))
        elif config.schedule == "cosine":
            done = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
            factor = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        else:
            factor = jnp.ones((), jnp.result_type(float))
        return config.lr * factor * jnp.minimum(1.0, (step + 1) / max(warmup, 1))

    return schedule


def freeze(direction: optax.GradientTransformation, trainable: Any) -> optax.GradientTransformation:
    """`direction` for the parameters whose entry in `trainable` (a tree of bools) is True, no change for the rest.

    Frozen parameters take no part in the global norm, get no weight decay and hold no moments.
    """
    labels = jax.tree.map(lambda train: "train" if train else "keep", trainable)
    return optax.partition({"train": direction, "keep": optax.set_to_zero()}, labels)


@dataclasses.dataclass
class Plateau:
    """Lower the rate when the validation loss stops falling: torch's ReduceLROnPlateau, mode min, relative threshold.

    `best` (None before the first validation) and `waited` are all it remembers.
    """

    decay: float
    best: float | None = None
    waited: int = 0
    patience: int = PLATEAU_PATIENCE
    threshold: float = 1e-4

    def factor(self, loss: float) -> float:
        """What to multiply the rate with after a validation that gave `loss`: `decay`, or 1."""
        if self.best is None or loss < self.best * (1 - self.threshold):
            self.best, self.waited = loss, 0
            return 1.0
        self.waited += 1
        if self.waited > self.patience:
            self.waited = 0
            return self.decay
        return 1.0
