"""Residual networks with torchvision's v1.5 structure and names (He et al., arXiv 1512.03385; ResNeXt 1611.05431)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from afloc_jax.errors import UsageError
from afloc_jax.interpolation import strided_cells
from afloc_jax.models.backbone import Backbone, Family, Features, Shapes, Structure, count_parts
from afloc_jax.models.convolution import CHANNELS, Layers, channels_of, max_pool
from afloc_jax.settings import BELOW_ONE, POSITIVE, Rule, setting, up_to

MOST_STAGES, MOST_BLOCKS, WIDEST = 16, 256, 1 << 14


def _each(most: int) -> Rule:
    return Rule(
        lambda values: 0 < len(values) <= MOST_STAGES and all(0 < value <= most for value in values),
        f"positive integers of at most {most:,}, one per stage",
    )


@dataclass(frozen=True)
class ResNetStructure(Structure):
    """The structure of a residual network. Stages are counted from 1; the maps are outputs of stages."""

    blocks: tuple[int, ...] = setting((3, 4, 6, 3), _each(MOST_BLOCKS))
    widths: tuple[int, ...] = setting((64, 128, 256, 512), _each(WIDEST))
    strides: tuple[int, ...] = setting((1, 2, 2, 2), _each(32))
    bottleneck: bool = False
    groups: int = setting(1, up_to(WIDEST))
    group_width: int = setting(64, up_to(WIDEST))  # channels per group at width 64 (torchvision's width_per_group)
    stem_width: int = setting(64, up_to(WIDEST))
    stem_stride: int = setting(4, up_to(32))  # stride of the stem including its pooling
    stem_kernel: int = setting(7, Rule(lambda size: 0 < size < 100 and size % 2 == 1, "odd and below 100"))
    stem_pool: bool = True  # whether a 3x3 max-pool of stride 2 ends the stem
    shallow_stage: int = setting(2, POSITIVE)
    deep_stage: int = setting(3, POSITIVE)
    channels: int = setting(3, CHANNELS)  # of the stem's kernel; a grey image counts as replicated over three
    zero_init_last: bool = False  # whether every residual branch starts at zero
    # Later stages, upsampled, are added to the deep map, as in a feature pyramid (Lin et al., arXiv 1612.03144). The
    # cells of a fine map then have a large receptive field as well. In training a share `drop_context` of the images
    # gets no such sum, so that the deep map still learns from local evidence.
    top_down: bool = False
    drop_context: float = setting(0.0, BELOW_ONE)
    # Regions of a small receptive field do not see where in the image they lie, so "left" means nothing to them. A
    # learned vector for each of so many cells an axis, interpolated, is added to the output of the first stage, so that
    # the stages after it can join what is seen and where; 0: none. It starts at random with the standard deviation
    # `position_start`: from zero it hardly moves in a short run.
    position: int = setting(0, Rule(lambda cells: 0 <= cells <= 64, "0 or greater and at most 64"))
    position_start: float = setting(1.0, POSITIVE)

    def check(self) -> None:
        stages, deep = len(self.blocks), self.deep_stage
        for key in ("widths", "strides"):
            if len(getattr(self, key)) != stages:
                self._refuse(key, f"must have {stages} values, as blocks {self.blocks} has")
        for key in ("shallow_stage", "deep_stage"):
            if getattr(self, key) > stages:
                self._refuse(key, f"must be a stage; they are counted from 1 to {stages}")
        if self.top_down and deep == stages:
            self._refuse("top_down", f"needs a stage after deep_stage {deep}")
        if self.top_down and any(stride > 2 for stride in self.strides[deep:]):
            self._refuse("top_down", f"needs strides of 1 or 2 after deep_stage {deep}")
        if self.stem_pool and self.stem_stride % 2:
            self._refuse("stem_stride", "must be even with stem_pool")

    def _refuse(self, key: str, why: str) -> None:
        raise UsageError(f"{self.name_of(key)} = {getattr(self, key)!r}: {why}")

    def fingerprint(self) -> str:
        width = self.widths[0] * self.group_width // 64 * self.groups if self.bottleneck else self.widths[0]
        return _fingerprint(self.blocks, self.bottleneck, (width, width // self.groups))

    def brief(self) -> "ResNetStructure":
        """The structure with at most two blocks a stage, because all blocks but the first have the same shapes."""
        return replace(self, blocks=tuple(min(blocks, 2) for blocks in self.blocks))

    def stands_for(self, module: str) -> Sequence[str]:
        stage = re.fullmatch(r"layer(\d+)_1", module)
        return [f"layer{stage[1]}_{block}" for block in range(2, self.blocks[int(stage[1]) - 1])] if stage else ()


class ResidualBlock(nn.Module):
    """A basic block (two 3x3) or a bottleneck (1x1, 3x3, 1x1), whose stride is on its 3x3 (v1.5)."""

    structure: ResNetStructure
    layers: Layers
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool = False) -> Float[Array, "B h w F"]:
        structure, conv, norm = self.structure, self.layers.convolution, self.layers.norm
        last_scale = nn.initializers.zeros if structure.zero_init_last else nn.initializers.ones

        if structure.bottleneck:
            inner, out = self.width * structure.group_width // 64 * structure.groups, self.width * 4
            y = conv(inner, name="conv1")(x)
            y = norm(relu=True, name="bn1")(y, train=train)
            y = conv(inner, 3, self.stride, groups=structure.groups, name="conv2")(y)
            y = norm(relu=True, name="bn2")(y, train=train)
            y = conv(out, name="conv3")(y)
            y = norm(scale_init=last_scale, name="bn3")(y, train=train)
        else:
            out = self.width
            y = conv(out, 3, self.stride, name="conv1")(x)
            y = norm(relu=True, name="bn1")(y, train=train)
            y = conv(out, 3, name="conv2")(y)
            y = norm(scale_init=last_scale, name="bn2")(y, train=train)
        if self.stride != 1 or x.shape[-1] != out:
            x = conv(out, stride=self.stride, name="downsample_conv")(x)
            x = norm(name="downsample_bn")(x, train=train)
        block: Array = checkpoint_name(jax.nn.relu(x + y), "block")
        return block


class ResNet(nn.Module):
    """A residual network that returns features at three levels instead of classes."""

    structure: ResNetStructure
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "B S S C"], *, train: bool = False) -> Features:
        """The outputs of two stages as maps, and the mean over the last stage."""
        structure, layers = self.structure, self.layers
        stride = structure.stem_stride // 2 if structure.stem_pool else structure.stem_stride
        stem = layers.convolution(
            structure.stem_width, structure.stem_kernel, stride, input_channels=structure.channels, name="conv1"
        )
        x = layers.norm(relu=True, name="bn1")(stem(x), train=train)
        if structure.stem_pool:
            x = max_pool(x)

        maps = []
        for stage, (blocks, width, stride) in enumerate(
            zip(structure.blocks, structure.widths, structure.strides, strict=True), start=1
        ):
            for block in range(blocks):
                name = f"layer{stage}_{block}"
                x = ResidualBlock(structure, layers, width, stride if block == 0 else 1, name=name)(x, train=train)
            if stage == 1 and structure.position:
                x = x + self._positions(*x.shape[2:]).astype(x.dtype)
            maps.append(x)
        whole = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis=(1, 2))
        shallow, deep = maps[structure.shallow_stage - 1], maps[structure.deep_stage - 1]
        if structure.top_down:
            context = self._from_above(maps)
            if train and structure.drop_context > 0:
                keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - structure.drop_context, (len(x), 1, 1, 1))
                context = context * keep.astype(context.dtype)
            deep = deep + context
        return Features(shallow, deep, whole)

    def _positions(self, side: int, width: int) -> Float[Array, "1 S S C"]:
        """The learned vectors of places, interpolated to a map of S = `side` cells per axis."""
        cells, start = self.structure.position, nn.initializers.normal(self.structure.position_start)
        table = nn.Embed(cells**2, width, embedding_init=start, param_dtype=self.layers.param_dtype, name="position")
        return upsample(table.embedding.reshape(1, cells, cells, width), side)

    def _from_above(self, maps: list[Float[Array, "B _ _ _"]]) -> Float[Array, "B H W C"]:
        """The sum of the stages after the deep one, each projected to its width and upsampled to its size."""
        width = maps[self.structure.deep_stage - 1].shape[-1]
        total: Array | float = 0.0  # a Python number, so that the sum keeps the precision of the maps
        for stage in range(len(maps), self.structure.deep_stage, -1):
            # The sum starts at zero, so that the deep map first learns from local evidence.
            lateral = self.layers.convolution(width, kernel_init=nn.initializers.zeros, name=f"lateral{stage}")
            above = lateral(maps[stage - 1])
            total = upsample(above + total, maps[stage - 2].shape[1])
        return jnp.asarray(total)


def upsample(x: Float[Array, "B h h C"], side: int) -> Float[Array, "B H H C"]:
    """Linear interpolation to H = `side` cells per axis, of which every (side / h)-th is a cell of `x`.

    Cells of strided convolutions lie in this way, so the map is not shifted. The factor must be an integer.
    """
    cells = x.shape[1]
    matrix = jnp.asarray(strided_cells(cells, -(-side // cells), side, side), x.dtype)
    return jnp.einsum("Hh,bhwc,Ww->bHWc", matrix, x, matrix)


def _fingerprint(blocks: tuple[int, ...], bottleneck: bool, kernel: tuple[int, ...]) -> str:
    return f"{'bottleneck ' if bottleneck else ''}blocks {blocks} and 3x3 kernels {kernel}"


def _fingerprint_of_shapes(shapes: Shapes) -> str:
    blocks = tuple(count_parts(shapes, rf"layer{stage}\.(\d+)\.", 0) for stage in range(1, 5))
    kernel = shapes.get("layer1.0.conv2.weight", (0, 0))[:2]
    return _fingerprint(blocks, "layer1.0.conv3.weight" in shapes, kernel) if any(blocks) else ""


RESNET = Family(
    "resnet",
    ResNet,
    (
        (r"(lateral\d+|position|conv1|bn1)", r"\1"),  # the release has neither lateral convolutions nor positions
        (r"(layer\d+)_(\d+)/downsample_conv", r"\1.\2.downsample.0"),
        (r"(layer\d+)_(\d+)/downsample_bn", r"\1.\2.downsample.1"),
        (r"(layer\d+)_(\d+)/((?:conv|bn)\d)", r"\1.\2.\3"),
    ),
    _fingerprint_of_shapes,
    lambda shapes, config: channels_of(shapes, "conv1.weight"),
)


def _published(**structure: Any) -> Backbone:
    """A backbone with a fixed structure, of which only the initial values and the channels of the stem may be set."""
    return Backbone(RESNET, ResNetStructure(**structure), options=("zero_init_last", "channels"))


RESNETS = {
    "resnet18": _published(blocks=(2, 2, 2, 2)),
    "resnet34": _published(blocks=(3, 4, 6, 3)),
    "resnet50": _published(blocks=(3, 4, 6, 3), bottleneck=True),
    "resnet101": _published(blocks=(3, 4, 23, 3), bottleneck=True),
    "resnet152": _published(blocks=(3, 8, 36, 3), bottleneck=True),
    "resnext50": _published(blocks=(3, 4, 6, 3), bottleneck=True, groups=32, group_width=4),
    "resnext101": _published(blocks=(3, 4, 23, 3), bottleneck=True, groups=32, group_width=8),
    # For laptops: fine maps (shallow stride 4, deep stride 8), few channels, and matrix products.
    "resnet_small": Backbone(
        RESNET,
        ResNetStructure(
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
        options=tuple(field.name for field in fields(ResNetStructure)),
    ),
}
