"""Fine-tuning: the image encoder of a model and a linear head on it learn from labels together."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
from jaxtyping import Array, Float, Int, PyTree, UInt8
from tqdm import tqdm

from afloc_jax.errors import UserError
from afloc_jax.evaluation.labelled import LabelledRecords, squares_of
from afloc_jax.evaluation.transfer.linear import Linear, mean_auc
from afloc_jax.evaluation.transfer.scores import Fitted
from afloc_jax.evaluation.transfer.splits import TEST, TRAIN, VALIDATION, Splits
from afloc_jax.evaluation.transfer.subsets import Subset
from afloc_jax.files import Path
from afloc_jax.inference.model import Model
from afloc_jax.models import AFLoc, build
from afloc_jax.models.backbone import Features
from afloc_jax.training.checkpoints import Checkpoints
from afloc_jax.training.failures import StopSignal
from afloc_jax.training.finetune.settings import FinetuneConfig
from afloc_jax.training.mesh import build_mesh, place_batch, place_state
from afloc_jax.training.metrics import Writers
from afloc_jax.training.optimizer import LearningRate, build_optimizer, build_schedule, freeze
from afloc_jax.training.progress import Progress
from afloc_jax.training.settings import PRECISIONS
from afloc_jax.training.step import TrainState, new_state
from afloc_jax.training.workdir import CHECKPOINTS
from afloc_jax.training.writer import Resumed
from data_pipelines.augment import augment, draw
from data_pipelines.constants import Framing
from data_pipelines.reading import Records

IMAGE, HEAD = "image_encoder", "head"
_SHOWN = 32  # validation and test images at a time

Step = Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Float[Array, ""]]]
"""A compiled step: the state after it, and the loss of the batch. The passed state is donated."""


class Stopped(Exception):
    """A signal came; the state of the head is saved."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """The records that a head learns from or is scored on: [k] rows of a source, and labels [k, C] with NaN."""

    source: Records
    rows: Int[np.ndarray, " k"]
    labels: Float[np.ndarray, "k C"]
    framing: Framing

    @classmethod
    def of(
        cls,
        source: Records,
        records: LabelledRecords,
        framing: Framing,
        chosen: slice | Int[np.ndarray, " k"] = slice(None),
    ) -> "Examples":
        return cls(source, records.rows[chosen], records.labels[chosen], framing)

    def batch(self, step: int, size: int, seed: int, augmented: bool) -> dict[str, np.ndarray]:
        """The batch of a step: `image` [size, S, S] uint8 and `label` [size, C]; it depends on seed and step alone.

        Every epoch has an order of its own, of which the rest that fills no batch is left out.
        """
        epoch, number = divmod(step, len(self.rows) // size)
        order = np.random.default_rng((seed, epoch)).permutation(len(self.rows))
        chosen = order[number * size : (number + 1) * size]
        images = squares_of(self.source, self.rows[chosen], self.framing)
        if augmented:
            rng = np.random.default_rng((seed, step, 1))
            images = np.stack([augment(image, draw(rng)) for image in images])
        return {"image": images, "label": self.labels[chosen].astype(np.float32)}


def fine_tune(
    model: Model,
    start: Linear,
    splits: Splits,
    subset: Subset,
    config: FinetuneConfig,
    folder: Path,
    stop: StopSignal,
) -> Fitted:
    """Trains encoder and head on a subset, from the last checkpoint in `folder` or from the start.

    The weights with the lowest validation loss are scored. The validation at step 0 counts, so that a head which starts
    as the linear probe can stay what it was.

    Args:
        model: the model whose image encoder is trained; it stays as it is.
        start: the linear probe of the subset, from which the head starts unless `training.head` is "zero".
        splits: the records.
        subset: the training records to learn from.
        config: the sections `optimizer` and `training`, and the seed.
        folder: for metrics.jsonl, events and checkpoints of this head.
        stop: polled at every step.

    Raises:
        Stopped: a signal came, and the state is saved.
        UserError: the loss is not finite.
    """
    settings, framing = config.training, config.settings.framed
    examples = {
        part: Examples.of(splits.sources[part], records, framing, subset.rows if part == TRAIN else slice(None))
        for part, records in splits.labelled.items()
    }
    devices = jax.device_count()
    size = min(settings.batch_size, len(subset.rows))
    size = size // devices * devices or size
    mesh = build_mesh(jax.devices() if size % devices == 0 else jax.devices()[:1])
    network = trained_network(model, settings.precision)
    variables = first_variables(model, start, zero=settings.head == "zero")
    optimizer = freeze(build_optimizer(config.optimizer), _trainable(variables["params"], network))
    schedule = build_schedule(config.optimizer, max(len(subset.rows) // size, 1), settings.steps)
    train_step = _train_step(network, optimizer, schedule, config.seed)
    logits_of = functools.partial(_logits, network)

    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder / CHECKPOINTS, keep_best=1)
    state: TrainState = place_state(new_state(variables, optimizer), mesh)
    progress, restored = Progress(), checkpoints.restore_last(state.to_saved())
    if restored is not None:
        state, progress = TrainState.from_saved(restored[0]), Progress(**restored[1])
    writers = Writers(Resumed(folder, progress.step, progress.validated_step, folder.name, folder.parent.name))

    def validate() -> None:
        examined = examples[VALIDATION]
        logits = _all_logits(logits_of, state, examined)
        loss = label_loss(examined.labels, logits)
        writers.write(progress.step, "validation", {"loss": loss, "auc": mean_auc(examined.labels, logits)})
        progress.enter(loss, settings.early_stopping)
        checkpoints.save(state.to_saved(), progress.step, dataclasses.asdict(progress), loss)

    bar = tqdm(total=settings.steps, initial=progress.step, desc=folder.name, unit="step", disable=None)
    try:
        with bar, ThreadPoolExecutor(1) as ahead:
            stop.hold()
            if restored is None:
                validate()
            made = functools.partial(examples[TRAIN].batch, size=size, seed=config.seed, augmented=settings.augment)
            coming = ahead.submit(made, progress.step)
            while progress.step < settings.steps and not progress.stopped_early:
                batch = place_batch(coming.result(), mesh)  # type: ignore[arg-type]
                coming = ahead.submit(made, progress.step + 1)
                state, loss = train_step(state, batch)
                progress.step += 1
                bar.update()
                if progress.step % settings.log_every == 0:
                    writers.write(progress.step, "train", {"loss": _finite(float(loss), folder, progress.step)})
                if progress.step % settings.validate_every == 0 or progress.step == settings.steps:
                    validate()
                elif stop.received:
                    checkpoints.save(state.to_saved(), progress.step, dataclasses.asdict(progress), None)
                if stop.received:
                    raise Stopped
        checkpoints.commit()
        best, step = checkpoints.restore_best(state.to_saved())
    finally:
        writers.close()
        checkpoints.close()
    logits = _all_logits(logits_of, TrainState.from_saved(best), examples[TEST])
    chosen = {"step": step, "of steps": progress.step, "validation loss": progress.best_loss}
    return Fitted(np.asarray(scipy.special.expit(logits)), chosen)


def trained_network(model: Model, precision: str) -> AFLoc:
    """The network of a model in the precision of the run; a backbone that training kept frozen is trained here."""
    architecture = model.config.architecture
    image = dataclasses.replace(architecture.image, freeze=False)
    return build(dataclasses.replace(architecture, image=image), dtype=PRECISIONS[precision])


def first_variables(model: Model, start: Linear, zero: bool) -> dict[str, PyTree[Array]]:
    """The image encoder of the model, and a head on its features that is the linear probe, or zero."""
    kernel = start.weights / start.scale[:, None]
    bias = start.bias - start.mean @ kernel
    head = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    if zero:
        head = jax.tree.map(jnp.zeros_like, head)
    variables = model.variables
    statistics = {IMAGE: variables["batch_stats"][IMAGE]} if IMAGE in variables.get("batch_stats", {}) else {}
    made = {"params": {IMAGE: variables["params"][IMAGE], HEAD: head}, "batch_stats": statistics}
    # Steps donate their state, and the model is used again.
    copied: dict[str, PyTree[Array]] = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), made)
    return copied


def label_loss(labels: Float[np.ndarray, "n C"], logits: Float[np.ndarray, "n C"]) -> float:
    """The mean binary cross entropy over all known labels."""
    known = np.isfinite(labels)
    target = np.where(known, labels, 0.0)
    return float((known * (np.logaddexp(0, logits) - target * logits)).sum() / max(known.sum(), 1))


def _features(
    network: AFLoc, params: PyTree, statistics: PyTree, images: UInt8[Array, "B S S"], dropout: Array | None
) -> tuple[Float[Array, "B F"], PyTree]:
    """The global features of the backbone, and the batch statistics after it; with `dropout` as in training."""
    train = dropout is not None
    _, state = network.apply(
        {"params": {IMAGE: params[IMAGE]}, "batch_stats": statistics},
        images,
        train=train,
        method="encode_image",
        capture_intermediates=lambda module, _: module.name == "backbone",
        mutable=["intermediates", *(["batch_stats"] if train else [])],
        rngs={} if dropout is None else {"dropout": dropout},
    )
    features: Features = state["intermediates"][IMAGE]["backbone"]["__call__"][0]
    return features.whole.astype(jnp.float32), state.get("batch_stats", statistics)


def _train_step(network: AFLoc, optimizer: optax.GradientTransformation, schedule: LearningRate, seed: int) -> Step:
    def loss_of(params: PyTree, statistics: PyTree, batch: Mapping[str, Array], dropout: Array) -> tuple[Array, PyTree]:
        whole, statistics = _features(network, params, statistics, batch["image"], dropout)
        logits = whole @ params[HEAD]["kernel"] + params[HEAD]["bias"]
        known = jnp.isfinite(batch["label"])
        each = optax.sigmoid_binary_cross_entropy(logits, jnp.where(known, batch["label"], 0.0))
        return jnp.where(known, each, 0.0).sum() / jnp.maximum(known.sum(), 1), statistics

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Array]:
        dropout = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, statistics), gradient = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.batch_stats, batch, dropout
        )
        update, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.params)
        rate = schedule(state.step)
        params = jax.tree.map(lambda leaf, change: leaf - (rate * change).astype(leaf.dtype), state.params, update)
        stepped = dataclasses.replace(
            state, step=state.step + 1, params=params, batch_stats=statistics, optimizer_state=optimizer_state
        )
        return stepped, loss

    compiled: Step = jax.jit(step, donate_argnums=0)
    return compiled


@functools.partial(jax.jit, static_argnames="network")
def _logits(network: AFLoc, params: PyTree, statistics: PyTree, images: UInt8[Array, "B S S"]) -> Float[Array, "B C"]:
    whole, _ = _features(network, params, statistics, images, None)
    logits: Array = whole @ params[HEAD]["kernel"] + params[HEAD]["bias"]
    return logits


def _all_logits(logits_of: Callable[..., Array], state: TrainState, examples: Examples) -> Float[np.ndarray, "n C"]:
    """The logits of all examples; the last batch is filled with its last image, so that one shape is compiled."""

    def parts() -> Iterator[np.ndarray]:
        for first in range(0, len(examples.rows), _SHOWN):
            squares = squares_of(examples.source, examples.rows[first : first + _SHOWN], examples.framing)
            filled = np.concatenate([squares, np.repeat(squares[-1:], _SHOWN - len(squares), axis=0)])
            yield np.asarray(logits_of(state.params, state.batch_stats, filled))[: len(squares)]

    return np.concatenate(list(parts())).astype(np.float64)


def _trainable(params: PyTree, network: AFLoc) -> PyTree:
    """The backbone, without the blocks that its options keep, and the head. The projections have no gradient here."""

    def decide(path: tuple[jax.tree_util.DictKey, ...], _: PyTree) -> bool:
        names = [entry.key for entry in path]
        kept = names[1] == "backbone" and network.settings.image.structure.keeps(names[2])
        return names[0] == HEAD or (names[1] == "backbone" and not kept)

    return jax.tree_util.tree_map_with_path(decide, params)


def _finite(loss: float, folder: Path, step: int) -> float:
    if not np.isfinite(loss):
        raise UserError(f"{folder.name}: the loss of step {step} is not finite; lower config.optimizer.lr")
    return loss
