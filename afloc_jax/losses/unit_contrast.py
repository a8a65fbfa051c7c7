"""Contrast of single text units with images, `loss.contrast_unit = "unit"`. It is not part of the published recipe.

The published loss sums the evidence of all units of a caption and then contrasts captions. One distinctive sentence
may therefore identify the image for its whole report, and so may `[CLS]`, whose embedding depends on the whole text;
the other sentences then learn little. Here each sentence (or word) has to find its own image:

    loss = mean over captions i and their units t of  log sum_b exp(temp3 r[b, t]) - temp3 r[i, t]

r [B, U] is the relevance of definition.py with region_pooling = "logsumexp". There is no cross entropy over texts: the
same sentence ("no pneumothorax") stands in many reports, so the other captions of a batch are no valid negatives.
Images whose captions share a sentence are negatives of each other unless `loss.twins` says otherwise.

With `loss.unit_negatives = "both"` there is one, that of `definition.multi_positive_contrast`: for its image, a unit is
also told from the units of all other captions. It keeps the logits of all images with all units, B x B x T numbers.

Hard negatives are valid negatives, so with them there is a cross entropy over texts too: given its image, a sentence is
told from the n sentences made from it, of which those that are stated are left out:

    loss = mean over captions i and their units t of  log(exp l_t + sum_m exp l_tm) - l_t,  l_t = temp3 r[i, t]
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from afloc_jax.losses.definition import SMALLEST_NORM_PRODUCT
from afloc_jax.losses.settings import LossSettings
from afloc_jax.vectors import norm, unit_norm

CHUNK = 64  # units compared with all images at once


def unit_contrast(
    regions: Float[Array, "B N D"],
    units: Float[Array, "B T D"],
    counts: Int[Array, " B"],
    settings: LossSettings,
    weights: Float[Array, " B"] | None = None,
    twins: Bool[Array, "B B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The cross entropy of choosing the image of every unit (a weighted mean over units), and the sum of the weights.

    The valid units of caption i are 1 .. counts[i] - 1: `[CLS]` is left out. A pair whose caption is empty (count 0) is
    neither an example nor a negative. `weights[i]` weighs every unit of caption i. Both results are 0 where there is no
    valid unit.

    `twins` says which captions share a sentence. With `settings.twins` "mask" the images of the twins of caption i
    leave the sum over b for its units; with "share" r[i, t] becomes the mean of r[b, t] over the images of its twins
    and its own (compare `definition.contrast`).

    Valid units are packed into chunks, and only chunks that hold any are computed, so the cost follows the counts and
    not the padded length. The backward pass computes each chunk again, so only one chunk [B, CHUNK, N] is in memory.
    """
    wide = jnp.promote_types(regions.dtype, jnp.float32)
    share = unit_shares(counts, units.shape[1], weights, wide)
    total = share.sum()
    chunks = _Chunks.make(units.astype(wide), share, counts, share > 0, None if settings.twins == "negative" else twins)
    return _chunked_loss(unit_norm(regions.astype(wide)), chunks, settings) / jnp.where(total > 0, total, 1), total


def both_contrast(
    regions: Float[Array, "B N D"],
    units: Float[Array, "B T D"],
    counts: Int[Array, " B"],
    settings: LossSettings,
    weights: Float[Array, " B"] | None = None,
    twins: Bool[Array, "B B"] | None = None,
) -> tuple[Float[Array, "2"], Float[Array, ""]]:
    """`definition.multi_positive_contrast`, image to text and text to image, and the sum of the weights of all units.

    As in `unit_contrast` single chunks are computed, but their logits are kept.
    """
    wide = jnp.promote_types(regions.dtype, jnp.float32)
    share, there = (unit_shares(counts, units.shape[1], of, wide) for of in (weights, None))
    total = share.sum()
    chunks = _Chunks.make(units.astype(wide), share, counts, there > 0, None if settings.twins == "negative" else twins)
    return _both_losses(unit_norm(regions.astype(wide)), chunks, settings) / jnp.where(total > 0, total, 1), total


