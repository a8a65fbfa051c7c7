"""Normalisation and activation. Their gradients are written out, for fewer passes over arrays than XLA would make."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from afloc_jax.errors import UsageError
from afloc_jax.models.parameters import Parameters


class BatchNorm(Parameters):
    """Batch normalisation with PyTorch's running statistics (Ioffe & Szegedy, arXiv 1502.03167).

    The batch is normalised by its biased variance, but the running variance is updated by the unbiased one. Under jit
    with a sharded batch the statistics are those of the global batch. Statistics are in at least float32.

    With `statistics_group` g, each g images of the batch, in order, have statistics of their own, as each device had in
    the published run. The running statistics are updated by the mean over the groups.

    With `relu` a ReLU follows, whose gradient then needs no array of its own.
    """

    scale_init: nn.initializers.Initializer = nn.initializers.ones
    momentum: float = 0.1  # weight of the new batch, as in PyTorch; Flax's momentum is one minus this
    epsilon: float = 1e-5
    statistics_group: int = 0  # images of a group; 0 for the whole batch
    relu: bool = False
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B H W C"]:
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), self.param_dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), self.param_dtype)

        if not train:
            mean, var = running_mean.value, running_var.value
            x = x.astype(jnp.promote_types(x.dtype, self.param_dtype))
            y = (x - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias
            return (jax.nn.relu(y) if self.relu else y).astype(self.dtype)

        # A batch smaller than a group is one group: initialisation runs on a single image.
        group, batch = self.statistics_group, x.shape[0]
        groups = statistics_groups(group, batch) if group < batch else 1
        # No group axis for a single group: on CPUs XLA is slower with a fifth axis, even one of length 1.
        grouped = jnp.asarray(x if groups == 1 else x.reshape(groups, -1, *x.shape[1:]))
        y, mean, var = _normalize(grouped, scale, bias, self.epsilon, self.relu)
        if not self.is_initializing():
            count = x.size // channels // groups
            unbiased = var * (count / max(count - 1, 1))
            for running, new in ((running_mean, mean), (running_var, unbiased)):
                new = lax.stop_gradient(new).reshape(groups, channels).mean(axis=0)
                running.value += self.momentum * (new - running.value)
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


_Moments = tuple[Float[Array, "*G 1 1 1 C"], Float[Array, "*G 1 1 1 C"]]


def moments(x: Float[Array, "*G n H W C"]) -> _Moments:
    """The mean and the biased variance of each channel over n images: in one pass over x on GPUs, else in two.

    On TPUs the first pass costs nothing, because the convolution before it adds up what it writes.
    """
    found: _Moments = lax.platform_dependent(x, cuda=one_pass, default=_two_passes)
    return found


def one_pass(x: Float[Array, "*G n H W C"]) -> _Moments:
    """The moments, for which x is read once.

    The sums of an image are those of differences from its middle pixel, which are exact where the mean is large
    compared with the deviations. The variance is that within images plus that of their means (Chan et al. 1983).
    """
    height, width = x.shape[-3:-1]
    middle = x[..., height // 2, width // 2, :][..., None, None, :]
    away, count = x - middle, height * width
    total, squares = away.sum(axis=(-3, -2), keepdims=True), jnp.square(away).sum(axis=(-3, -2), keepdims=True)
    means, within = middle + total / count, jnp.maximum(squares - jnp.square(total) / count, 0) / count
    mean = means.mean(axis=-4, keepdims=True)
    return mean, (within + jnp.square(means - mean)).mean(axis=-4, keepdims=True)


def _two_passes(x: Float[Array, "*G n H W C"]) -> _Moments:
    mean = x.mean(axis=(-4, -3, -2), keepdims=True)
    return mean, jnp.square(x - mean).mean(axis=(-4, -3, -2), keepdims=True)


_Normalized = tuple[Float[Array, "*G n H W C"], Float[Array, "*G 1 1 1 C"], Float[Array, "*G 1 1 1 C"]]
_Saved = tuple[Array, Array, Array, Array, Array]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(
    x: Float[Array, "*G n H W C"], scale: Float[Array, " C"], bias: Float[Array, " C"], epsilon: float, relu: bool
) -> _Normalized:
    """Each channel of a group of n images at mean 0 and variance 1, times `scale`, plus `bias`; its mean and variance.

    Derivatives of the mean and the variance that are returned are left out. The backward pass reads x and the gradient
    of y twice, for two sums and then for the gradient of x, and finds the side of the ReLU by x.
    """
    return _normalize_forward(x, scale, bias, epsilon, relu)[0]


def _normalize_forward(x: Array, scale: Array, bias: Array, epsilon: float, relu: bool) -> tuple[_Normalized, _Saved]:
    wide = x.astype(jnp.promote_types(x.dtype, scale.dtype))
    mean, var = moments(wide)
    inverse = lax.rsqrt(var + epsilon)
    y = (wide - mean) * (scale * inverse) + bias
    return (jax.nn.relu(y) if relu else y, mean, var), (x, scale, bias, mean, inverse)


def _normalize_backward(_: float, relu: bool, saved: _Saved, given: _Normalized) -> tuple[Array, Array, Array]:
    x, scale, bias, mean, inverse = saved
    dy, centred = given[0], x.astype(mean.dtype) - mean
    if relu:
        dy = jnp.where(centred * (scale * inverse) + bias > 0, dy, 0)
    count, over = x.size // mean.size, (-4, -3, -2)
    total = dy.sum(axis=over, keepdims=True)
    along = (dy * centred).sum(axis=over, keepdims=True) * inverse
    dx = (dy - (total + centred * (inverse * along)) / count) * (scale * inverse)
    return dx.astype(x.dtype), along.reshape(-1, len(scale)).sum(axis=0), total.reshape(-1, len(scale)).sum(axis=0)


_normalize.defvjp(_normalize_forward, _normalize_backward)


class LayerNorm(Parameters):
    """Layer normalisation (Ba et al., arXiv 1607.06450), with statistics in at least float32."""

    epsilon: float
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        return _layer_norm(x, scale, bias, self.epsilon).astype(self.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(
    x: Float[Array, "*b D"], scale: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float
) -> Float[Array, "*b D"]:
    """Each row at mean 0 and variance 1, times `scale`, plus `bias`. Kept for the backward pass are x and two numbers
    a row, by which the gradients of `scale` and `bias` are sums over x and the gradient of the result as they are.
    """
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple[Array, ...]]:
    wide = x.astype(jnp.promote_types(x.dtype, scale.dtype))
    mean = wide.mean(axis=-1, keepdims=True)
    inverse = lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + epsilon)
    return (wide - mean) * (inverse * scale) + bias, (x, scale, mean, inverse)


def _layer_norm_backward(_: float, saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    x, scale, *statistics = saved
    mean, inverse = as_kept(statistics)
    normal, rows = (x.astype(mean.dtype) - mean) * inverse, tuple(range(x.ndim - 1))
    d_normal = dy * scale
    along = (d_normal * normal).mean(axis=-1, keepdims=True)
    dx = (d_normal - d_normal.mean(axis=-1, keepdims=True) - normal * along) * inverse
    return dx.astype(x.dtype), (dy * normal).sum(axis=rows), dy.sum(axis=rows)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


Kept = TypeVar("Kept")


def as_kept(arrays: Kept) -> Kept:
    """What a backward pass was given, hidden from the compiler on GPUs.

    It would see there that the forward pass has computed the same from these arrays, and would keep larger ones of its
    own instead. On TPUs the barrier would keep the backward pass from joining matrix products.
    """
    kept: Kept = lax.platform_dependent(arrays, cuda=lax.optimization_barrier, default=lambda arrays: arrays)
    return kept


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed(activation: Callable[[Array], Array], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`activation(x)`, of which only x is kept for the backward pass."""
    return activation(x)


def _recomputed_forward(activation: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    return activation(x), x


def _recomputed_backward(activation: Callable[[Array], Array], x: Array, d_y: Array) -> tuple[Array]:
    d_x: Array = jax.vjp(activation, as_kept(x))[1](d_y)[0]
    return (d_x,)


recomputed.defvjp(_recomputed_forward, _recomputed_backward)
