"""The parts of a run (model, optimiser, schedule, steps), put together for training, --dry_run and `afloc compile`."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.stages import Lowered
from jaxtyping import Array, PyTree

from afloc_jax.levels import ImageLevels, TextLevels
from afloc_jax.models import AFLoc, build, initial_variables, trainable
from afloc_jax.models.afloc import backbone_features
from afloc_jax.models.backbone import Features
from afloc_jax.training.failures import explained
from afloc_jax.training.gradients import Batch, images_of, text_sides, token_batch
from afloc_jax.training.mesh import batch_sharding, place_state, state_sharding
from afloc_jax.training.optimizer import Extension, LearningRate, build_optimizer, build_schedule, freeze
from afloc_jax.training.scales import with_scales
from afloc_jax.training.settings import PRECISIONS, LowRank, RunConfig
from afloc_jax.training.step import (
    TrainState,
    TrainStep,
    ValidationStep,
    build_train_step,
    build_validation_step,
    new_state,
)
from data_pipelines.augment import NUMBERS
from data_pipelines.hashes import hashed_sentences

_ASSUMED_STEPS_PER_EPOCH = 1000  # used where no data are open; no shape depends on it


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The parts that a run computes with.

    Attributes:
        config: the run's config, with the text encoder and the vocabulary size of the model; `loss.low_rank` is
            True or False.
        low_rank: what `loss.low_rank` was settled to, and why.
        mesh: the devices.
        steps_per_epoch: training steps of an epoch.
        total_steps: training steps of the run.
        model: the network, in the precision of the run.
        variables_like: shapes and types of `params`, with those of scales.py, and of `batch_stats`.
        extensions: where the run was extended, in order.
        learning_rate: that of each step.
        optimizer: the update of trainable parameters; frozen ones get none.
        train_step, validation_step: functions that are compiled at their first call.
    """

    config: RunConfig
    low_rank: LowRank
    mesh: Mesh
    steps_per_epoch: int
    total_steps: int
    extensions: Sequence[Extension]
    learning_rate: LearningRate
    model: AFLoc
    variables_like: Mapping[str, PyTree[jax.ShapeDtypeStruct]]
    optimizer: optax.GradientTransformation
    train_step: TrainStep
    validation_step: ValidationStep

    def state(self, variables: Mapping[str, PyTree[Array]]) -> TrainState:
        """The state before step 0, on the devices.

        The variables are sharded first. The optimiser's state is then made sharded as well and never lies on one device
        in full.
        """
        variables = {**variables, "params": with_scales(variables["params"], self.config.loss)}
        state: TrainState = place_state(new_state(place_state(variables, self.mesh), self.optimizer), self.mesh)
        return state

    def state_like(self) -> TrainState:
        """Shapes, types and shardings of the state; no array is made."""
        state = jax.eval_shape(functools.partial(new_state, optimizer=self.optimizer), self.variables_like)
        placed: TrainState = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            state_sharding(state, self.mesh),
        )
        return placed

    def batch_like(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a global batch."""
        pairs, slots, side = self.config.training.batch_size, self.config.data.max_tokens, self.config.data.image_size
        negatives, sentences = self.config.loss.hard_negatives, hashed_sentences(slots)
        shapes = {
            **dict.fromkeys(("token_ids", "word_ids", "sentence_ids"), (pairs, slots)),
            **dict.fromkeys(("word_count", "sentence_count"), (pairs,)),
        }
        arrays = {"image": ((pairs, side, side), jnp.uint8), **{name: (shapes[name], jnp.int32) for name in shapes}}
        data = self.config.data
        for name, shape in (("report_hash", (2,)), ("sentence_hashes", (sentences, 2))):
            arrays[name] = (pairs, *shape), jnp.uint32
        if negatives:
            arrays |= {f"negative_{name}": ((pairs, negatives, *shapes[name][1:]), jnp.int32) for name in shapes}
            arrays["negative_hashes"] = (pairs, negatives, sentences, 2, 2), jnp.uint32
        if data.features:
            arrays |= {f"features_{name}": (one.shape, one.dtype) for name, one in self.features_like(pairs).items()}
        if data.augment and data.augment_on == "device":
            arrays["augmentation"] = ((pairs, NUMBERS), jnp.float32)
        sharding = batch_sharding(self.mesh)
        return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, (shape, dtype) in arrays.items()}

    def features_like(self, images: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the features of so many images before their projection, by level."""
        config, like = self.config, self.variables_like
        side, dtype = config.data.image_size, PRECISIONS[config.training.precision]
        parts = {name: tree["image_encoder"].get("backbone", {}) for name, tree in like.items() if tree}
        squares = jax.ShapeDtypeStruct((images, side, side), jnp.uint8)
        found: Features = jax.eval_shape(
            lambda parts, squares: backbone_features(config.model.image, parts, squares, dtype), parts, squares
        )
        return found._asdict()

    def embeddings_like(self) -> tuple[ImageLevels, TextLevels]:
        """Shapes and types of what the model returns for a batch."""

        def embed(variables: Mapping[str, PyTree], batch: Batch) -> tuple[ImageLevels, TextLevels]:
            model = self.model.bind(variables)
            image, text = model(images_of(batch), token_batch(batch), with_factors=self.config.loss.is_low_rank)
            return image, text_sides(text, batch)

        like: tuple[ImageLevels, TextLevels] = jax.eval_shape(embed, self.variables_like, self.batch_like())
        return like

    def trace(self) -> None:
        """Traces the training step on shapes alone, without computing anything.

        Raises:
            UsageError: the network or the loss refuses the config.
        """
        with explained():
            jax.eval_shape(self.train_step, self.state_like(), self.batch_like())

    def lower(self) -> Lowered:
        """The training step, lowered for the devices but not compiled. Raises UsageError as `trace` does."""
        with explained():
            return self.train_step.lower(self.state_like(), self.batch_like())


def assemble(
    config: RunConfig,
    mesh: Mesh,
    steps_per_epoch: int = _ASSUMED_STEPS_PER_EPOCH,
    extensions: Sequence[Extension] = (),
) -> Assembly:
    """Puts a run together without making any array.

    Args:
        config: the config with the image size of the records and the vocabulary size of the tokenizer. Where the data
            are not open, both are the published ones.
        mesh: the devices; they need not exist.
        steps_per_epoch: the number that the learning-rate schedule counts epochs by.
        extensions: where the run was extended.
    """
    training = config.training
    model = build(config.model, PRECISIONS[training.precision], remat=training.remat != "none")
    variables = jax.eval_shape(functools.partial(initial_variables, model), jax.random.key(0))
    params = jax.eval_shape(functools.partial(with_scales, settings=config.loss), variables["params"])
    variables = {**variables, "params": params}
    features: int = variables["params"]["image_encoder"]["project_shallow"]["kernel"].shape[0]
    low_rank = config.low_rank(features)
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, low_rank=low_rank.on))
    optimizer = freeze(build_optimizer(config.optimizer), trainable(variables["params"], config.model))
    total_steps = config.training.total_steps(steps_per_epoch)
    schedule = build_schedule(config.optimizer, steps_per_epoch, total_steps, extensions)
    return Assembly(
        config,
        low_rank,
        mesh,
        steps_per_epoch,
        total_steps,
        extensions,
        schedule,
        model,
        variables,
        optimizer,
        build_train_step(model, config, optimizer, schedule, mesh),
        build_validation_step(model, config, mesh),
    )
