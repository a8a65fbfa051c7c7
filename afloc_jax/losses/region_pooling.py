"""The relevance r of each text unit to an image, computed for one tile, with its gradient written out.

A tile [g, p, U, m, N] holds m images of each of p devices and g contrast groups against the U text units of one bin.
Arrays over both units and regions exist for one tile at a time only. Each pooling is a pair of functions:

    forward(images, text, settings)                       -> relevance r [g, p, U, m], and what backward needs
    backward(images, text, saved, d_relevance, settings)  -> gradients of regions, units and unit norms

definition.py has the formulas. Products of features are computed in the features' precision and summed in at least
float32; everything else is at least float32.

A caption may fill several slots of its bin, so its softmax over units takes two steps: a sum over the units of each
slot, then a sum over the slots that `same` assigns to the same caption.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, Self

import flax.struct
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.lax import Precision
from jaxtyping import Array, Bool, Float, PyTree

from afloc_jax.losses.definition import SMALLEST_NORM_PRODUCT
from afloc_jax.losses.settings import NEAR_ONE_TEMPERATURE, LossSettings
from afloc_jax.vectors import norm


@flax.struct.dataclass
class TileImages:
    """The images of one tile.

    Regions beyond the first `count` fill up the array. They are zeros, so that products with them are 0, and what is
    computed for them is left out of every sum and maximum over regions.
    """

    regions: Float[Array, "g p m N D"]
    total: Float[Array, "g p m D"]  # the sum of an image's regions
    count: int = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Slots:
    """Which slots hold what, of one bin or of several."""

    valid: Bool[Array, "g slots S"]  # there is a unit
    same: Bool[Array, "g slots slots"]  # two slots hold parts of the same caption


@flax.struct.dataclass
class TileText:
    """The captions of one bin of each group (see packing.py), or of several; U = slots * S units."""

    units: Float[Array, "g U D"]
    norms: Float[Array, "g U"]
    slots: Slots
    bins: int = flax.struct.field(pytree_node=False, default=1)


class Gradients(NamedTuple):
    """The gradients of one tile. Those of the text are kept per device; tiled.py sums them after its loops."""

    regions: tuple[Float[Array, "g p m N D"], ...]  # parts, for the caller to add up
    total: Float[Array, "g p m D"]  # that of the sum of an image's regions: every region gets it
    units: Float[Array, "g p U D"]
    norms: Float[Array, "g p U"]


class RegionPooling(NamedTuple):
    """The forward and backward pass of a pooling."""

    forward: Callable[[TileImages, TileText, LossSettings], tuple[Float[Array, "g p U m"], PyTree]]
    backward: Callable[[TileImages, TileText, PyTree, Float[Array, "g p U m"], LossSettings], Gradients]
    # The relevance alone, where it costs something to keep what backward needs.
    alone: Callable[[TileImages, TileText, LossSettings], Float[Array, "g p U m"]] | None = None
    # Whether units, norms, relevances and their gradients are in the order of tpu_tile.slots_last.
    slots_last: bool = False
    # How a tile is kept between the passes, where that saves products.
    kept: "Kept | None" = None

    def relevance(self, images: TileImages, text: TileText, settings: LossSettings) -> Float[Array, "g p U m"]:
        return self.alone(images, text, settings) if self.alone else self.forward(images, text, settings)[0]

    def forward_and_kept(
        self, images: TileImages, text: TileText, settings: LossSettings
    ) -> tuple[Float[Array, "g p U m"], PyTree]:
        """The relevance and what is kept; only for a pooling with `kept`."""
        assert self.kept
        r, saved = self.forward(images, text, settings)
        return r, self.kept.of(saved)

    def again(
        self, images: TileImages, text: TileText, kept: PyTree, settings: LossSettings
    ) -> tuple[Float[Array, "g p U m"], PyTree]:
        """What `forward` returns, from what was kept."""
        assert self.kept
        return self.kept.again(images, text, kept, settings)


class Kept(NamedTuple):
    """How a pooling keeps a tile from the forward pass to the backward pass."""

    # What `forward` returns -> what is kept of it: arrays over units and regions, and over units and features.
    of: Callable[[PyTree], tuple[Float[Array, "g p U m N"], Float[Array, "g p U m D"]]]
    # What `forward` returns, from what was kept, by no product.
    again: Callable[[TileImages, TileText, PyTree, LossSettings], tuple[Float[Array, "g p U m"], PyTree]]


class CosineGradient(NamedTuple):
    """The gradients of `AttendedCosine.r`."""

    units: Float[Array, "*S D"]  # for each image; the caller adds them up
    norms: Float[Array, "*S"]
    v: Float[Array, "*S D"]
    total: Float[Array, "*S"]


@flax.struct.dataclass
class AttendedCosine:
    """The relevance r_u = cos(w_u, v_u) for v_u = sum_n e_un C_n, and what its gradient needs.

    *S are the axes of units and images in whatever order the tile has them.
    """

    r: Float[Array, "*S"]
    v: Float[Array, "*S D"]
    v_squared: Float[Array, "*S"]
    denominator: Float[Array, "*S"]
    free: Bool[Array, "*S"]  # the denominator is not clamped

    @classmethod
    def of(
        cls,
        units: Float[Array, "*#S D"],
        norms: Float[Array, "*#S"],
        v: Float[Array, "*S D"],
        total: Float[Array, "*S"],
    ) -> Self:
        """`total` is sum_n e_un."""
        v_squared = jnp.sum(v**2, axis=-1)
        norm_product = norms * jnp.sqrt(v_squared)
        smallest = SMALLEST_NORM_PRODUCT * total  # the published clamp is on the normalised mean
        denominator = jnp.maximum(norm_product, smallest)
        r = jnp.sum(units * v, axis=-1) / denominator
        return cls(r, v, v_squared, denominator, norm_product > smallest)

    def gradient(
        self, units: Float[Array, "*#S D"], norms: Float[Array, "*#S"], d_r: Float[Array, "*S"]
    ) -> CosineGradient:
        """From dr_u, with r = (w . v) / (|w| |v|) for every unit u:

            dw = dr v / (|w| |v|)        dv = dr (w / (|w| |v|) - r v / |v|^2)
            d|w| = -dr r / |w|           norms are inputs of their own (see low_rank.py)

        Where the denominator is clamped, r does not depend on the norms but on sum_n e_n, which scales the clamp:
        d(sum e) = -dr r 1e-8 / denominator.
        """
        free, through = self.free, -d_r * self.r
        d_dot = (d_r / self.denominator)[..., None]
        along_v = jnp.where(free, through / jnp.where(free, self.v_squared, 1), 0)
        return CosineGradient(
            units=d_dot * self.v,
            norms=jnp.where(free, through / jnp.where(free, norms, 1), 0),
            v=d_dot * units + along_v[..., None] * self.v,
            total=jnp.where(free, 0, through / self.denominator * SMALLEST_NORM_PRODUCT),
        )


def product(equation: str, left: Array, right: Array, precision: Precision | None = None) -> Array:
    """A matrix product that adds up in at least float32."""
    wide = jnp.promote_types(left.dtype, jnp.float32)
    return jnp.einsum(equation, left, right, preferred_element_type=wide, precision=precision)


def per_image(
    equation: str, left: Float[Array, "g p U m A"], regions: Float[Array, "g p m N D"]
) -> Float[Array, "g p U m C"]:
    """A product of each image's own; said with the image in front, because XLA then copies nothing on GPUs."""
    return jnp.moveaxis(product(equation, jnp.moveaxis(left, 3, 2), regions), 2, 3)


