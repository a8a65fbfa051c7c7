"""The losses of a batch and their gradient: in one pass, or by gradient caching, which encodes the batch in chunks.

The contrast needs all embeddings of the batch at once, but the encoders do not. With `training.micro_batch` m the step

1. encodes m pairs at a time, without keeping anything for a backward pass,
2. computes the loss and its gradient with respect to the embeddings of the whole batch,
3. encodes each chunk again and pulls that gradient back to the parameters

(GradCache, Gao et al., arXiv 2101.06983). Memory grows with m, plus the embeddings of the batch. The encoders' forward
pass is computed twice.

Both ways give the same gradient as long as the embeddings of a chunk do not depend on the rest of the batch. Batch
normalisation breaks this: in chunks its statistics are those of each chunk. Both ways still agree exactly where
`model.image.statistics_group` divides a device's share of a chunk, or where the image encoder is frozen. The running
statistics take the mean over chunks. Dropout draws other masks in chunks than in one pass.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from afloc_jax.errors import UsageError
from afloc_jax.levels import ImageLevels, MadeCaptions, TextHashes, TextLevels, TokenBatch
from afloc_jax.losses import ContrastiveLosses, contrastive_losses
from afloc_jax.models import AFLoc, trainable
from afloc_jax.models.backbone import Features
from afloc_jax.training.group_order import in_group_order
from afloc_jax.training.mesh import batch_axes, constrain, gather
from afloc_jax.training.ranks import Ranks, ranks
from afloc_jax.training.scales import scales_of
from afloc_jax.training.settings import REMAT_POLICIES, RunConfig

Batch = Mapping[str, Array]


class Result(NamedTuple):
    """The losses of a batch, the effective ranks of its embeddings, the batch statistics after it, and the gradient of
    the total loss by the parameters.
    """

    losses: ContrastiveLosses
    ranks: Ranks
    batch_stats: PyTree[Array]
    gradient: PyTree[Array]


class _Embeddings(NamedTuple):
    """The embeddings that the losses are differentiated by. With `low_rank`, `shallow` is the map before projection."""

    shallow: Float[Array, "B h w F"]
    deep: Float[Array, "B H W D"]
    whole: Float[Array, "B D"]
    words: Float[Array, "B L D"]
    sentences: Float[Array, "B L D"]
    report: Float[Array, "B D"]
    made: Float[Array, "B n T D"] | None  # sentences of hard negatives


GradientFunction = Callable[[PyTree[Array], PyTree[Array], Batch, PRNGKeyArray], Result]


def images_of(batch: Batch) -> Array | Features:
    """The images of a batch, or their features where it holds them (`data.features`)."""
    if "features_deep" not in batch:
        return batch["image"]
    return Features(batch["features_shallow"], batch["features_deep"], batch["features_whole"])


def token_batch(batch: Batch) -> TokenBatch:
    """The texts of a batch: its reports, each followed by the captions made from it (`loss.hard_negatives`)."""

    def every(name: str) -> Array:
        made = batch.get(f"negative_{name}")
        own = batch[name]
        if made is None:
            return own
        return jnp.concatenate([own[:, None], made], axis=1).reshape(-1, *own.shape[1:])

    return TokenBatch(**{field: every(field) for field in TokenBatch.__dataclass_fields__})


def text_sides(text: TextLevels, batch: Batch) -> TextLevels:
    """The reports of a batch, with all that the losses read of them, from the levels of its texts (`token_batch`)."""
    made = None
    if "negative_hashes" in batch:
        pairs, units = len(batch["word_count"]), batch["negative_hashes"].shape[2] + 1  # those that can be there
        apart = jax.tree.map(lambda leaf: leaf.reshape(pairs, -1, *leaf.shape[1:]), text)
        made = _made(apart.sentences[:, 1:, :units], batch)
        text = jax.tree.map(lambda leaf: leaf[:, 0], apart)
    return dataclasses.replace(text, hashes=hashes_of(batch), made=made)


def _made(sentences: Float[Array, "B n T D"], batch: Batch) -> MadeCaptions:
    return MadeCaptions(sentences, batch["negative_sentence_count"], batch["negative_hashes"])


def hashes_of(batch: Batch) -> TextHashes | None:
    """The hashes of the texts of a batch; None in one that was made without data_pipelines.batches."""
    return TextHashes(batch["report_hash"], batch["sentence_hashes"]) if "report_hash" in batch else None


def build_encoder(model: AFLoc, config: RunConfig, mesh: Mesh) -> Callable[..., tuple[_Embeddings, PyTree[Array]]]:
    """A function `encode(params, batch_stats, batch, dropout key) -> (embeddings, batch statistics)`."""
    low_rank = config.loss.is_low_rank

    def encode(
        params: PyTree[Array], batch_stats: PyTree[Array], batch: Batch, key: PRNGKeyArray
    ) -> tuple[_Embeddings, PyTree[Array]]:
        trains = trainable(params, config.model)
        params = gather(params, mesh)
        params = jax.tree.map(lambda leaf, train: leaf if train else jax.lax.stop_gradient(leaf), params, trains)
        (image, text), updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images_of(batch),
            token_batch(batch),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
            with_factors=low_rank,
        )
        shallow = image.shallow_factors[0] if low_rank else image.shallow
        text = text_sides(text, batch)
        made = None if text.made is None else text.made.sentences
        embeddings = _Embeddings(shallow, image.deep, image.whole, text.words, text.sentences, text.report, made)
        return embeddings, updates.get("batch_stats", batch_stats)

    policy = REMAT_POLICIES[config.training.remat]
    if policy is not None:
        encode = jax.checkpoint(encode, policy=policy)
    return encode


def build_gradient(model: AFLoc, config: RunConfig, mesh: Mesh) -> GradientFunction:
    """A function `gradient(params, batch_stats, batch, dropout key) -> Result`, to be called under jit.

    Frozen parameters are constants: their gradient is 0, and no backward pass is computed for them.
    """
    low_rank, micro = config.loss.is_low_rank, config.training.micro_batch
    encode = build_encoder(model, config, mesh)

    def losses(embeddings: _Embeddings, params: PyTree[Array], batch: Batch) -> tuple[ContrastiveLosses, Ranks]:
        factors = (embeddings.shallow, gather(_kernel(params), mesh)) if low_rank else None
        image = ImageLevels(embeddings.shallow, embeddings.deep, embeddings.whole, factors)
        counts = batch["word_count"], batch["sentence_count"]
        made = None if embeddings.made is None else _made(embeddings.made, batch)
        text = TextLevels(embeddings.words, embeddings.sentences, embeddings.report, *counts, hashes_of(batch), made)
        found = contrastive_losses(image, text, config.loss, mesh=mesh, scales=scales_of(params))
        return found, ranks(image, text, config.loss)

    def one_shot(params: PyTree[Array], batch_stats: PyTree[Array], batch: Batch, key: PRNGKeyArray) -> Result:
        def loss(params: PyTree[Array]) -> tuple[Array, tuple[ContrastiveLosses, Ranks, PyTree[Array]]]:
            embeddings, updated = encode(params, batch_stats, batch, key)
            found, spread = losses(embeddings, params, batch)
            return found.total, (found, spread, updated)

        (_, (found, spread, updated)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return Result(found, spread, updated, gradient)

    def cached(params: PyTree[Array], batch_stats: PyTree[Array], batch: Batch, key: PRNGKeyArray) -> Result:
        pairs = len(batch["image"])
        if pairs % micro or micro % mesh.size:
            raise UsageError(
                f"training.micro_batch is {micro}: it must divide the batch of {pairs} and be a multiple of the "
                f"{mesh.size} devices"
            )
        chunks = pairs // micro
        parts = {name: _split(array, chunks, mesh) for name, array in batch.items()}
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(chunks))

        embeddings, updated = jax.lax.map(lambda part: encode(params, batch_stats, *part), (parts, keys))
        whole = jax.tree.map(lambda leaf: _joined(leaf, mesh), embeddings)

        def loss(embeddings: _Embeddings, params: PyTree[Array]) -> tuple[Array, tuple[ContrastiveLosses, Ranks]]:
            found, spread = losses(embeddings, params, batch)
            return found.total, (found, spread)

        # The loss uses parameters directly only for the projection of a low-rank word level, and for scales.
        (_, (found, spread)), (d_whole, start) = jax.value_and_grad(loss, (0, 1), has_aux=True)(whole, params)

        def add(gradient: PyTree[Array], chunk: tuple[Batch, PRNGKeyArray, _Embeddings]) -> tuple[PyTree[Array], None]:
            part, key, d_embeddings = chunk
            _, pull_back = jax.vjp(lambda params: encode(params, batch_stats, part, key)[0], params)
            return constrain(jax.tree.map(jnp.add, gradient, pull_back(d_embeddings)[0]), mesh), None

        d_parts = jax.tree.map(lambda leaf: _split(leaf, chunks, mesh), d_whole)
        gradient, _ = jax.lax.scan(add, constrain(start, mesh), (parts, keys, d_parts))
        return Result(found, spread, jax.tree.map(lambda leaf: leaf.mean(axis=0), updated), gradient)

    compute = cached if micro else one_shot

    def gradient(params: PyTree[Array], batch_stats: PyTree[Array], batch: Batch, key: PRNGKeyArray) -> Result:
        return compute(params, batch_stats, in_group_order(batch, config.loss, mesh), key)

    return gradient


def _kernel(params: PyTree[Array]) -> Array:
    kernel: Array = params["image_encoder"]["project_shallow"]["kernel"]
    return kernel


def _split(array: Array, chunks: int, mesh: Mesh) -> Array:
    """[B, ...] -> [chunks, m, ...]. Every chunk takes pairs from every device, so no pair moves between devices."""
    array = array.reshape(mesh.size, chunks, -1, *array.shape[1:])
    array = jnp.moveaxis(array, 1, 0).reshape(chunks, -1, *array.shape[3:])
    return _placed(array, mesh, PartitionSpec(None, batch_axes(mesh)))


def _joined(parts: Array, mesh: Mesh) -> Array:
    """The inverse of `_split`."""
    chunks = len(parts)
    array = jnp.moveaxis(parts.reshape(chunks, mesh.size, -1, *parts.shape[2:]), 1, 0)
    return _placed(array.reshape(-1, *parts.shape[2:]), mesh, PartitionSpec(batch_axes(mesh)))


def _placed(array: Array, mesh: Mesh, over: PartitionSpec) -> Array:
    placed: Array = jax.lax.with_sharding_constraint(array, NamedSharding(mesh, over))
    return placed
