"""A tile of the published attention by GPU kernels (Pallas, compiled by Triton), for `loss.kernel = "triton"`.

The formulas are those of `_attention_forward` and `_attention_backward` of region_pooling.py. Two kernels hold what XLA
would write to memory and read again several times; each is a product whose result goes through the softmax over the
units of a caption while it is in registers:

    _weights     s = C W^T        p = softmax of s over units        writes g = exp(temp1 p) - 1, and p for the backward
    _d_scores    de = C dv^T      reads p and g                      writes ds = temp1 (p e de - p sum_u p e de)

The other products (v = g^T C, dC = ds W + g dv, dW = ds^T C) have nothing to fuse with; XLA hands them to the library
of the card. So a tile takes two products forward and six in the gradient pass, and a pass does none of them twice. To
keep g on the chip instead, a block would have to hold v [U, D] in float32. At D = 512 that fills all its registers with
128 units, which the longest caption needs. With half of D in a block, and a gradient kernel for each of C and W, two
products forward become three, and six in the gradient pass nine or ten.

Arrays are [images, N, U], unlike region_pooling.py's [U, N]: a slot then lies in the registers of four neighbouring
threads, and its sum and maximum need no shared memory. Elsewhere than on a GPU the kernels are interpreted, for tests.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from afloc_jax.losses.packing import SLOT
from afloc_jax.losses.region_pooling import AttendedCosine, Gradients, RegionPooling, TileImages, TileText, product
from afloc_jax.losses.settings import LossSettings

Ref: TypeAlias = Any  # a block of memory that a kernel reads and writes; JAX has no public type for one

BLOCK = 128 * 128  # scores of a block: without spills for 256 threads (`python -m benchmarks.gpu_kernel`)
DEPTH = 64  # features of a step of a product
SMALLEST = 16  # regions or units of a block: no less than the matrix units take
PARAMETERS = plgpu.CompilerParams(num_warps=8, num_stages=3)
SAFE = 40.0  # scores between minus this and this need no maximum before the exponential
HIDDEN = -1e30  # the score of padding


class Captions(NamedTuple):
    """Which units of each bin belong together."""

    valid: Bool[Array, "g bins*U"]
    number: Int[Array, "g bins*slots"]  # which caption of its bin lies in a slot; -1 for none
    captions: Int[Array, "g bins"]  # how many there are

    @classmethod
    def of(cls, text: TileText) -> "Captions":
        valid, slots = text.slots.valid, text.slots.same.shape[1] // text.bins
        place = jnp.arange(text.bins * slots)
        by_bin = len(valid), text.bins, slots
        first = jnp.argmax(text.slots.same, axis=2)  # [g, bins * slots]: the first slot of the same caption
        filled = valid.any(axis=2).reshape(by_bin)
        leads = (first == place).reshape(by_bin) & filled
        before = place[:slots] < (first - place // slots * slots).reshape(by_bin)[..., None]
        number = (leads[:, :, None] & before).sum(axis=3, dtype=jnp.int32)
        return cls(
            valid.reshape(len(valid), -1),
            jnp.where(filled, number, -1).reshape(len(valid), -1),
            leads.sum(axis=2, dtype=jnp.int32),
        )


# --- The kernels: a block of regions of one image against the units of one bin ---


def _there(ref: Ref, left: Int[Array, ""]) -> Bool[Array, "n width"]:
    """The first rows of a block, where so many regions are left."""
    return lax.broadcasted_iota(jnp.int32, ref.shape, 0) < left


def _scores(regions_ref: Ref, units_ref: Ref, left: Int[Array, ""], wide: DTypeLike) -> Float[Array, "n U"]:
    """The product of the regions with the units, or with whatever is as wide."""

    def step(index: Array, total: Array) -> Array:
        part = regions_ref.at[:, pl.ds(index * DEPTH, DEPTH)]
        regions = plgpu.load(part, mask=_there(part, left), other=0)
        units = units_ref[:, pl.ds(index * DEPTH, DEPTH)]
        return total + lax.dot_general(regions, units, (((1,), (1,)), ((), ())), preferred_element_type=wide)

    (units, width), rows = units_ref.shape, regions_ref.shape[0]
    total: Array = lax.fori_loop(0, width // DEPTH, step, jnp.zeros((rows, units), wide))
    return total


def _store(ref: Ref, values: Float[Array, "n U"], left: Int[Array, ""]) -> None:
    plgpu.store(ref, values.astype(ref.dtype), mask=_there(ref, left))


def _by_slot(scores: Float[Array, "n U"]) -> Float[Array, "n slots SLOT"]:
    return scores.reshape(scores.shape[0], -1, SLOT)


def _by_caption(
    reduce: Callable[..., Array], slot_values: Float[Array, "n slots"], number: Int[Array, " slots"], count: Array,
    least: float,
) -> Float[Array, "n slots"]:  # fmt: skip
    """For each slot the sum or maximum over the slots of its caption, and `least` for captions from `count` on."""
    number = number[None]

    def one(caption: Array, found: Array) -> Array:
        here = number == caption
        return jnp.where(here, reduce(jnp.where(here, slot_values, least), axis=1)[:, None], found)

    found: Array = lax.fori_loop(0, count, one, jnp.full(slot_values.shape, least, slot_values.dtype))
    return found


def _weights(
    regions_ref: Ref,  # [n, D]
    units_ref: Ref,  # [U, D]
    valid_ref: Ref,  # [U]
    number_ref: Ref,
    count_ref: Ref,
    sum_ref: Ref,  # [U], of the block
    g_ref: Ref,  # [n, U]
    *p_ref: Ref,  # [n, U], if at all
    regions: int,  # N
    there: int,  # regions before those that fill up
    temperature: float,
) -> None:
    number, count, wide = number_ref[...], count_ref[0], sum_ref.dtype
    before = pl.program_id(1) * regions_ref.shape[0]
    left = regions - before
    s = _scores(regions_ref, units_ref, left, wide)
    # The maxima of captions are needed only where exp(s) could overflow or all of a caption's vanish.
    far = jnp.where(jnp.abs(s).max() > SAFE, count, 0)
    scores = _by_slot(jnp.where(valid_ref[...][None], s, HIDDEN))
    largest = _by_caption(jnp.max, scores.max(axis=2), number, far, HIDDEN)
    largest = jnp.where(largest > HIDDEN, largest, 0)  # empty slots
    weights = jnp.exp(scores - largest[:, :, None])
    total = _by_caption(jnp.sum, weights.sum(axis=2), number, count, 0)
    total = jnp.where(total > 0, total, 1)  # empty slots
    p = (weights * (1 / total)[:, :, None]).reshape(s.shape)
    g = jnp.where(_there(g_ref, there - before), jnp.exp(temperature * p) - 1, 0).astype(g_ref.dtype)
    for ref in p_ref:
        _store(ref, p, left)
    _store(g_ref, g, left)
    sum_ref[...] = g.astype(wide).sum(axis=0)


def _d_scores(
    regions_ref: Ref,  # [n, D]
    g_ref: Ref,  # [n, U]
    p_ref: Ref,  # [n, U]
    d_v_ref: Ref,  # [U, D]
    d_sum_ref: Ref,  # [U]
    number_ref: Ref,
    count_ref: Ref,
    d_s_ref: Ref,  # [n, U]
    *,
    regions: int,
    there: int,
    temperature: float,
) -> None:
    wide, left = d_sum_ref.dtype, regions - pl.program_id(1) * regions_ref.shape[0]
    d_e = _scores(regions_ref, d_v_ref, left, wide) + d_sum_ref[...][None]
    g, p = (plgpu.load(ref, mask=_there(ref, left), other=0).astype(wide) for ref in (g_ref, p_ref))
    p_d_p = _by_slot(temperature * p * (g + 1) * d_e)
    within = _by_caption(jnp.sum, p_d_p.sum(axis=2), number_ref[...], count_ref[0], 0)
    _store(d_s_ref, (p_d_p - _by_slot(p) * within[:, :, None]).reshape(d_e.shape), left)


# --- Their calls ---


class _Tile(NamedTuple):
    """Images against bins as the kernels take them: groups, devices and images are one axis, bins and units one."""

    regions: Float[Array, "images N D"]
    units: Float[Array, "g bins*U D"]
    captions: Captions
    there: int  # regions before those that fill up
    wide: DTypeLike

    @classmethod
    def of(cls, images: TileImages, text: TileText) -> "_Tile":
        """The tile, with features filled up to a multiple of DEPTH."""
        regions, units = _deep(images.regions), _deep(text.units)
        return cls(regions.reshape(-1, *regions.shape[3:]), units, Captions.of(text), images.count, text.norms.dtype)

    def call(
        self,
        kernel: Callable[..., None],
        scores: list[Array],
        others: list[Array],
        outputs: int,
        settings: LossSettings,
    ) -> list[Array]:
        """Runs a kernel for every image, bin and block of regions.

        Args:
            kernel: takes blocks of the regions, of `scores`, `others` and the captions, and those it writes.
            scores: arrays [images, N, bins * U].
            others: arrays [images or g, bins * U, ..].
            outputs: how many arrays like `scores` it writes, in the precision of the regions. `_weights` writes its
                sums [images, blocks, bins * U] before them.
        """
        (images, regions, width), bins = self.regions.shape, self.captions.captions.shape[1]
        units = self.units.shape[1] // bins
        size = max(SMALLEST, BLOCK // units)
        blocks = -(-regions // size)

        def of_bin(array: Array) -> pl.BlockSpec:
            shared, (_, length, *rest) = images // array.shape[0], array.shape
            zeros = [0] * len(rest)
            return pl.BlockSpec((None, length // bins, *rest), lambda bin, block, image: (image // shared, bin, *zeros))

        of_regions = pl.BlockSpec((None, size, width), lambda bin, block, image: (image, block, 0))
        of_scores = pl.BlockSpec((None, size, units), lambda bin, block, image: (image, block, bin))
        others = [*others, self.captions.number, self.captions.captions]
        shapes = [jax.ShapeDtypeStruct((images, regions, bins * units), self.regions.dtype)] * outputs
        written = [of_scores] * outputs
        if kernel is _weights:
            shapes.insert(0, jax.ShapeDtypeStruct((images, blocks, bins * units), self.wide))
            written.insert(0, pl.BlockSpec((None, None, units), lambda bin, block, image: (image, block, bin)))

        def run(*inputs: Array, interpret: bool) -> list[Array]:
            found: list[Array] = pl.pallas_call(
                functools.partial(
                    kernel, regions=regions, there=self.there, temperature=settings.attention_temperature
                ),
                out_shape=shapes,
                grid=(bins, blocks, images),  # neighbours share a block of regions
                in_specs=[of_regions, *[of_scores] * len(scores), *map(of_bin, others)],
                out_specs=written,
                compiler_params=PARAMETERS,
                interpret=interpret,
                name=f"local{kernel.__name__}",
            )(*inputs)
            return found

        compiled, interpreted = (functools.partial(run, interpret=interpret) for interpret in (False, True))
        found: list[Array] = lax.platform_dependent(self.regions, *scores, *others, cuda=compiled, default=interpreted)
        return found


def _deep(array: Float[Array, "*S D"]) -> Float[Array, "*S E"]:
    missing = -array.shape[-1] % DEPTH
    return jnp.pad(array, [*[(0, 0)] * (array.ndim - 1), (0, missing)]) if missing else array


# --- The pooling ---


def _forward(
    images: TileImages, text: TileText, settings: LossSettings, keep: bool
) -> tuple[Float[Array, "g p U m"], PyTree]:
    """`region_pooling._attention_forward`; what the backward pass needs is kept only where told."""
    tile, shape = _Tile.of(images, text), images.regions.shape
    sums, *kept = tile.call(_weights, [], [tile.units, tile.captions.valid], 2 if keep else 1, settings)
    g, *p = (array.reshape(*shape[:4], -1) for array in kept)  # [g, p, m, N, U]
    v = images.total[:, :, :, None] + product("gpmnu,gpmnd->gpmud", g, images.regions)
    total = images.count + sums.sum(axis=1).reshape(v.shape[:-1])
    cosine = AttendedCosine.of(text.units[:, None, None], text.norms[:, None, None], v, total)
    return jnp.swapaxes(cosine.r, 2, 3), (g, p, cosine)


def _backward(
    images: TileImages, text: TileText, saved: PyTree, d_r: Float[Array, "g p U m"], settings: LossSettings
) -> Gradients:
    """`region_pooling._attention_backward`."""
    cosine: AttendedCosine
    g, (p,), cosine = saved
    regions, wide = images.regions, cosine.v.dtype
    through_cosine = cosine.gradient(text.units[:, None, None], text.norms[:, None, None], jnp.swapaxes(d_r, 2, 3))
    d_v = through_cosine.v.astype(regions.dtype)
    g_p_v_sum = [array.reshape(-1, *array.shape[3:]) for array in (g, p, _deep(d_v), through_cosine.total)]
    (d_s,) = _Tile.of(images, text).call(_d_scores, g_p_v_sum[:2], g_p_v_sum[2:], 1, settings)
    d_s = d_s.reshape(g.shape)
    # Left apart, each is added to what other tiles gave by the product itself.
    d_regions = product("gpmnu,gpmud->gpmnd", g, d_v), product("gpmnu,gud->gpmnd", d_s, text.units)
    d_units = product("gpmnu,gpmnd->gpud", d_s, regions) + through_cosine.units.sum(axis=2)
    return Gradients(d_regions, d_v.sum(axis=3, dtype=wide), d_units, through_cosine.norms.sum(axis=2))


def _relevance(images: TileImages, text: TileText, settings: LossSettings) -> Float[Array, "g p U m"]:
    return _forward(images, text, settings, keep=False)[0]


POOLING = RegionPooling(functools.partial(_forward, keep=True), _backward, _relevance)