def caption_max(slot_values: Float[Array, "g p slots *N"], slots: Slots) -> Float[Array, "g p slots *N"]:
    """For each slot the largest value among the slots of its caption."""
    same = slots.same.reshape(slots.same.shape[0], 1, *slots.same.shape[1:], *[1] * (slot_values.ndim - 3))
    candidates = (jnp.where(same[:, :, :, t], slot_values[:, :, None, t], -jnp.inf) for t in range(same.shape[3]))
    return functools.reduce(jnp.maximum, candidates)


def caption_sum(slot_values: Float[Array, "g p slots *N"], slots: Slots) -> Float[Array, "g p slots *N"]:
    """For each slot the sum over the slots of its caption."""
    # A product with a 0/1 matrix; full precision keeps it a plain sum on accelerators too.
    return jnp.einsum(
        "gst,gpt...->gps...", slots.same.astype(slot_values.dtype), slot_values, precision=Precision.HIGHEST
    )


def in_slots(tile: Float[Array, "g p U *N"], slots: Slots) -> Float[Array, "g p slots S *N"]:
    return tile.reshape(*tile.shape[:2], *slots.valid.shape[1:], *tile.shape[3:])


def present(slots: Slots, trailing: int) -> Bool[Array, "g 1 slots S *ones"]:
    """The places that hold a unit, with `trailing` axes of length 1 behind."""
    return slots.valid.reshape(slots.valid.shape[0], 1, *slots.valid.shape[1:], *[1] * trailing)


