"""Convolution and batch normalisation with the numerical conventions of PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from afloc_jax.errors import UsageError
from afloc_jax.models.parameters import Parameters

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


class BatchNorm(Parameters):
    """Batch normalisation with PyTorch's running statistics (Ioffe & Szegedy, arXiv 1502.03167).

    The batch is normalised by its biased variance, but the running variance is updated by the unbiased one. Under jit
    with a sharded batch the statistics are those of the global batch. Statistics are in at least float32.

    With `statistics_group` g, each g images of the batch, in order, have statistics of their own, as each device had in
    the published run. The running statistics are updated by the mean over the groups.
    """

    scale_init: nn.initializers.Initializer = nn.initializers.ones
    momentum: float = 0.1  # weight of the new batch, as in PyTorch; Flax's momentum is one minus this
    epsilon: float = 1e-5
    statistics_group: int = 0  # images of a group; 0 for the whole batch
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B H W C"]:
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), self.param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), self.param_dtype)
        x = x.astype(jnp.promote_types(x.dtype, self.param_dtype))

        if not train:
            mean, var = running_mean.value, running_var.value
            return ((x - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias).astype(self.dtype)

        # A batch smaller than a group is one group: initialisation runs on a single image.
        group, batch = self.statistics_group, x.shape[0]
        groups = statistics_groups(group, batch) if group < batch else 1
        # No group axis for a single group: on CPUs XLA is slower with a fifth axis, even one of length 1.
        grouped = x if groups == 1 else x.reshape(groups, -1, *x.shape[1:])
        over = tuple(range(x.ndim - 1)) if groups == 1 else tuple(range(1, x.ndim))
        mean = grouped.mean(axis=over, keepdims=groups > 1)
        # The derivative of the variance with respect to the mean is 0, so its gradient may be stopped. Two passes are
        # exact where the mean is large compared with the deviations.
        var = jnp.square(grouped - lax.stop_gradient(mean)).mean(axis=over, keepdims=groups > 1)
        if not self.is_initializing():
            count = x.size // channels // groups
            unbiased = var * (count / max(count - 1, 1))
            for running, new in ((running_mean, mean), (running_var, unbiased)):
                new = lax.stop_gradient(new).reshape(groups, channels).mean(axis=0)
                running.value += self.momentum * (new - running.value)
        y = (grouped - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias
        return y.reshape(x.shape).astype(self.dtype)


def statistics_groups(group: int, batch: int) -> int:
    """The number of groups of `group` images with batch statistics of their own; 0 stands for the whole batch.

    Raises UsageError where `group` does not divide the batch.
    """
    if group and batch % group:
        raise UsageError(
            f"model.image.statistics_group = {group}: must be 0 (the whole batch) or a divisor of the batch, "
            f"{batch} images"
        )
    return batch // group if group else 1


@dataclass(frozen=True)
class Layers:
    """The settings of all layers of a network: their precision and the groups of their batch statistics."""

    statistics_group: int = 0
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

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
