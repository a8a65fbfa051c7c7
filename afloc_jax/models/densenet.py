"""Densely connected networks with torchvision's structure and names (Huang et al., arXiv 1608.06993)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from afloc_jax.models.convolution import BatchNorm, Convolution, kaiming_normal_fan_in


@dataclass(frozen=True)
class DenseNetSettings:
    """Structure of a densely connected network with four blocks."""

    blocks: tuple[int, ...]
    growth: int = 32
    stem_width: int = 64
    bottleneck: int = 4  # width of a layer's 1x1 convolution, in growths
    statistics_group: int = 0  # images whose batch statistics are taken together; 0: the whole batch


DENSENETS = {
    "densenet121": DenseNetSettings(blocks=(6, 12, 24, 16)),
    "densenet161": DenseNetSettings(blocks=(6, 12, 36, 24), growth=48, stem_width=96),
    "densenet169": DenseNetSettings(blocks=(6, 12, 32, 32)),
}


class DenseLayer(nn.Module):
    """Two normalised convolutions whose output is appended to the input's channels."""

    settings: DenseNetSettings
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B H W C+growth"]:
        conv, norm = _layers(self.settings, self.dtype, self.param_dtype)
        growth = self.settings.growth
        y = jax.nn.relu(norm(name="norm1")(x, train=train))
        y = conv(self.settings.bottleneck * growth, name="conv1")(y)
        y = jax.nn.relu(norm(name="norm2")(y, train=train))
        y = conv(growth, 3, name="conv2")(y)
        return jnp.concatenate([x, checkpoint_name(y, "block")], axis=-1)


class DenseNet(nn.Module):
    """Densely connected network that returns features at three levels instead of classes.

    The raw output of a dense block is a pile of un-normalised pieces, each waiting for the next layer's batch norm.
    The maps are therefore taken after the norm and rectifier that open the following transition: what the transition's
    convolution sees. They have the strides of the residual networks' maps (8 and 16), no parameter is added, and the
    vector is the mean of the rectified last norm, as torchvision's classifier gets it.
    """

    settings: DenseNetSettings
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S S C"], *, train: bool = False
    ) -> tuple[Float[Array, "B H1 W1 C1"], Float[Array, "B H2 W2 C2"], Float[Array, "B C3"]]:
        """Shallow map (after dense block 2), deep map (block 3), mean over block 4 (float32 or better).

        `x` has three channels, or one that counts as replicated over three.
        """
        settings = self.settings
        conv, norm = _layers(settings, self.dtype, self.param_dtype)
        x = conv(settings.stem_width, 7, 2, input_channels=3, name="conv0")(x)
        x = jax.nn.relu(norm(name="norm0")(x, train=train))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

        maps = []
        for block, layers in enumerate(settings.blocks, start=1):
            for layer in range(1, layers + 1):
                name = f"denseblock{block}_denselayer{layer}"
                x = DenseLayer(settings, self.dtype, self.param_dtype, name=name)(x, train=train)
            last = block == len(settings.blocks)
            x = jax.nn.relu(norm(name="norm5" if last else f"transition{block}_norm")(x, train=train))
            maps.append(x)
            if not last:
                x = conv(x.shape[-1] // 2, name=f"transition{block}_conv")(x)
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        whole = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis=(1, 2))
        return maps[1], maps[2], whole


def _layers(settings: DenseNetSettings, dtype: DTypeLike, param_dtype: DTypeLike):
    """Constructors of the convolution and batch norm that every part shares."""
    common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    return partial(Convolution, kernel_init=kaiming_normal_fan_in, **common), partial(
        BatchNorm, statistics_group=settings.statistics_group, **common
    )