def text_softmax(
    scores: Float[Array, "g p U *N"], slots: Slots, at_most: float | None = None
) -> tuple[Float[Array, "g p U *N"], Float[Array, "g p slots *N"]]:
    """Softmax over the units of each caption, and the log-sum-exp of the caption in each slot [g, p, slots, *N].

    Places without a unit get 0 in both. `at_most`, a number that no score exceeds and none is far below, spares finding
    the maximum of each caption; an empty slot has that number.
    """
    by_slot = jnp.where(present(slots, scores.ndim - 3), in_slots(scores, slots), -jnp.inf)
    if at_most is None:
        largest = caption_max(by_slot.max(axis=3), slots)
        largest = jnp.where(largest > -jnp.inf, largest, 0)  # empty slots
    else:
        largest = jnp.full_like(by_slot[:, :, :, 0], at_most)
    weights = jnp.exp(by_slot - largest[:, :, :, None])
    total = caption_sum(weights.sum(axis=3), slots)
    total = jnp.where(total > 0, total, 1)  # empty slots
    p = weights / total[:, :, :, None]
    return p.reshape(scores.shape), largest + jnp.log(total)


def _attention_forward(
    images: TileImages, text: TileText, settings: LossSettings
) -> tuple[Float[Array, "g p U m"], PyTree]:
    """The published relevance without a normalised softmax over regions, for one tile.

        s_un = w_u . C_n        p_un = softmax of s_un over the units u of a caption
        e_un = exp(temp1 (p_un - max_n p_un))        v_u = sum_n e_un C_n        r_u = cos(w_u, v_u)

    The published attention is e_un / sum_n e_un. The cosine does not depend on the scale of e_un, so the division is
    left out, and the clamp of the cosine's denominator is multiplied by sum_n e_un instead. A scale of
    exp(temp1 max_n p_un) leaves e_un = exp(temp1 p_un), which is near 1 for most regions. What is rounded to the
    regions' precision and multiplied with them is then g_un = e_un - 1 alone:

        v_u = sum_n C_n + sum_n g_un C_n        sum_n e_un = N + sum_n g_un

    Where that could overflow, at high temperatures, g_un is e_un as first defined, and v has no first term.
    """
    regions = images.regions
    # Left alone, XLA may lay the scores out otherwise and transpose them, which on a GPU takes as long as a product.
    s = with_layout_constraint(product("gud,gpmnd->gpumn", text.units, regions), Layout((0, 1, 2, 3, 4)))
    p, _ = text_softmax(s, text.slots)
    g = _attention_weights(images, p, settings)
    v = per_image("gpmun,gpmnd->gpmud", g, regions)
    if _near_one(settings):
        v = images.total[:, :, None] + v
    return _attended_cosine(images, text, p, g, v, settings)


def _attention_weights(
    images: TileImages, p: Float[Array, "g p U m N"], settings: LossSettings
) -> Float[Array, "g p U m N"]:
    """g_un of `_attention_forward`, in the precision of the regions."""
    if _near_one(settings):
        g = jnp.exp(settings.attention_temperature * p) - 1
    else:
        largest = p[..., : images.count].max(axis=-1, keepdims=True)
        g = jnp.exp(settings.attention_temperature * jnp.minimum(p - largest, 0))
    return g.astype(images.regions.dtype)


def _attended_cosine(
    images: TileImages, text: TileText, p: Array, g: Array, v: Float[Array, "g p U m D"], settings: LossSettings
) -> tuple[Float[Array, "g p U m"], PyTree]:
    total = g[..., : images.count].sum(axis=-1, dtype=v.dtype)
    if _near_one(settings):
        total = images.count + total
    cosine = AttendedCosine.of(text.units[:, None, :, None], text.norms[:, None, :, None], v, total)
    return cosine.r, (p, g, cosine)


def _attention_again(
    images: TileImages, text: TileText, kept: PyTree, settings: LossSettings
) -> tuple[Float[Array, "g p U m"], PyTree]:
    """What `_attention_forward` returns, from p and v: two products and the softmax are saved."""
    p, v = kept
    return _attended_cosine(images, text, p, _attention_weights(images, p, settings), v, settings)


