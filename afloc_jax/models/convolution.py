"""Convolution and pooling with the numerical conventions of PyTorch, and the layers of an image network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

from afloc_jax.models.normalization import BatchNorm
from afloc_jax.models.parameters import Parameters
from afloc_jax.settings import Json, Rule

CHANNELS = Rule(lambda count: count in (1, 3), "1 or 3")  # input channels of a stem

# PyTorch's kaiming_normal_(mode="fan_out", nonlinearity="relu"), and the default initialisation of its layers.
kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
kaiming_normal_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Convolution(Parameters):
    """A square convolution without bias, zero-padded by `(kernel - 1) // 2` on every side (as in PyTorch, not SAME).

    An image of one channel counts as replicated over the input channels of the kernel. The kernel is then summed over
    its input channels, which gives the same result with less work.
    """

    features: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    input_channels: int = 0  # input channels of the kernel; 0 for those of the input
    kernel_init: nn.initializers.Initializer = kaiming_normal_fan_out
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w F"]:
        channels = self.input_channels or x.shape[-1]
        shape = (self.kernel, self.kernel, channels // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if x.shape[-1] == 1 and channels > 1:
            kernel = kernel.sum(axis=2, keepdims=True)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.kernel == 1 and self.groups == 1:
            # On CPUs XLA computes a matrix product and its gradient several times faster than a 1x1 convolution.
            return x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
        pad = (self.kernel - 1) // 2
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )


@jax.custom_vjp
def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """The maximum of each 3x3 window at stride 2; the border is padded with -inf (as in PyTorch).

    The gradient goes to the first maximum of a window, as in PyTorch. On GPUs the forward pass keeps its place, because
    XLA's own gradient searches every window again there, and adds to memory place by place.
    """
    return _max_pool(x)


def _max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    pooled: Array = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    return pooled


def _max_pool_forward(x: Float[Array, "B H W C"]) -> tuple[Array, tuple[Array, Array]]:
    pooled, place = lax.platform_dependent(x, cuda=max_and_place, default=lambda x: (_max_pool(x), _no_place(x)))
    return pooled, (place, x)


def _max_pool_backward(saved: tuple[Array, Array], d_pooled: Float[Array, "B h w C"]) -> tuple[Array]:
    def xlas(place: Array, x: Array, d_pooled: Array) -> Array:
        d_x: Array = jax.vjp(_max_pool, x)[1](d_pooled)[0]
        return d_x

    return (lax.platform_dependent(*saved, d_pooled, cuda=spread, default=xlas),)


def _no_place(x: Float[Array, "B H W C"]) -> Int8[Array, "B h w C"]:
    batch, height, width, channels = x.shape
    return jnp.zeros((batch, -(-height // 2), -(-width // 2), channels), jnp.int8)


def max_and_place(x: Float[Array, "B H W C"]) -> tuple[Float[Array, "B h w C"], Int8[Array, "B h w C"]]:
    """The maximum of each window, and the place of the first one in it, counted row by row."""
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)))
    place = _no_place(x)
    batch, rows, columns, channels = place.shape
    pooled = jnp.full(place.shape, -jnp.inf, x.dtype)
    for index, (row, column) in enumerate(np.ndindex(3, 3)):
        end = batch, row + 2 * rows - 1, column + 2 * columns - 1, channels
        value = lax.slice(padded, (0, row, column, 0), end, (1, 2, 2, 1))
        place = jnp.where(value > pooled, jnp.int8(index), place)
        pooled = jnp.maximum(pooled, value)  # keeps NaN
    return pooled, place


def spread(
    place: Int8[Array, "B h w C"], x: Float[Array, "B H W C"], d_pooled: Float[Array, "B h w C"]
) -> Float[Array, "B H W C"]:
    """The gradient of each window at the place of its maximum in x, of which only the shape is read."""
    wide = d_pooled.astype(jnp.promote_types(x.dtype, jnp.float32))
    d_x = jnp.zeros(x.shape, wide.dtype)
    (height, width), (rows, columns) = x.shape[1:3], place.shape[1:3]
    for index, (row, column) in enumerate(np.ndindex(3, 3)):
        here = jnp.where(place == index, wide, 0)
        # Where padding is negative, it cuts off what fell on the border.
        down, across = (row - 1, height - row - 2 * rows + 2, 1), (column - 1, width - column - 2 * columns + 2, 1)
        d_x += lax.pad(here, jnp.zeros((), wide.dtype), ((0, 0, 0), down, across, (0, 0, 0)))
    return d_x.astype(x.dtype)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def channels_of(shapes: Mapping[str, tuple[int, ...]], stem: str) -> dict[str, Json]:
    """The option `channels` that the shape of a stem's kernel shows."""
    return {"channels": shapes[stem][1]} if len(shapes.get(stem, ())) == 4 else {}


@dataclass(frozen=True)
class Layers:
    """The settings of all layers of a network: their precision, the groups of their batch statistics, and whether the
    backward pass computes activations again (`training.remat`).
    """

    statistics_group: int = 0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False

    @property
    def convolution(self) -> Callable[..., Convolution]:
        """The constructor of convolutions."""
        return partial(Convolution, dtype=self.dtype, param_dtype=self.param_dtype)

    @property
    def norm(self) -> Callable[..., BatchNorm]:
        """The constructor of batch normalisations."""
        return partial(
            BatchNorm, statistics_group=self.statistics_group, dtype=self.dtype, param_dtype=self.param_dtype
        )
