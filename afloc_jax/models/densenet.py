"""Densely connected networks with torchvision's structure and names (Huang et al., arXiv 1608.06993)."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from afloc_jax.models.backbone import Backbone, Family, Features, Shapes, Structure, count_parts
from afloc_jax.models.convolution import CHANNELS, Layers, channels_of, kaiming_normal_fan_in, max_pool
from afloc_jax.settings import Rule, setting, up_to

_BLOCKS = Rule(
    lambda blocks: all(0 < layers <= 256 for layers in blocks), "positive integers of at most 256, one per block"
)


@dataclass(frozen=True)
class DenseNetStructure(Structure):
    """The structure of a densely connected network with four blocks."""

    blocks: tuple[int, ...] = setting((6, 12, 24, 16), _BLOCKS)
    growth: int = setting(32, up_to(1024))
    stem_width: int = setting(64, up_to(1 << 14))
    channels: int = setting(3, CHANNELS)  # of the stem's kernel; a grey image counts as replicated over three
    bottleneck: int = setting(4, up_to(64))  # width of a layer's 1x1 convolution, in multiples of `growth`

    def fingerprint(self) -> str:
        return _fingerprint(self.blocks, self.growth, self.stem_width)


class DenseLayer(nn.Module):
    """Two normalised convolutions, whose output is appended to the channels of the input."""

    structure: DenseNetStructure
    layers: Layers

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool = False
    ) -> Float[Array, "B H W C+{self.structure.growth}"]:
        conv, norm = partial(self.layers.convolution, kernel_init=kaiming_normal_fan_in), self.layers.norm
        growth = self.structure.growth
        y = norm(relu=True, name="norm1")(x, train=train)
        y = conv(self.structure.bottleneck * growth, name="conv1")(y)
        y = norm(relu=True, name="norm2")(y, train=train)
        y = conv(growth, 3, name="conv2")(y)
        return jnp.concatenate([x, checkpoint_name(y, "block")], axis=-1)


class DenseNet(nn.Module):
    """A densely connected network that returns features at three levels instead of classes.

    The output of a dense block is a concatenation of un-normalised features, because each layer normalises its own
    input. The maps are therefore taken after the batch norm and ReLU at the start of the following transition, so they
    are the input of the transition's convolution. Their strides are those of the residual networks (8 and 16), and no
    parameter is added. The vector is the mean of the last norm after its ReLU, the input of torchvision's classifier.
    """

    structure: DenseNetStructure
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "B S S C"], *, train: bool = False) -> Features:
        """The shallow map after dense block 2, the deep map after block 3, and the mean over block 4."""
        structure = self.structure
        conv, norm = partial(self.layers.convolution, kernel_init=kaiming_normal_fan_in), self.layers.norm
        x = conv(structure.stem_width, 7, 2, input_channels=structure.channels, name="conv0")(x)
        x = norm(relu=True, name="norm0")(x, train=train)
        x = max_pool(x)

        maps = []
        for block, layers in enumerate(structure.blocks, start=1):
            for layer in range(1, layers + 1):
                name = f"denseblock{block}_denselayer{layer}"
                x = DenseLayer(structure, self.layers, name=name)(x, train=train)
            last = block == len(structure.blocks)
            x = norm(relu=True, name="norm5" if last else f"transition{block}_norm")(x, train=train)
            maps.append(x)
            if not last:
                x = conv(x.shape[-1] // 2, name=f"transition{block}_conv")(x)
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        whole = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean(axis=(1, 2))
        return Features(maps[1], maps[2], whole)


def _fingerprint(blocks: tuple[int, ...], growth: int, stem_width: int) -> str:
    return f"blocks {blocks}, growth {growth} and a stem of {stem_width}"


def _fingerprint_of_shapes(shapes: Shapes) -> str:
    stem = shapes.get("features.conv0.weight")
    if stem is None:
        return ""
    blocks = tuple(count_parts(shapes, rf"features\.denseblock{block}\.denselayer(\d+)\.", 1) for block in range(1, 5))
    return _fingerprint(blocks, shapes.get("features.denseblock1.denselayer1.conv2.weight", (0,))[0], stem[0])


DENSENET = Family(
    "densenet",
    DenseNet,
    (
        (r"(conv0|norm0|norm5)", r"features.\1"),
        (r"(transition\d)_(norm|conv)", r"features.\1.\2"),
        (r"(denseblock\d)_(denselayer\d+)/((?:conv|norm)\d)", r"features.\1.\2.\3"),
    ),
    _fingerprint_of_shapes,
    lambda shapes, config: channels_of(shapes, "features.conv0.weight"),
)
DENSENETS = {
    "densenet121": Backbone(DENSENET, DenseNetStructure(blocks=(6, 12, 24, 16)), ("channels",)),
    "densenet161": Backbone(
        DENSENET, DenseNetStructure(blocks=(6, 12, 36, 24), growth=48, stem_width=96), ("channels",)
    ),
    "densenet169": Backbone(DENSENET, DenseNetStructure(blocks=(6, 12, 32, 32)), ("channels",)),
}
