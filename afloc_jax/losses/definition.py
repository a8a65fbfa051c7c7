"""The published losses, written as the formula: the oracle for everything faster.

Sources: AFLoc (arXiv 2401.02044), equations of the report-level and local contrastive losses, which build on GLoRIA
(ICCV 2021). Every array of the B x B x T x N work is alive at once, so this is for small batches, tests and reading.

Notation: image b has N regions C_b, caption i has T_i valid text units W_i (words or sentences), width D.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from afloc_jax.losses.settings import PUBLISHED, LossSettings
from afloc_jax.vectors import norm

SMALLEST_NORM_PRODUCT = 1e-8  # published clamp of a cosine's denominator


def cosine(dot: Float[Array, "*S"], norm_product: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """Cosine similarity from a dot product and the product of the two norms."""
    return dot / jnp.maximum(norm_product, SMALLEST_NORM_PRODUCT)


def report_similarity(
    images: Float[Array, "B D"], reports: Float[Array, "I D"], contrast_temperature: float
) -> Float[Array, "B I"]:
    """temp3 * cos(global image vector, report vector)."""
    return contrast_temperature * cosine(images @ reports.T, norm(images)[:, None] * norm(reports))


def region_attention(
    regions: Float[Array, "B N D"], units: Float[Array, "I T D"], counts: Int[Array, " I"], attention_temperature: float
) -> Float[Array, "B I N T"]:
    """Where in image b each unit of caption i looks: weights over the N regions that add up to 1. Padded units: 1/N."""
    valid = jnp.arange(units.shape[1]) < counts[:, None]  # [I, T]
    s = jnp.einsum("bnd,itd->bint", regions, units)
    # Padding is hidden from the softmax over units; a caption with no unit at all gets p = 0 instead of NaN.
    hidden = jnp.where(valid[:, None, :], s, jnp.finfo(s.dtype).min)
    p = jnp.where(valid[:, None, :], jax.nn.softmax(hidden, axis=-1), 0)
    return jax.nn.softmax(attention_temperature * p, axis=-2)


def local_similarity(
    regions: Float[Array, "B N D"],
    units: Float[Array, "I T D"],
    counts: Int[Array, " I"],
    settings: LossSettings = PUBLISHED,
) -> Float[Array, "B I"]:
    """Similarity of every image with every caption: Sim[b, i] = temp3 * log sum_t exp(temp2 * r_t).

    r_t says how well unit t is found in the image: the cosine of W_i[t] with the regions averaged by its attention
    v_t = sum_n a_nt C_b[n] (published), or, with region_pooling = "logsumexp",
    (1/k) log mean_n exp(k cos(C_b[n], W_i[t])).

    Only the first `counts[i]` units of caption i are valid. An empty caption counts as its one padded unit, so that
    its column is finite; the contrast leaves the pair out.
    """
    counts = jnp.maximum(counts, 1)
    valid = jnp.arange(units.shape[1]) < counts[:, None]
    if settings.region_pooling == "attention":
        a = region_attention(regions, units, counts, settings.attention_temperature)
        v = jnp.einsum("bint,bnd->bitd", a, regions)
        r = cosine(jnp.einsum("itd,bitd->bit", units, v), norm(units) * norm(v))
    else:
        k = settings.region_sharpness
        s = jnp.einsum("bnd,itd->bint", regions, units)
        c = cosine(s, norm(regions)[:, None, :, None] * norm(units)[:, None, :])
        r = (jax.nn.logsumexp(k * c, axis=-2) - jnp.log(c.shape[-2])) / k
    pooled = jax.nn.logsumexp(settings.pooling_temperature * r, axis=-1, where=valid)
    return settings.contrast_temperature * pooled


def grouped_similarity(
    regions: Float[Array, "G B N D"],
    units: Float[Array, "G I T D"],
    counts: Int[Array, "G I"],
    settings: LossSettings = PUBLISHED,
) -> Float[Array, "G B I"]:
    """`local_similarity` within each contrast group, one group after the other, in at least float32."""
    wide = jnp.promote_types(regions.dtype, jnp.float32)

    def one_group(group: tuple[Array, Array, Array]) -> Array:
        regions, units, counts = group
        return local_similarity(regions.astype(wide), units.astype(wide), counts, settings)

    return jax.lax.map(one_group, (regions, units, counts))
