"""The optimiser: what is added to the parameters is `-learning_rate * update`.

The update comes from an optax chain, the learning rate from a function of the step and of the scale that the state
carries. So a schedule that reacts to the validation loss needs no hidden state.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from afloc_jax.settings import BELOW_ONE, FACTOR, NOT_NEGATIVE, POSITIVE, Settings, one_of, setting

EPSILON = 1e-8  # of Adam, the default of the framework the recipe was published in
PLATEAU_PATIENCE = 5  # validations without improvement that are tolerated before the learning rate drops

LearningRate = Callable[[Int[Array, ""]], Float[Array, ""]]
Chain = list[optax.GradientTransformation]


def _weight_decay(settings: "OptimizerSettings") -> Chain:
    return [optax.add_decayed_weights(settings.weight_decay)] if settings.weight_decay else []


def _adam(settings: "OptimizerSettings") -> Chain:
    return [optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=EPSILON)]


def _momentum(settings: "OptimizerSettings") -> Chain:
    return [optax.trace(decay=settings.b1)] if settings.b1 else []


# What stands behind the clipping of the gradient. A row here is all that a further optimiser takes.
OPTIMIZERS: dict[str, Callable[["OptimizerSettings"], Chain]] = {
    # L2, as published: the decay is added to the gradient, before the moments.
    "adam": lambda settings: [*_weight_decay(settings), *_adam(settings)],
    # Decoupled: the decay is added to the update (Loshchilov & Hutter 2019).
    "adamw": lambda settings: [*_adam(settings), *_weight_decay(settings)],
    # L2 as in adam, then momentum `b1` (heavy ball, not Nesterov).
    "sgd": lambda settings: [*_weight_decay(settings), *_momentum(settings)],
    # The sign of a momentum, with decoupled decay (Chen et al., arXiv 2302.06675).
    "lion": lambda settings: [optax.scale_by_lion(b1=settings.b1, b2=settings.b2), *_weight_decay(settings)],
}


def _cosine(settings: "OptimizerSettings", steps_per_epoch: int, total_steps: int) -> optax.Schedule:
    """Half a cosine from 1 after the warm-up to 0 at `total_steps`."""
    warmup = settings.warmup_steps

    def factor(step: Array) -> Array:  # optax's cosine rounds otherwise, in the last digit
        done = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
        return 0.5 * (1.0 + jnp.cos(jnp.pi * done))

    return factor


# What `lr` is multiplied by at a step, from the settings, the steps of an epoch and those of the run.
SCHEDULES: dict[str, Callable[["OptimizerSettings", int, int], optax.Schedule]] = {
    # A drop by `decay` after each epoch (published).
    "exponential": lambda settings, epoch, _: optax.exponential_decay(1.0, epoch, settings.decay, staircase=True),
    "cosine": _cosine,
    # The plateau's drops are in the scale that the state carries, see `Plateau`.
    "plateau": lambda *_: optax.constant_schedule(1.0),
    "constant": lambda *_: optax.constant_schedule(1.0),
}


@dataclasses.dataclass(frozen=True)
class OptimizerSettings(Settings, section="optimizer"):
    """`config.optimizer`; the defaults are the published recipe."""

    name: str = setting("adam", one_of(OPTIMIZERS))
    lr: float = setting(2e-5, POSITIVE)
    b1: float = setting(0.5, BELOW_ONE)
    b2: float = setting(0.999, BELOW_ONE)
    weight_decay: float = setting(1e-6, NOT_NEGATIVE)
    clip_norm: float = setting(0.25, NOT_NEGATIVE)
    schedule: str = setting("exponential", one_of(SCHEDULES))
    decay: float = setting(0.9, FACTOR)
    warmup_steps: int = setting(0, NOT_NEGATIVE)


def build_optimizer(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Gradient -> update (positive: subtracted after multiplication by the learning rate), as `OPTIMIZERS` says.

    The gradient is first clipped by its global norm.
    """
    clip = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    return optax.chain(*clip, *OPTIMIZERS[settings.name](settings))


def build_schedule(settings: OptimizerSettings, steps_per_epoch: int, total_steps: int) -> LearningRate:
    """The learning rate of step s = 0, 1, ...: `lr` times the factor of `SCHEDULES`.

    During the first `warmup_steps` it is multiplied by (s + 1) / warmup_steps.
    """
    factor = SCHEDULES[settings.schedule](settings, steps_per_epoch, total_steps)

    def learning_rate(step: Int[Array, ""]) -> Float[Array, ""]:
        in_full_precision = jnp.asarray(step, jnp.result_type(float))
        warming_up = jnp.minimum(1.0, (step + 1) / max(settings.warmup_steps, 1))
        return jnp.asarray(settings.lr * factor(in_full_precision) * warming_up)

    return learning_rate


def freeze(optimizer: optax.GradientTransformation, trainable: PyTree[bool]) -> optax.GradientTransformation:
    """`optimizer` for the parameters whose entry in `trainable` is True, no update for the rest.

    Frozen parameters take no part in the global norm, get no weight decay and hold no moments.
    """
    labels = jax.tree.map(lambda train: "train" if train else "keep", trainable)
    # Not optax.selective_transform: these two names are in every checkpoint.
    return optax.partition({"train": optimizer, "keep": optax.set_to_zero()}, labels)


@dataclasses.dataclass
class Plateau:
    """Lower the learning rate when the validation loss stops falling: torch's ReduceLROnPlateau, relative threshold.

    `best` (None before the first validation) and `waited` are all it remembers. (optax.contrib.reduce_on_plateau keeps
    them in the optimiser's state, where a checkpoint of an earlier run has none, and waits a validation less.)
    """

    decay: float
    best: float | None = None
    waited: int = 0
    patience: int = PLATEAU_PATIENCE
    threshold: float = 1e-4

    def factor(self, loss: float) -> float:
        """What to multiply the learning rate by after a validation that gave `loss`: `decay`, or 1."""
        if self.best is None or loss < self.best * (1 - self.threshold):
            self.best, self.waited = loss, 0
            return 1.0
        self.waited += 1
        if self.waited > self.patience:
            self.waited = 0
            return self.decay
        return 1.0
