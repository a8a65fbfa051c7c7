"""The relevance r of each text unit to an image, computed for one tile, with its gradient written out.

A tile [g, p, U, N] holds p images of each of g contrast groups against the U text units of one bin. Arrays over both
units and regions exist for one tile at a time only. Each pooling is a pair of functions:

    forward(regions, text, settings)                       -> relevance r [g, p, U], and what backward needs
    backward(regions, text, saved, d_relevance, settings)  -> gradients of regions, units and unit norms

definition.py has the formulas. Products of features are computed in the features' precision and summed in at least
float32; everything else is at least float32.

A caption may fill several slots of its bin, so its softmax over units takes two steps: a sum over the units of each
slot, then a sum over the slots that `same` assigns to the same caption.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Bool, Float, PyTree

from afloc_jax.losses.definition import SMALLEST_NORM_PRODUCT
from afloc_jax.losses.settings import LossSettings
from afloc_jax.vectors import norm


@flax.struct.dataclass
class TileText:
    """The captions of one bin of each group (see packing.py); U = slots * SLOT units."""

    units: Float[Array, "g U D"]
    norms: Float[Array, "g U"]
    valid: Bool[Array, "g slots SLOT"]
    same: Bool[Array, "g slots slots"]  # whether two slots hold parts of the same caption


class Gradients(NamedTuple):
    """The gradients of one tile. Those of the text are kept per image; tiled.py sums them after its loops."""

    regions: Float[Array, "g p N D"]
    units: Float[Array, "g p U D"]
    norms: Float[Array, "g p U"]


class RegionPooling(NamedTuple):
    """The forward and backward pass of a pooling."""

    forward: Callable[[Array, TileText, LossSettings], tuple[Float[Array, "g p U"], PyTree]]
    backward: Callable[[Array, TileText, PyTree, Float[Array, "g p U"], LossSettings], Gradients]


def product(equation: str, left: Array, right: Array, precision: Precision | None = None) -> Array:
    """A matrix product that adds up in at least float32."""
    wide = jnp.promote_types(left.dtype, jnp.float32)
    return jnp.einsum(equation, left, right, preferred_element_type=wide, precision=precision)


def caption_max(slot_values: Float[Array, "g p slots *N"], text: TileText) -> Float[Array, "g p slots *N"]:
    """For each slot the largest value among the slots of its caption."""
    same = text.same.reshape(text.same.shape[0], 1, *text.same.shape[1:], *[1] * (slot_values.ndim - 3))
    candidates = (jnp.where(same[:, :, :, t], slot_values[:, :, None, t], -jnp.inf) for t in range(same.shape[3]))
    return functools.reduce(jnp.maximum, candidates)


def caption_sum(slot_values: Float[Array, "g p slots *N"], text: TileText) -> Float[Array, "g p slots *N"]:
    """For each slot the sum over the slots of its caption."""
    # A product with a 0/1 matrix; full precision keeps it a plain sum on accelerators too.
    return jnp.einsum(
        "gst,gpt...->gps...", text.same.astype(slot_values.dtype), slot_values, precision=Precision.HIGHEST
    )


def in_slots(tile: Float[Array, "g p U *N"], text: TileText) -> Float[Array, "g p slots SLOT *N"]:
    return tile.reshape(*tile.shape[:2], *text.valid.shape[1:], *tile.shape[3:])


def text_softmax(scores: Float[Array, "g p U N"], text: TileText) -> Float[Array, "g p U N"]:
    """Softmax over the units of each caption, for every region. Places without a unit get 0."""
    scores = jnp.where(text.valid[:, None, :, :, None], in_slots(scores, text), -jnp.inf)
    largest = caption_max(scores.max(axis=3), text)[:, :, :, None]
    weights = jnp.exp(scores - jnp.where(largest > -jnp.inf, largest, 0))
    total = caption_sum(weights.sum(axis=3), text)[:, :, :, None]
    p = weights / jnp.where(total > 0, total, 1)
    return p.reshape(*p.shape[:2], -1, p.shape[-1])


def _attention_forward(
    regions: Float[Array, "g p N D"], text: TileText, settings: LossSettings
) -> tuple[Float[Array, "g p U"], PyTree]:
    """The published relevance without a normalised softmax over regions, for one tile.

        s_un = w_u . C_n        p_un = softmax of s_un over the units u of a caption
        e_un = exp(temp1 (p_un - max_n p_un))        v_u = sum_n e_un C_n        r_u = cos(w_u, v_u)

    The published attention is e_un / sum_n e_un. The cosine does not depend on the scale of v, so the division is left
    out, and the clamp of the cosine's denominator is multiplied by sum_n e_un instead. The largest e_un is 1, so that v
    neither overflows nor vanishes at any temperature.
    """
    s = product("gud,gpnd->gpun", text.units, regions)
    p = text_softmax(s, text)
    e = jnp.exp(settings.attention_temperature * (p - p.max(axis=-1, keepdims=True)))
    v = product("gpun,gpnd->gpud", e.astype(regions.dtype), regions)
    v_squared = jnp.sum(v**2, axis=-1)
    norm_product = text.norms[:, None] * jnp.sqrt(v_squared)
    smallest = SMALLEST_NORM_PRODUCT * e.sum(axis=-1)  # the published clamp is on the normalised mean
    denominator = jnp.maximum(norm_product, smallest)
    r = jnp.sum(text.units[:, None] * v, axis=-1) / denominator
    return r, (p, e, v, v_squared, denominator, norm_product > smallest, r)


def _attention_backward(
    regions: Float[Array, "g p N D"], text: TileText, saved: PyTree, d_r: Float[Array, "g p U"], settings: LossSettings
) -> Gradients:
    """The gradient of `_attention_forward`, from dr_u. With r = (w . v) / (|w| |v|) for every unit u:

        dv = dr (w / (|w| |v|) - r v / |v|^2)           the gradient of the cosine
        de_n = dv . C_n                                 through v = sum_n e_n C_n
        ds_n = temp1 (p e de - p sum_u p e de)          through e = exp(temp1 p) and the softmax p over units of s
        dC_n = sum_u (e_un dv_u + ds_un w_u)            C enters through v and through s
        dw = dr v / (|w| |v|) + sum_n ds_n C_n          w enters through the cosine and through s
        d|w| = -dr r / |w|                              norms are inputs of their own (see low_rank.py)

    Where the denominator is clamped, r does not depend on the norms but on sum_n e_n, which scales the clamp:
    d(sum e) = -dr r 1e-8 / denominator is then added to every de_n.
    """
    p, e, v, v_squared, denominator, free, r = saved
    d_dot = (d_r / denominator)[..., None]
    units = jnp.broadcast_to(text.units[:, None], v.shape)
    d_v = d_dot * units + jnp.where(free, -d_r * r / jnp.where(free, v_squared, 1), 0)[..., None] * v
    d_norms = jnp.where(free, -d_r * r / jnp.where(free, text.norms[:, None], 1), 0)
    d_sum = jnp.where(free, 0, -d_r * r / denominator * SMALLEST_NORM_PRODUCT)
    d_v = d_v.astype(regions.dtype)
    d_e = d_sum[..., None] + product("gpud,gpnd->gpun", d_v, regions)
    p_d_p = settings.attention_temperature * p * e * d_e
    within = caption_sum(in_slots(p_d_p, text).sum(axis=3), text)[:, :, :, None]  # [g, p, slots, 1, N]
    d_s = (p_d_p - (in_slots(p, text) * within).reshape(p.shape)).astype(regions.dtype)
    # One product of twice the length instead of two: the result, as large as the image, is written once.
    d_regions = product(
        "gpun,gpud->gpnd",
        jnp.concatenate([d_s, e.astype(regions.dtype)], axis=2),
        jnp.concatenate([units, d_v], axis=2),
    )
    d_units = product("gpun,gpnd->gpud", d_s, regions) + d_dot * v
    return Gradients(d_regions, d_units, d_norms)


def _logsumexp_forward(
    regions: Float[Array, "g p N D"], text: TileText, settings: LossSettings
) -> tuple[Float[Array, "g p U"], PyTree]:
    """r = (1/k) log mean_n exp(k c_n), c_n = cos(C_n, w)."""
    k = settings.region_sharpness
    wide = regions.astype(text.norms.dtype)
    norms = norm(wide)[:, :, None]  # [g, p, 1, N]
    norm_product = text.norms[:, None, :, None] * norms
    denominator = jnp.maximum(norm_product, SMALLEST_NORM_PRODUCT)
    c = product("gud,gpnd->gpun", text.units, regions) / denominator
    largest = c.max(axis=-1, keepdims=True)
    e = jnp.exp(k * (c - largest))
    mean = e.mean(axis=-1)
    r = largest[..., 0] + jnp.log(mean) / k
    return r, (wide, norms, c, e / (mean[..., None] * c.shape[-1]), denominator, norm_product > SMALLEST_NORM_PRODUCT)


def _logsumexp_backward(
    regions: Float[Array, "g p N D"], text: TileText, saved: PyTree, d_r: Float[Array, "g p U"], settings: LossSettings
) -> Gradients:
    """The gradient of `_logsumexp_forward`, from dr_u. With c_n = (w . C_n) / (|w| |C_n|) for every unit u:

        dc_n = dr softmax of k c over n        d(w . C_n) = dc_n / (|w| |C_n|)
        d|w| = -sum_n dc_n c_n / |w|           d|C_n| = -sum_u dc_un c_un / |C_n|

    The norms of the regions are computed here, so d|C_n| C_n / |C_n| is part of the regions' gradient.
    """
    wide, norms, c, a, denominator, free = saved
    d_c = d_r[..., None] * a
    d_s = (d_c / denominator).astype(regions.dtype)
    d_scale = jnp.where(free, -d_c * c, 0)  # gradient of each norm, times that norm
    d_norms = d_scale.sum(axis=-1) / jnp.where(text.norms > 0, text.norms, 1)[:, None]
    d_region_norms = (d_scale.sum(axis=-2) / jnp.where(norms > 0, norms, 1)[:, :, 0] ** 2)[..., None]
    d_regions = product("gpun,gud->gpnd", d_s, text.units) + d_region_norms * wide
    return Gradients(d_regions, product("gpun,gpnd->gpud", d_s, regions), d_norms)


REGION_POOLINGS = {
    "attention": RegionPooling(_attention_forward, _attention_backward),
    "logsumexp": RegionPooling(_logsumexp_forward, _logsumexp_backward),
}
