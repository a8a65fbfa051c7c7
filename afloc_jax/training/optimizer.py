"""The optimiser and the learning-rate schedule. A step adds `-learning_rate * update` to the parameters.

The update comes from an optax chain. The learning rate is a function of the step, times the learning-rate scale in the
training state, which `Plateau` lowers. A schedule that reacts to the validation loss therefore needs no hidden state.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from afloc_jax.settings import BELOW_ONE, FACTOR, NOT_NEGATIVE, POSITIVE, Settings, one_of, setting

EPSILON = 1e-8  # Adam's epsilon: the default of PyTorch, in which the recipe was published
PLATEAU_PATIENCE = 5  # validations without improvement after which the next one lowers the learning rate

LearningRate = Callable[[Int[Array, ""]], Float[Array, ""]]
EXTENDING = ("none", "reschedule", "hold")  # of `training.extend`


@dataclasses.dataclass(frozen=True)
class Extension:
    """A step from which a finished run goes on.

    `how`: "reschedule" lays the learning rate out for the new length, as if the run had had it from its start; "hold"
    keeps that of the step before `from_step`.
    """

    from_step: int
    how: str


Chain = list[optax.GradientTransformation]


def _weight_decay(settings: "OptimizerSettings") -> Chain:
    return [optax.add_decayed_weights(settings.weight_decay)] if settings.weight_decay else []


def _adam(settings: "OptimizerSettings") -> Chain:
    return [optax.scale_by_adam(b1=settings.b1, b2=settings.b2, eps=EPSILON)]


def _momentum(settings: "OptimizerSettings") -> Chain:
    return [optax.trace(decay=settings.b1)] if settings.b1 else []


# The optax chain of each optimiser, applied after clipping. A further optimiser needs a row here.
OPTIMIZERS: dict[str, Callable[["OptimizerSettings"], Chain]] = {
    # Published: L2 weight decay is added to the gradient, before the moments.
    "adam": lambda settings: [*_weight_decay(settings), *_adam(settings)],
    # Decoupled weight decay is added to the update (Loshchilov & Hutter, arXiv 1711.05101).
    "adamw": lambda settings: [*_adam(settings), *_weight_decay(settings)],
    # L2 weight decay as in adam, then momentum `b1` (heavy ball, not Nesterov).
    "sgd": lambda settings: [*_weight_decay(settings), *_momentum(settings)],
    # The sign of the momentum, with decoupled weight decay (Chen et al., arXiv 2302.06675).
    "lion": lambda settings: [optax.scale_by_lion(b1=settings.b1, b2=settings.b2), *_weight_decay(settings)],
}


def _cosine(settings: "OptimizerSettings", steps_per_epoch: int, total_steps: int) -> optax.Schedule:
    """Half a period of a cosine, from 1 after the warm-up to 0 at `total_steps`."""
    warmup = settings.warmup_steps

    def factor(step: Array) -> Array:  # not optax's cosine, which differs in the last digit
        done = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
        return 0.5 * (1.0 + jnp.cos(jnp.pi * done))

    return factor


# The factor of `lr` at each step, from the settings, the steps of an epoch and the steps of the run.
SCHEDULES: dict[str, Callable[["OptimizerSettings", int, int], optax.Schedule]] = {
    # Published: multiplied by `decay` after each epoch.
    "exponential": lambda settings, epoch, _: optax.exponential_decay(1.0, epoch, settings.decay, staircase=True),
    "cosine": _cosine,
    # `Plateau` lowers the learning-rate scale in the training state.
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
    """The optax transformation from gradient to update: clipping by the global norm, then the chain of `OPTIMIZERS`.

    The update has the sign of the gradient: the step subtracts it, multiplied by the learning rate.
    """
    clip = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
    return optax.chain(*clip, *OPTIMIZERS[settings.name](settings))


def build_schedule(
    settings: OptimizerSettings, steps_per_epoch: int, total_steps: int, extensions: Sequence[Extension] = ()
) -> LearningRate:
    """The learning rate of step s = 0, 1, ...: `lr` times the factor of `SCHEDULES`.

    During the first `warmup_steps` it is multiplied by (s + 1) / warmup_steps.

    Args:
        settings: the schedule and its numbers.
        steps_per_epoch: the steps of an epoch.
        total_steps: the steps of the run.
        extensions: where the run was extended, in order. Steps before the first are laid out for the length that the
            run had then; those from an extension on as `Extension` says.
    """
    starts = [extension.from_step for extension in extensions]
    laid_out = [_laid_out(settings, steps_per_epoch, end) for end in (*starts, total_steps)]
    rates = laid_out[:1]
    for extension, anew in zip(extensions, laid_out[1:], strict=True):
        held = functools.partial(_held, rates[-1], extension.from_step - 1)
        rates.append(held if extension.how == "hold" else anew)

    def learning_rate(step: Int[Array, ""]) -> Float[Array, ""]:
        rate = rates[0](step)
        for start, later in zip(starts, rates[1:], strict=True):
            rate = jnp.where(step < start, rate, later(step))
        return rate

    return learning_rate


def _laid_out(settings: OptimizerSettings, steps_per_epoch: int, total_steps: int) -> LearningRate:
    """The learning rate of a run that was never extended."""
    factor = SCHEDULES[settings.schedule](settings, steps_per_epoch, total_steps)

    def rate(step: Int[Array, ""]) -> Float[Array, ""]:
        in_full_precision = jnp.asarray(step, jnp.result_type(float))
        warming_up = jnp.minimum(1.0, (step + 1) / max(settings.warmup_steps, 1))
        return jnp.asarray(settings.lr * factor(in_full_precision) * warming_up)

    return rate


def _held(rate: LearningRate, last: int, step: Int[Array, ""]) -> Float[Array, ""]:
    """The rate of `step`, of the step `last` from there on."""
    return rate(jnp.minimum(step, last))


def freeze(optimizer: optax.GradientTransformation, trainable: PyTree[bool]) -> optax.GradientTransformation:
    """`optimizer` for the parameters whose entry in `trainable` is True; the update of the others is 0.

    Frozen parameters are not part of the global norm, get no weight decay and have no moments.
    """
    labels = jax.tree.map(lambda train: "train" if train else "keep", trainable)
    # optax.selective_transform would do the same, but checkpoints contain these two names.
    return optax.partition({"train": optimizer, "keep": optax.set_to_zero()}, labels)


@dataclasses.dataclass
class Plateau:
    """Lowers the learning rate when the validation loss stops falling.

    It follows PyTorch's ReduceLROnPlateau with a relative threshold. Its state is `best`, the lowest loss (None before
    the first validation), and `waited`, the validations since that loss or since the last lowering.
    (optax.contrib.reduce_on_plateau waits one validation less, and keeps its state with the optimiser's, where
    checkpoints of earlier versions have none.)
    """

    decay: float
    best: float | None = None
    waited: int = 0
    patience: int = PLATEAU_PATIENCE
    threshold: float = 1e-4

    def factor(self, loss: float) -> float:
        """The factor of the learning rate after a validation of loss `loss`: `decay`, or 1."""
        if self.best is None or loss < self.best * (1 - self.threshold):
            self.best, self.waited = loss, 0
            return 1.0
        self.waited += 1
        if self.waited > self.patience:
            self.waited = 0
            return self.decay
        return 1.0
