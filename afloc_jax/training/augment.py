"""The augmentation of `data_pipelines.augment` inside the training step (`data.augment_on = "device"`).

A core of the host augments about 4,000 images a second, which is its whole time. Devices do it in passing.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int32, UInt8

from afloc_jax.training.mesh import batch_axes
from data_pipelines.augment import GENTLE, Limits

_PARTS = 2**16  # of a pixel
_AT_ONCE = 64  # images; each takes 16 bytes per pixel while it is changed


def augment(
    images: UInt8[Array, "B S S"], numbers: Float[Array, "B 6"], mesh: Mesh, limits: Limits = GENTLE
) -> UInt8[Array, "B S S"]:
    """The images of a sharded batch, changed by the numbers that `data_pipelines.augment.draw` has drawn for each.

    Greys are those of the host but for the rounding of interpolation, in which OpenCV takes shorter numbers.
    """

    def local(images: UInt8[Array, "b S S"], numbers: Float[Array, "b 6"]) -> UInt8[Array, "b S S"]:
        change = functools.partial(_augment_one, limits=limits)
        changed: Array = jax.lax.map(lambda pair: change(*pair), (images, numbers), batch_size=_AT_ONCE)
        return changed

    rows = PartitionSpec(batch_axes(mesh))  # each device changes its own images, without communication
    changed: Array = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows)(images, numbers)
    return changed


def _augment_one(image: UInt8[Array, "S S"], numbers: Float[Array, " 6"], limits: Limits) -> UInt8[Array, "S S"]:
    side = image.shape[0]
    zoom, turn, dark, gain, right, down = numbers
    center, size, angle = (side - 1) / 2, 1 + limits.scale * zoom, jnp.deg2rad(limits.rotate * turn)
    # The place in the image of each pixel of the result: shift back, then turn and scale back about the centre.
    from_center = jnp.arange(side) - center
    x, y = limits.shift * side * right, limits.shift * side * down
    cosine, sine = jnp.cos(angle) / size, jnp.sin(angle) / size
    along, across = _fixed(cosine * from_center), _fixed(sine * from_center)
    rows = along[:, None] + across[None, :] + _fixed(center - sine * x - cosine * y)
    columns = along[None, :] - across[:, None] + _fixed(center - cosine * x + sine * y)
    moved = jnp.round(_bilinear(image, rows, columns))
    slope, mean = 1 + limits.contrast * gain, moved.mean()
    changed = slope * (moved - mean) + mean + 255 * limits.brightness * dark
    return jnp.clip(jnp.round(changed), 0, 255).astype(jnp.uint8)


def _fixed(places: Float[Array, "*N"]) -> Int32[Array, "*N"]:
    """In whole parts of a pixel. Sums of them are exact: XLA computes a place twice, for its pixel and for its weights,
    and with floats rounds it otherwise, so that a place next to a whole number gets the weights of the pixel beside it.
    """
    return jnp.round(places * _PARTS).astype(jnp.int32)


def _bilinear(
    image: UInt8[Array, "S S"], rows: Int32[Array, "S S"], columns: Int32[Array, "S S"]
) -> Float[Array, "S S"]:
    """Greys at places from `_fixed`; the image is 0 outside.

    The four neighbours of a place are packed into one number. One gather then does the work of four.
    """
    side = image.shape[0]
    padded = jnp.pad(image, ((1, 2), (1, 2))).astype(jnp.uint32)
    packed = padded[:-1, :-1] | padded[:-1, 1:] << 8 | padded[1:, :-1] << 16 | padded[1:, 1:] << 24
    rows, columns = (jnp.clip(places, -_PARTS, side * _PARTS) for places in (rows, columns))
    found = packed[rows // _PARTS + 1, columns // _PARTS + 1]
    corners = [((found >> bits) & 255).astype(jnp.float32) for bits in (0, 8, 16, 24)]
    down, right = rows % _PARTS / _PARTS, columns % _PARTS / _PARTS
    above = corners[0] * (1 - right) + corners[1] * right
    below = corners[2] * (1 - right) + corners[3] * right
    return above * (1 - down) + below * down