def _attention_backward(
    images: TileImages, text: TileText, saved: PyTree, d_r: Float[Array, "g p U m"], settings: LossSettings
) -> Gradients:
    """The gradient of `_attention_forward`, from dr_u. For every unit u:

        de_n = dv . C_n + d(sum e)                      through v = sum_n e_n C_n and the clamp
        ds_n = temp1 (p e de - p sum_u p e de)          through e = exp(temp1 p) and the softmax p over units of s
        dC_n = sum_u (e_un dv_u + ds_un w_u)            C enters through v and through s
        dw = dr v / (|w| |v|) + sum_n ds_n C_n          w enters through the cosine and through s

    `AttendedCosine.gradient` gives dv, d(sum e), d|w| and the first part of dw.
    """
    cosine: AttendedCosine
    p, g, cosine = saved
    regions, wide = images.regions, cosine.v.dtype
    units = jnp.broadcast_to(text.units[:, None, :, None], cosine.v.shape)
    through_cosine = cosine.gradient(units, text.norms[:, None, :, None], d_r)
    d_v = through_cosine.v.astype(regions.dtype)
    weight = settings.attention_temperature * p * (g + 1 if _near_one(settings) else g)
    p_d_p = weight * per_image("gpmud,gpmnd->gpmun", d_v, regions) + weight * through_cosine.total[..., None]
    within = caption_sum(in_slots(p_d_p, text.slots).sum(axis=3), text.slots)[:, :, :, None]  # [g, p, slots, 1, m, N]
    d_s = (p_d_p - (in_slots(p, text.slots) * within).reshape(p.shape)).astype(regions.dtype)
    # One product of twice the length instead of two: the result, as large as the image, is written once.
    d_regions = product(
        "gpumn,gpumd->gpmnd",
        jnp.concatenate([d_s, g], axis=2),
        jnp.concatenate([units, d_v], axis=2),
    )
    d_units = product("gpumn,gpmnd->gpud", d_s, regions) + through_cosine.units.sum(axis=3)
    d_total = d_v.sum(axis=2, dtype=wide) if _near_one(settings) else jnp.zeros_like(images.total)
    return Gradients((d_regions,), d_total, d_units, through_cosine.norms.sum(axis=3))


def _near_one(settings: LossSettings) -> bool:
    """Whether exp(temp1 p) may be taken without the maximum of p, and the square of its sum over regions."""
    return settings.attention_temperature <= NEAR_ONE_TEMPERATURE


def _logsumexp_forward(
    images: TileImages, text: TileText, settings: LossSettings
) -> tuple[Float[Array, "g p U m"], PyTree]:
    """r = (1/k) log mean_n exp(k c_n), c_n = cos(C_n, w)."""
    k, regions = settings.region_sharpness, images.regions
    wide = regions.astype(text.norms.dtype)
    norms = norm(wide)[:, :, None]  # [g, p, 1, m, N]
    norm_product = text.norms[:, None, :, None, None] * norms
    denominator = jnp.maximum(norm_product, SMALLEST_NORM_PRODUCT)
    c = product("gud,gpmnd->gpumn", text.units, regions) / denominator
    largest = c[..., : images.count].max(axis=-1, keepdims=True)
    e = jnp.exp(k * (c - largest))
    total = e[..., : images.count].sum(axis=-1, keepdims=True)
    r = (largest + jnp.log(total / images.count) / k)[..., 0]
    return r, (wide, norms, c, e / total, denominator, norm_product > SMALLEST_NORM_PRODUCT)


def _logsumexp_backward(
    images: TileImages, text: TileText, saved: PyTree, d_r: Float[Array, "g p U m"], settings: LossSettings
) -> Gradients:
    """The gradient of `_logsumexp_forward`, from dr_u. With c_n = (w . C_n) / (|w| |C_n|) for every unit u:

        dc_n = dr softmax of k c over n        d(w . C_n) = dc_n / (|w| |C_n|)
        d|w| = -sum_n dc_n c_n / |w|           d|C_n| = -sum_u dc_un c_un / |C_n|

    The norms of the regions are computed here, so d|C_n| C_n / |C_n| is part of the regions' gradient.
    """
    wide, norms, c, a, denominator, free = saved
    regions = images.regions
    d_c = d_r[..., None] * a
    d_s = (d_c / denominator).astype(regions.dtype)
    d_scale = jnp.where(free, -d_c * c, 0)  # gradient of each norm, times that norm
    d_norms = d_scale.sum(axis=(-2, -1)) / jnp.where(text.norms > 0, text.norms, 1)[:, None]
    d_region_norms = (d_scale.sum(axis=2) / jnp.where(norms > 0, norms, 1)[:, :, 0] ** 2)[..., None]
    d_regions = product("gpumn,gud->gpmnd", d_s, text.units) + d_region_norms * wide
    d_units = product("gpumn,gpmnd->gpud", d_s, regions)
    return Gradients((d_regions,), jnp.zeros_like(images.total), d_units, d_norms)


REGION_POOLINGS = {
    "attention": RegionPooling(
        _attention_forward, _attention_backward, kept=Kept(lambda saved: (saved[0], saved[2].v), _attention_again)
    ),
    "logsumexp": RegionPooling(_logsumexp_forward, _logsumexp_backward),
}