class _Chunks(NamedTuple):
    """Text units packed into chunks: the first `number` places hold units that count."""

    units: Float[Array, "chunks CHUNK D"]  # norm 1, or 0
    share: Float[Array, "chunks CHUNK"]  # weight of each unit, 0 for padding
    caption: Int[Array, "chunks CHUNK"]  # index of the caption that each unit belongs to
    included: Bool[Array, " B"]  # images that serve as negatives
    number: Int[Array, ""]
    twins: Bool[Array, "B B"] | None  # None where they are negatives

    @classmethod
    def make(
        cls,
        units: Float[Array, "B T D"],
        share: Float[Array, "B T"],
        counts: Int[Array, " B"],
        there: Bool[Array, "B T"],
        twins: Bool[Array, "B B"] | None,
    ) -> "_Chunks":
        """The units in chunks, those that are `there` first."""
        batch, slots, width = units.shape
        packed = jnp.argsort(~there.ravel(), stable=True)
        padding = -packed.size % CHUNK

        def in_chunks(array: Array) -> Array:
            array = jnp.pad(array[packed], ((0, padding), *((0, 0),) * (array.ndim - 1)))
            return array.reshape(-1, CHUNK, *array.shape[1:])

        return cls(
            in_chunks(unit_norm(units).reshape(-1, width)),
            in_chunks(share.ravel()),
            in_chunks(jnp.repeat(jnp.arange(batch), slots)),
            counts > 0,
            jnp.count_nonzero(there),
            twins,
        )

    @property
    def used(self) -> Int[Array, ""]:
        """The chunks that hold units."""
        return -(-self.number // CHUNK)


def _chunk_loss(
    regions: Float[Array, "B N D"],
    units: Float[Array, "CHUNK D"],
    share: Float[Array, " CHUNK"],
    caption: Int[Array, " CHUNK"],
    included: Bool[Array, " B"],
    twins: Bool[Array, "B B"] | None,
    settings: LossSettings,
) -> Float[Array, ""]:
    """The weighted sum of the cross entropies of one chunk of units."""
    logits = settings.contrast_temperature * unit_relevance(regions, units, settings)  # [B, CHUNK]
    own_image = jnp.arange(regions.shape[0])[:, None] == caption
    seen = included[:, None]
    if twins is not None and settings.twins == "mask":
        seen = seen & ~twins[:, caption]
    # -inf is safe: the unit's own image keeps the log-sum-exp finite, and the gradient at -inf is exactly 0.
    of_all = jax.nn.logsumexp(jnp.where(seen | own_image, logits, -jnp.inf), axis=0)
    right = jnp.where(own_image, logits, 0).sum(axis=0)
    if twins is not None and settings.twins == "share":
        images = own_image | (twins[:, caption] & seen)
        right = jnp.where(images, logits, 0).sum(axis=0) / images.sum(axis=0)
    return (share * (of_all - right)).sum()


def made_contrast(
    regions: Float[Array, "B N D"],
    units: Float[Array, "B T D"],
    counts: Int[Array, " B"],
    made: Float[Array, "B n M D"],
    false: Bool[Array, "B n S"],
    settings: LossSettings,
    weights: Float[Array, " B"] | None = None,
) -> Float[Array, ""]:
    """The cross entropy of telling every unit from its hard negatives: the same mean as in `unit_contrast`.

    `false` says which sentences of the made captions, units 1 .. S, are negatives. A unit without any adds 0.
    """
    wide = jnp.promote_types(regions.dtype, jnp.float32)
    share, last = unit_shares(counts, units.shape[1], weights, wide), false.shape[2] + 1
    texts = jnp.concatenate([units[:, None, 1:last], made[:, :, 1:last]], axis=1).astype(wide)  # [B, 1 + n, S, D]

    def of_image(regions: Array, texts: Array) -> Array:
        return unit_relevance(regions[None], texts, settings)[0]

    flat = unit_norm(texts).reshape(len(texts), -1, texts.shape[-1])
    # The similarities [B, (1 + n) S, N] are computed again, not kept.
    relevance: Array = jax.checkpoint(jax.vmap(of_image))(unit_norm(regions.astype(wide)), flat)
    logits = settings.contrast_temperature * relevance.reshape(texts.shape[:3])
    seen = jnp.pad(false, ((0, 0), (1, 0), (0, 0)), constant_values=True)  # with the unit itself
    losses = jax.nn.logsumexp(jnp.where(seen, logits, -jnp.inf), axis=1) - logits[:, 0]
    total = share.sum()
    loss: Array = (share[:, 1:last] * losses).sum() / jnp.where(total > 0, total, 1)
    return loss


def unit_shares(
    counts: Int[Array, " B"], slots: int, weights: Float[Array, " B"] | None, dtype: DTypeLike
) -> Float[Array, "B T"]:
    """The weight of every unit: that of its caption, and 0 for `[CLS]` and where there is none."""
    slot = jnp.arange(slots)
    share = ((slot > 0) & (slot < counts[:, None])).astype(dtype)
    return share if weights is None else share * weights[:, None]


def _at(chunks: _Chunks, index: Int[Array, ""]) -> tuple[Array, Array, Array, Array, Array | None]:
    return chunks.units[index], chunks.share[index], chunks.caption[index], chunks.included, chunks.twins


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _chunked_loss(regions: Float[Array, "B N D"], chunks: _Chunks, settings: LossSettings) -> Float[Array, ""]:
    def add(index: Array, loss: Array) -> Array:
        return loss + _chunk_loss(regions, *_at(chunks, index), settings)

    loss: Array = jax.lax.fori_loop(0, chunks.used, add, jnp.zeros((), regions.dtype))
    return loss


def _chunked_loss_forward(regions: Array, chunks: _Chunks, settings: LossSettings) -> tuple[Array, PyTree]:
    return _chunked_loss(regions, chunks, settings), (regions, chunks)


def _chunked_loss_backward(settings: LossSettings, saved: PyTree, d_loss: Array) -> tuple[Array, _Chunks]:
    regions, chunks = saved

    def add(index: Array, gradients: PyTree) -> PyTree:
        d_regions, d_units, d_share = gradients
        units, share, caption, included, twins = _at(chunks, index)

        def loss(regions: Array, units: Array, share: Array) -> Array:
            return _chunk_loss(regions, units, share, caption, included, twins, settings)

        _, pull_back = jax.vjp(loss, regions, units, share)
        more, units, share = pull_back(d_loss)
        return d_regions + more, d_units.at[index].set(units), d_share.at[index].set(share)

    nothing = jax.tree.map(jnp.zeros_like, (regions, chunks.units, chunks.share))
    d_regions, d_units, d_share = jax.lax.fori_loop(0, chunks.used, add, nothing)
    none: PyTree = None  # integers and booleans have no gradient
    return d_regions, _Chunks(d_units, d_share, none, none, none, none)


_chunked_loss.defvjp(_chunked_loss_forward, _chunked_loss_backward)


def unit_relevance(
    regions: Float[Array, "B N D"], units: Float[Array, "U D"], settings: LossSettings
) -> Float[Array, "B U"]:
    """`definition.unit_relevance` of each unit to each image. Vectors have norm 1 (or 0)."""
    k = settings.region_sharpness
    similarity = jnp.einsum("ud,bnd->bun", units, regions)
    if settings.region_pooling == "logsumexp":
        return (jax.nn.logsumexp(k * similarity, axis=-1) - jnp.log(similarity.shape[-1])) / k
    attention = jax.nn.softmax(k * similarity, axis=-1)
    v = jnp.einsum("bun,bnd->bud", attention, regions)
    return (attention * similarity).sum(axis=-1) / jnp.maximum(norm(v), SMALLEST_NORM_PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _chunked_logits(regions: Float[Array, "B N D"], chunks: _Chunks, settings: LossSettings) -> Float[Array, "c B U"]:
    """temp3 r of every image and every unit in a chunk that is used; 0 elsewhere."""

    def add(index: Array, logits: Array) -> Array:
        found = settings.contrast_temperature * unit_relevance(regions, chunks.units[index], settings)
        return logits.at[index].set(found)

    nothing = jnp.zeros((len(chunks.units), len(regions), CHUNK), regions.dtype)
    logits: Array = jax.lax.fori_loop(0, chunks.used, add, nothing)
    return logits


def _chunked_logits_forward(regions: Array, chunks: _Chunks, settings: LossSettings) -> tuple[Array, PyTree]:
    return _chunked_logits(regions, chunks, settings), (regions, chunks)


def _chunked_logits_backward(settings: LossSettings, saved: PyTree, d_logits: Array) -> tuple[Array, _Chunks]:
    regions, chunks = saved

    def add(index: Array, gradients: tuple[Array, Array]) -> tuple[Array, Array]:
        d_regions, d_units = gradients
        relevance = functools.partial(unit_relevance, settings=settings)
        _, pull_back = jax.vjp(relevance, regions, chunks.units[index])
        more, units = pull_back(settings.contrast_temperature * d_logits[index])
        return d_regions + more, d_units.at[index].set(units)

    nothing = jax.tree.map(jnp.zeros_like, (regions, chunks.units))
    d_regions, d_units = jax.lax.fori_loop(0, chunks.used, add, nothing)
    none: PyTree = None  # integers and booleans have no gradient, and the shares are not read
    return d_regions, _Chunks(d_units, jnp.zeros_like(chunks.share), none, none, none, none)


_chunked_logits.defvjp(_chunked_logits_forward, _chunked_logits_backward)


def _both_losses(regions: Float[Array, "B N D"], chunks: _Chunks, settings: LossSettings) -> Float[Array, "2"]:
    """The weighted sums of both cross entropies, image to text and text to image."""
    logits = jnp.moveaxis(_chunked_logits(regions, chunks, settings), 0, 1).reshape(len(regions), -1)  # [B, U]
    share, caption = chunks.share.ravel(), chunks.caption.ravel()
    own_image = jnp.arange(len(regions))[:, None] == caption
    seen = chunks.included[:, None] & (jnp.arange(len(share)) < chunks.number)
    if chunks.twins is not None:  # "mask"
        seen = seen & ~chunks.twins[:, caption]
    right = jnp.where(own_image, logits, 0).sum(axis=0)
    of_images = jax.nn.logsumexp(jnp.where(seen | own_image, logits, -jnp.inf), axis=0)
    others = jax.nn.logsumexp(jnp.where(seen & ~own_image, logits, jnp.finfo(logits.dtype).min), axis=1)
    of_texts = jnp.logaddexp(right, others[caption])
    return jnp.stack([(share * (of_texts - right)).sum(), (share * (of_images - right)).sum()])


def grouped_unit_contrast(
    regions: Float[Array, "G B N D"],
    units: Float[Array, "G B T D"],
    counts: Int[Array, "G B"],
    settings: LossSettings,
    weights: Float[Array, "G B"] | None = None,
    twins: Bool[Array, "G B B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The losses within each contrast group, image to text and text to image, as means over the units of all groups.

    Without `settings.unit_negatives` "both" the first is 0.
    """

    def one_group(group: PyTree) -> tuple[Array, Array]:
        regions, units, counts, weights, twins = group
        if settings.unit_negatives == "both":
            return both_contrast(regions, units, counts, settings, weights, twins)
        loss, total = unit_contrast(regions, units, counts, settings, weights, twins)
        return jnp.stack([jnp.zeros_like(loss), loss]), total

    losses, totals = jax.lax.map(one_group, (regions, units, counts, weights, twins))
    total = totals.sum()
    by_image, by_text = jnp.sum(losses * totals[:, None], axis=0) / jnp.where(total > 0, total, 1)
    return by_image, by_text
