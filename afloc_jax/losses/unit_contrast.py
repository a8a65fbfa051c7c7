"""Contrast of single text units with images: beyond the published recipe, `loss.contrast_unit = "unit"`.

The published loss first sums the evidence of all units of a caption and then contrasts captions. The most telling
sentence then takes the credit for the whole report, and `[CLS]`, which has read all of it, can answer for every
sentence. Here each sentence (or word) has to find its own image:

    loss = mean over units t of caption i:  log sum_b exp(temp3 * r[b, t]) - temp3 * r[i, t]

`r` is the relevance of definition.py with region_pooling = "logsumexp". Only this direction is contrasted: the same
sentence ("no pneumothorax") stands in many reports, so it is no evidence against the other captions of a batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from afloc_jax.losses.definition import cosine, norm
from afloc_jax.losses.settings import LocalSettings

CHUNK = 64  # units that are compared with all images at once


def unit_contrast(
    regions: Float[Array, "B N D"],
    units: Float[Array, "B T D"],
    counts: Int[Array, " B"],
    settings: LocalSettings,
    weights: Float[Array, " B"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross entropy of finding the image of every unit, and the total weight of the units it is the mean of.

    Valid units are 1 .. counts[i] - 1: `[CLS]` is left out. A pair whose caption is empty (count 0) is neither an
    example nor an alternative. `weights` weigh the units of each caption. Without any unit both results are 0.

    Valid units are packed into chunks; chunks of padding cost nothing, and a chunk's work on the regions is done
    again in the backward pass, so that one chunk is all that is ever held.
    """
    wide = jnp.promote_types(regions.dtype, jnp.float32)
    regions, units = regions.astype(wide), units.astype(wide)
    batch, slots, width = units.shape
    slot = jnp.arange(slots)
    share = ((slot > 0) & (slot < counts[:, None])).astype(wide)
    if weights is not None:
        share = share * weights[:, None]
    total = share.sum()

    packed = jnp.argsort(share.ravel() == 0, stable=True)  # the units that count come first
    padding = -packed.size % CHUNK
    caption = jnp.pad(packed // slots, (0, padding)).reshape(-1, CHUNK)
    share = jnp.pad(share.ravel()[packed], (0, padding)).reshape(-1, CHUNK)
    in_chunks = jnp.pad(units.reshape(-1, width)[packed], ((0, padding), (0, 0))).reshape(-1, CHUNK, width)

    @jax.checkpoint
    def chunk_loss(chunk):
        units, caption, share = chunk
        logits = settings.contrast_temperature * unit_relevance(regions, units, settings)  # [B, U]
        own_image = jnp.arange(batch)[:, None] == caption
        # -inf is safe beside the finite own image, and its gradient there is exactly 0.
        seen = jnp.where((counts > 0)[:, None] | own_image, logits, -jnp.inf)
        own = jnp.where(own_image, logits, 0).sum(axis=0)
        return (share * (jax.nn.logsumexp(seen, axis=0) - own)).sum()

    def one_chunk(chunk):
        return jax.lax.cond(chunk[2].any(), chunk_loss, lambda _: jnp.zeros((), wide), chunk)

    losses = jax.lax.map(one_chunk, (in_chunks, caption, share))
    return losses.sum() / jnp.where(total > 0, total, 1), total


def unit_relevance(
    regions: Float[Array, "B N D"], units: Float[Array, "U D"], settings: LocalSettings
) -> Float[Array, "B U"]:
    """How well each unit is found in each image: (1/k) log mean_n exp(k cos(C_b[n], w))."""
    k = settings.region_sharpness
    dot = jnp.einsum("ud,bnd->bun", units, regions)
    similarity = cosine(dot, norm(units)[:, None] * norm(regions)[:, None, :])
    return (jax.nn.logsumexp(k * similarity, axis=-1) - jnp.log(similarity.shape[-1])) / k


def grouped_unit_contrast(
    regions: Float[Array, "G B N D"],
    units: Float[Array, "G B T D"],
    counts: Int[Array, "G B"],
    settings: LocalSettings,
    weights: Float[Array, "G B"] | None = None,
) -> Float[Array, ""]:
    """`unit_contrast` within each contrast group: the mean over all units of all groups."""

    def one_group(group):
        regions, units, counts, weights = group
        return unit_contrast(regions, units, counts, settings, weights)

    losses, totals = jax.lax.map(one_group, (regions, units, counts, weights))
    total = totals.sum()
    return (losses * totals).sum() / jnp.where(total > 0, total, 1)
