"""Residual networks with torchvision's v1.5 structure and names (He et al., arXiv 1512.03385; ResNeXt 1611.05431)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from afloc_jax.interpolation import strided_cells
from afloc_jax.models.convolution import BatchNorm, Convolution


@dataclass(frozen=True)
class ResNetSettings:
    """Structure of a residual network. The stages are counted from 1; maps are outputs of whole stages."""

    blocks: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    bottleneck: bool = False
    groups: int = 1
    group_width: int = 64  # channels per group at width 64 (torchvision's width_per_group)
    stem_width: int = 64
    stem_stride: int = 4  # of the whole stem, with its pooling
    stem_kernel: int = 7
    stem_pool: bool = True  # a 3x3 max-pool of stride 2 makes the last factor of the stem's stride
    shallow_stage: int = 2
    deep_stage: int = 3
    zero_init_last: bool = False  # start every residual branch at zero
    statistics_group: int = 0  # images whose batch statistics are taken together; 0: the whole batch
    # Later stages, upsampled, are added to the deep map, as in a feature pyramid (Lin et al., arXiv 1612.03144): fine
    # places that also know their surroundings. In training the share `drop_context` of the images goes without, so that
    # what can be seen nearby is not left to a view from afar.
    top_down: bool = False
    drop_context: float = 0.0


RESNETS = {
    "resnet18": ResNetSettings(blocks=(2, 2, 2, 2)),
    "resnet34": ResNetSettings(blocks=(3, 4, 6, 3)),
    "resnet50": ResNetSettings(blocks=(3, 4, 6, 3), bottleneck=True),
    "resnet101": ResNetSettings(blocks=(3, 4, 23, 3), bottleneck=True),
    "resnet152": ResNetSettings(blocks=(3, 8, 36, 3), bottleneck=True),
    "resnext50": ResNetSettings(blocks=(3, 4, 6, 3), bottleneck=True, groups=32, group_width=4),
    "resnext101": ResNetSettings(blocks=(3, 4, 23, 3), bottleneck=True, groups=32, group_width=8),
    # For laptops: fine maps (shallow stride 4, deep stride 8) and matrix products rather than many channels.
    "resnet_small": ResNetSettings(
        blocks=(1, 1, 1),
        widths=(32, 64, 128),
        strides=(1, 2, 2),
        stem_width=32,
        stem_stride=4,
        stem_kernel=7,
        stem_pool=False,
        shallow_stage=1,
        deep_stage=2,
    ),
}


class ResidualBlock(nn.Module):
    """Basic block (two 3x3) or bottleneck (1x1, 3x3, 1x1); v1.5 puts the bottleneck's stride on its 3x3."""

    settings: ResNetSettings
    width: int
    stride: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B h w F"]:
        settings = self.settings
        conv = partial(Convolution, dtype=self.dtype, param_dtype=self.param_dtype)
        norm = partial(
            BatchNorm,
            statistics_group=settings.statistics_group,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        last_scale = nn.initializers.zeros if settings.zero_init_last else nn.initializers.ones

        if settings.bottleneck:
            inner, out = self.width * settings.group_width // 64 * settings.groups, self.width * 4
            y = conv(inner, name="conv1")(x)
            y = jax.nn.relu(norm(name="bn1")(y, train=train))
            y = conv(inner, 3, self.stride, groups=settings.groups, name="conv2")(y)
            y = jax.nn.relu(norm(name="bn2")(y, train=train))
            y = conv(out, name="conv3")(y)
            y = norm(scale_init=last_scale, name="bn3")(y, train=train)
        else:
            out = self.width
            y = conv(out, 3, self.stride, name="conv1")(x)
            y = jax.nn.relu(norm(name="bn1")(y, train=train))
            y = conv(out, 3, name="conv2")(y)
            y = norm(scale_init=last_scale, name="bn2")(y, train=train)
        if self.stride != 1 or x.shape[-1] != out:
            x = conv(out, stride=self.stride, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x, train=train)
        return checkpoint_name(jax.nn.relu(x + y), "block")


class ResNet(nn.Module):
    """Residual network that returns features at three levels instead of classes."""

    settings: ResNetSettings
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S S C"], *, train: bool = False
    ) -> tuple[Float[Array, "B H1 W1 C1"], Float[Array, "B H2 W2 C2"], Float[Array, "B C3"]]:
        """Shallow map, deep map and the mean over the last stage (float32 or better), none of them projected.

        `x` has three channels, or one that counts as replicated over three.
        """
        settings = self.settings
        common: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        stride = settings.stem_stride // 2 if settings.stem_pool else settings.stem_stride
        x = Convolution(settings.stem_width, settings.stem_kernel, stride, input_channels=3, name="conv1", **common)(x)
        norm = BatchNorm(name="bn1", statistics_group=settings.statistics_group, **common)
        x = jax.nn.relu(norm(x, train=train))
        if settings.stem_pool:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pads with -inf, as PyTorch

        maps = []
        for stage, (blocks, width, stride) in enumerate(
            zip(settings.blocks, settings.widths, settings.strides, strict=True), start=1
        ):
            for block in range(blocks):
                name = f"layer{stage}_{block}"
                x = ResidualBlock(settings, width, stride if block == 0 else 1, name=name, **common)(x, train=train)
            maps.append(x)
        whole = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis=(1, 2))
        shallow, deep = maps[settings.shallow_stage - 1], maps[settings.deep_stage - 1]
        if settings.top_down:
            context = self._from_above(maps, common)
            if train and settings.drop_context > 0:
                keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - settings.drop_context, (len(x), 1, 1, 1))
                context = context * keep.astype(context.dtype)
            deep = deep + context
        return shallow, deep, whole

    def _from_above(self, maps: list[Float[Array, "B h w C"]], common: dict[str, Any]) -> Float[Array, "B H W C"]:
        """The stages after the deep one, brought to its width and size, added from the last to the first."""
        width = maps[self.settings.deep_stage - 1].shape[-1]
        total: Any = 0.0  # a plain number, so that the sum keeps the maps' precision
        for stage in range(len(maps), self.settings.deep_stage, -1):
            # From zero: the fine map learns first what can be seen nearby.
            lateral = Convolution(width, kernel_init=nn.initializers.zeros, name=f"lateral{stage}", **common)
            above = lateral(maps[stage - 1])
            total = upsample(above + total, maps[stage - 2].shape[1])
        return total


def upsample(x: Float[Array, "B h h C"], side: int) -> Float[Array, "B H H C"]:
    """Linear interpolation to a grid of `side` cells per axis of which every (side / h)-th is a cell of `x`.

    That is how the cells of strided convolutions lie, so nothing moves. The factor has to be a whole number.
    """
    cells = x.shape[1]
    matrix = jnp.asarray(strided_cells(cells, -(-side // cells), side, side), x.dtype)
    return jnp.einsum("Hh,bhwc,Ww->bHWc", matrix, x, matrix)
