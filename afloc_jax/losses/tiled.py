"""The local similarity of definition.py and its gradient, in tiles: memory for one tile instead of B x B x T x N.

tiles.py computes the tiles of some contrast groups, forward and backward. This file splits a batch into such groups,
over the devices that share it, and makes of the two passes one function with a gradient (a custom VJP).

With r_t the relevance of unit t of caption i to image b,

    S[b, i] = temp3 log sum_t exp(temp2 r_t)
    dr_t = dS[b, i] temp3 temp2 exp(temp2 r_t) / sum_t exp(temp2 r_t)

The forward pass keeps S [B, B], and of the tiles what `loss.kept_memory` has room for. The backward pass receives dS,
computes r of the other tiles again, and pulls dr back to regions, units and norms.

Axes: G contrast groups, of which g are computed at once, p devices that share them, I captions of T units, N regions.
The regions have F channels, and D with their projection (F = D without low_rank.py).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from afloc_jax.losses.packing import Captions
from afloc_jax.losses.settings import PUBLISHED, LossSettings
from afloc_jax.losses.tiles import rows_and_kept, tile_gradients, tiles_to_keep
from afloc_jax.vectors import norm


class Tiling(NamedTuple):
    """How many contrast groups are computed at once, how many devices share each of them, and their kind."""

    groups: int
    devices: int
    platform: str

    @classmethod
    def of(
        cls, groups: int, images: int, settings: LossSettings, devices: int | None, platform: str | None
    ) -> "Tiling":
        """For groups of so many images; `devices` and `platform` as in `grouped_similarity`."""
        mesh = jax.sharding.get_abstract_mesh()
        if settings.kernel != "xla":
            devices = 1
        elif devices is None:
            devices = jax.device_count() if mesh.empty else mesh.size
        at_once = math.gcd(groups, devices)
        return cls(at_once, math.gcd(images, devices // at_once), platform or jax.default_backend())


def local_similarity(
    regions: Float[Array, "B N D"],
    units: Float[Array, "I T D"],
    counts: Int[Array, " I"],
    settings: LossSettings = PUBLISHED,
) -> Float[Array, "B I"]:
    """The same as `definition.local_similarity`. The result is float32 (float64 for float64 features)."""
    return grouped_similarity(regions[None], units[None], counts[None], settings)[0]


def grouped_similarity(
    regions: Float[Array, "G B N D"],
    units: Float[Array, "G I T D"],
    counts: Int[Array, "G I"],
    settings: LossSettings = PUBLISHED,
    unit_norms: Float[Array, "G I T"] | None = None,
    projection: Float[Array, "F D"] | None = None,
    devices: int | None = None,
    platform: str | None = None,
) -> Float[Array, "G B I"]:
    """`local_similarity` within each of G contrast groups.

    Products are computed in the precision of the regions; the units are rounded to it for them.

    Args:
        regions: the image features, of F channels with a `projection`, else of the units' width D.
        units: the text units; the first `counts` of each caption are valid.
        counts: the number of valid units of each caption.
        settings: `config.loss`.
        unit_norms: the norms that the cosines use; by default those of `units` (see low_rank.py).
        projection: the regions are `regions @ projection`, made for one tile at a time (see low_rank.py).
        devices: how many devices share the batch; by default those of the mesh in context, or all. So many images, or a
            multiple, are computed at once, taken from equally spaced places of the batch, so that each device holds its
            own where jit shards the batch. The text is gathered before the loops and its gradient summed after them.
            Kernels always use one device, because jit cannot split them.
        platform: the kind of these devices, for the size of tiles; by default that of JAX's default backend.
    """
    tiling = Tiling.of(regions.shape[0], regions.shape[1], settings, devices, platform)
    if unit_norms is None:
        unit_norms = norm(units.astype(jnp.promote_types(units.dtype, jnp.float32)))
    text = Captions(units, unit_norms, jnp.maximum(counts, 1))
    return _grouped_similarity(regions, text, projection, settings, tiling)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _grouped_similarity(
    regions: Array, text: Captions, projection: Array | None, settings: LossSettings, tiling: Tiling
) -> Float[Array, "G B I"]:
    return _similarity_and_kept(regions, text, projection, settings, tiling, keep=0)[0]


def _similarity_and_kept(
    regions: Array, text: Captions, projection: Array | None, settings: LossSettings, tiling: Tiling, keep: int
) -> tuple[Float[Array, "G B I"], PyTree]:
    def forward(step: tuple[Array, Captions]) -> tuple[Array, PyTree]:
        return rows_and_kept(*step, settings, tiling.platform, projection, keep)

    steps = split(regions, tiling), captions_by_step(text, regions, tiling)
    similarity, kept = jax.lax.map(forward, steps)  # [G / g, g, p, B / p, I]
    return jnp.moveaxis(similarity, 0, 1).reshape(*regions.shape[:2], -1), kept


def _similarity_forward(
    regions: Array, text: Captions, projection: Array | None, settings: LossSettings, tiling: Tiling
) -> tuple[Array, PyTree]:
    images, in_turn = regions.shape[1] // tiling.devices, regions.shape[0] // tiling.groups
    keep = tiles_to_keep(images, regions.shape[2], text, settings, tiling.platform) // in_turn
    similarity, kept = _similarity_and_kept(regions, text, projection, settings, tiling, keep)
    return similarity, (regions, text, projection, similarity, kept)


def _similarity_backward(
    settings: LossSettings, tiling: Tiling, saved: PyTree, d_similarity: Float[Array, "G B I"]
) -> tuple[Array, Captions, Array | None]:
    regions, text, projection, similarity, kept = saved

    def backward(d_projection: Array | None, step: PyTree) -> tuple[Array | None, PyTree]:
        regions, captions, similarity, d_similarity, kept = step
        here = tile_gradients(
            regions, captions, similarity, d_similarity, settings, tiling.platform, projection, kept=kept
        )
        return jax.tree.map(jnp.add, d_projection, here.projection), (here.regions, here.units, here.norms)

    by_image = (split(array, tiling) for array in (similarity, d_similarity))
    step = split(regions, tiling), captions_by_step(text, regions, tiling), *by_image, kept
    # One gradient for each device, as for the text in tile_gradients; None without a projection.
    apart = tiling.groups, tiling.devices
    nothing = jax.tree.map(lambda array: jnp.zeros((*apart, *array.shape), array.dtype), projection)
    d_projection, gradients = jax.lax.scan(backward, nothing, step)
    d_regions, d_units, d_norms = (
        jnp.moveaxis(gradient, 0, 1).reshape(array.shape).astype(array.dtype)
        for gradient, array in zip(gradients, (regions, text.units, text.norms), strict=True)
    )
    d_projection = jax.tree.map(lambda total: total.sum(axis=(0, 1)), d_projection)
    none: PyTree = None  # integers have no gradient
    return d_regions, Captions(d_units, d_norms, none), d_projection


_grouped_similarity.defvjp(_similarity_forward, _similarity_backward)


def by_step(array: Array, tiling: Tiling) -> Array:
    """[G, ...] -> [G / g, g, ...]. The g groups computed at once come from equally spaced places."""
    return jnp.moveaxis(array.reshape(tiling.groups, -1, *array.shape[1:]), 1, 0)


def captions_by_step(text: Captions, regions: Array, tiling: Tiling) -> Captions:
    """The captions, g groups per step, with units in the precision of the regions."""
    units = by_step(text.units.astype(regions.dtype), tiling)
    return Captions(units, by_step(text.norms, tiling), by_step(text.counts, tiling))


def split(array: Array, tiling: Tiling) -> Array:
    """[G, B, ...] -> [G / g, g, p, B / p, ...]."""
    array = by_step(array, tiling)
    return array.reshape(*array.shape[:2], tiling.devices, -1, *array.shape[3:])
