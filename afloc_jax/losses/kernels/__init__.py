"""`tile_rows` and `tile_gradients` of tiled.py by TPU kernels (Pallas), for `loss.kernel = "pallas"` (GPUs: triton.py).

On a TPU the kernels of attention.py are compiled. On other devices they are interpreted: that gives the same numbers,
but slowly, and is meant for tests. The choice is made when a program is lowered, so compiling ahead of time for a TPU
compiles the kernels on a machine without one.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from afloc_jax.errors import UsageError
from afloc_jax.losses.kernels import attention
from afloc_jax.losses.kernels.tile import HIDDEN, LANES, ROWS
from afloc_jax.losses.packing import SLOT, Captions, Packing, bin_slots, first_fit, pack, packed, unpacked
from afloc_jax.losses.settings import LossSettings

IMAGES = 8  # most images of one kernel call, whose result is [g, IMAGES, bins, 1, U]


def tile_rows(regions: Float[Array, "g J N D"], text: Captions, settings: LossSettings) -> Float[Array, "g J I"]:
    """Similarities S of J images with the I captions of their group. Units must be in the precision of the regions.

    Raises UsageError where an image and a bin of captions do not fit the VMEM of a core.
    """
    captions, packing = _prepared(regions, text, 0)
    images = math.gcd(regions.shape[1], IMAGES)

    def run(first: Array, regions: Array, captions: attention.TileText, interpret: bool) -> Array:
        return attention.forward_call(regions, captions, first, images, settings, interpret)

    def some_images(_: None, first: Array) -> tuple[None, Array]:
        pooled = _on_platform(run, first, regions, captions)  # [g, images, bins, 1, U]
        by_slot = pooled[..., 0, ::SLOT].reshape(*pooled.shape[:2], -1)
        return None, jnp.take_along_axis(by_slot, packing.first_slot[:, None], axis=2)

    _, rows = lax.scan(some_images, None, jnp.arange(0, regions.shape[1], images, dtype=jnp.int32))
    rows = jnp.moveaxis(rows, 0, 1)  # [g, J / images, images, I]
    return settings.contrast_temperature * rows.reshape(*regions.shape[:2], -1)


def tile_gradients(
    regions: Float[Array, "g J N D"],
    text: Captions,
    d_similarity: Float[Array, "g J I"],
    settings: LossSettings,
    start: Float[Array, "g J N D"] | None = None,
) -> tuple[Float[Array, "g J N D"], Float[Array, "g I T D"], Float[Array, "g I T"]]:
    """Gradients of `tile_rows` with respect to the regions, the units and their norms.

    The gradient of the regions is added to `start` where that is given, in its precision. Raises UsageError where an
    image, its gradient and a bin of captions do not fit the VMEM of a core.
    """
    start = jnp.zeros(regions.shape, regions.dtype) if start is None else start
    captions, packing = _prepared(regions, text, start.dtype.itemsize)
    images = math.gcd(regions.shape[1], IMAGES)
    used = jnp.arange(captions.units.shape[1]) < captions.used
    # Empty slots belong to caption I (see Packing), whose gradient is 0.
    d_pooled = jnp.pad(settings.contrast_temperature * d_similarity, ((0, 0), (0, 0), (0, 1)))
    caption = jnp.repeat(packing.caption.reshape(len(regions), 1, -1), SLOT, axis=2)  # [g, 1, bins * U]

    def run(
        first: Array, d_pooled: Array, d_regions: Array, d_units: Array, regions: Array, captions: attention.TileText,
        interpret: bool,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        return attention.backward_call(regions, captions, d_pooled, d_regions, d_units, first, settings, interpret)

    def some_images(carry: tuple[Array, Array, Array], first: Array) -> tuple[tuple[Array, Array, Array], None]:
        d_regions, d_units, d_norms = carry
        d_here = lax.dynamic_slice_in_dim(d_pooled, first, images, axis=1)
        d_here = jnp.take_along_axis(d_here, caption, axis=2)
        d_here = d_here.reshape(*d_here.shape[:2], captions.units.shape[1], 1, -1)
        d_regions, d_units, d_rows = _on_platform(run, first, d_here, d_regions, d_units, regions, captions)
        d_norms += jnp.where(used[:, None], d_rows[..., 0, :], 0).sum(axis=1)
        return (d_regions, d_units, d_norms), None

    wide = captions.rows.dtype
    nothing = (
        jnp.zeros((math.gcd(attention.CORES, images), *captions.units.shape), wide),
        jnp.zeros(captions.units.shape[:3], wide),
    )
    firsts = jnp.arange(0, regions.shape[1], images, dtype=jnp.int32)
    (d_regions, d_units, d_norms), _ = lax.scan(some_images, (start, *nothing), firsts)
    back = jax.vmap(unpacked)
    return d_regions, back(packing, d_units.sum(axis=0)), back(packing, d_norms)


def _on_platform(run: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    return lax.platform_dependent(
        *arguments, tpu=functools.partial(run, interpret=False), default=functools.partial(run, interpret=True)
    )


def _prepared(
    regions: Float[Array, "g J N D"], text: Captions, total_itemsize: int
) -> tuple[attention.TileText, Packing]:
    """The captions packed into bins of a multiple of LANES units. `total_itemsize`: see `attention.vmem_bytes`.

    Raises UsageError where the kernel needs more VMEM than a core has.
    """
    dtype, length = regions.dtype, text.units.shape[2]
    slots = bin_slots(-(-length // LANES) * LANES, 0)
    need = attention.vmem_bytes(
        regions.shape[2], regions.shape[3], slots * SLOT, dtype.itemsize, total_itemsize or dtype.itemsize
    )
    if need > attention.VMEM_LIMIT:
        raise UsageError(
            f"loss.kernel = 'pallas': an image of {regions.shape[2]} regions of width {regions.shape[3]} and captions "
            f"of {length} units take {need / 2**20:.0f} MiB of a core's memory, more than "
            f"{attention.VMEM_LIMIT / 2**20:.0f}; set it to 'xla'"
        )
    packing = jax.vmap(lambda counts: pack(counts, length, slots, first_fit(counts, length, slots)))(text.counts)
    in_bins = jax.vmap(packed)
    groups, bins = packing.caption.shape[:2]
    valid = packing.valid.reshape(groups, bins, -1)
    norms = in_bins(packing, text.norms)
    rows = jnp.stack([norms, jnp.where(valid, 0, HIDDEN).astype(norms.dtype)], axis=2)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, ROWS - rows.shape[2]), (0, 0)))
    same = (packing.caption[..., :, None] == packing.caption[..., None, :]).astype(norms.dtype)
    used = packing.used.max().astype(jnp.int32)
    return attention.TileText(in_bins(packing, text.units), rows, same, used), packing
