"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929) and those of DINOv2 (Oquab et al., arXiv 2304.07193).

They are numerically equal to ViTModel, Dinov2Model and Dinov2WithRegistersModel of Hugging Face Transformers, at any
input size that the patch divides. RAD-DINO (arXiv 2401.10815) is a `dinov2_base`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from afloc_jax.errors import UsageError, UserError
from afloc_jax.interpolation import cubic, resize
from afloc_jax.models.activations import ACTIVATIONS
from afloc_jax.models.attention import attend
from afloc_jax.models.backbone import Backbone, Family, Features, Shapes, Structure, count_parts
from afloc_jax.models.convolution import Layers
from afloc_jax.models.normalization import LayerNorm, recomputed
from afloc_jax.models.parameters import Dense, Parameters
from afloc_jax.settings import NOT_NEGATIVE, POSITIVE, Json, Rule, setting, up_to

# PyTorch's trunc_normal_ with the standard deviation of both papers.
_init = nn.initializers.truncated_normal(0.02)


@dataclass(frozen=True)
class VisionTransformerStructure(Structure):
    """The structure of a vision transformer. Blocks are counted from 1; the maps are outputs of blocks, normalised.

    Attributes:
        width, blocks, heads, mlp_width: the sizes of the transformer.
        patch: the side of a patch in pixels.
        position_grid: the side of the grid of position embeddings, which are interpolated to other grids.
        registers: tokens without a place in the image (Darcet et al., arXiv 2309.16588).
        layer_scale: initial factor of every residual branch's channels (Touvron et al., arXiv 2103.17239); 0: none.
        activation: that between the two layers of a block's network.
        epsilon: that of the layer norms.
        shallow_block: the block whose patch tokens are the shallow map. Those of the last block are the deep map.
        whole: the global vector: the "class" token, or the "mean" of the patch tokens of the last block.
        train_last: how many of the last blocks are trained, with the norm after them; 0: all of the network.
    """

    strided: ClassVar[bool] = False

    width: int = setting(768, up_to(1 << 14))
    blocks: int = setting(12, up_to(256))
    heads: int = setting(12, up_to(1024))
    mlp_width: int = setting(3072, up_to(1 << 16))
    patch: int = setting(16, up_to(1 << 10))
    position_grid: int = setting(14, up_to(1 << 10))
    registers: int = setting(0, Rule(lambda count: 0 <= count <= 1024, "0 or greater and at most 1,024"))
    layer_scale: float = setting(0.0, NOT_NEGATIVE)
    activation: str = setting("gelu", Rule(lambda name: name in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"))
    epsilon: float = setting(1e-6, NOT_NEGATIVE)
    shallow_block: int = setting(6, POSITIVE)
    whole: Literal["class", "mean"] = "class"
    train_last: int = setting(0, NOT_NEGATIVE)

    def check(self) -> None:
        if self.width % self.heads:
            raise UsageError(f"{self.name_of('width')} = {self.width}: must be a multiple of heads, {self.heads}")
        for key in ("shallow_block", "train_last"):
            if getattr(self, key) > self.blocks:
                raise UsageError(f"{self.name_of(key)} = {getattr(self, key)}: there are {self.blocks} blocks")

    @property
    def usual_input(self) -> int:
        return self.patch * self.position_grid

    def check_input(self, side: int) -> None:
        if side % self.patch:
            below = side // self.patch * self.patch
            fitting = " or ".join(str(size) for size in (below, below + self.patch) if size >= self.patch)
            raise UsageError(
                f"model.image.input_size = {side}: must be a multiple of the patch, {self.patch} pixels; take {fitting}"
            )

    def keeps(self, module: str) -> bool:
        if not self.train_last or module == "norm":
            return False
        block = re.fullmatch(r"block_(\d+)", module)
        return block is None or int(block[1]) < self.blocks - self.train_last

    def fingerprint(self) -> str:
        return _fingerprint(self.blocks, self.width, self.mlp_width)

    def brief(self) -> "VisionTransformerStructure":
        """The structure with a single block, because the shapes of all blocks are equal."""
        return replace(self, blocks=1, shallow_block=1, train_last=0)

    def stands_for(self, module: str) -> Sequence[str]:
        return [f"block_{block}" for block in range(1, self.blocks)] if module == "block_0" else ()


class Value(Parameters):
    """A parameter without a layer: a token, position embeddings, or factors of channels."""

    shape: tuple[int, ...]
    value_init: nn.initializers.Initializer = _init
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self) -> Float[Array, "*shape"]:
        return self.param("value", self.value_init, self.shape, self.param_dtype)


class PatchEmbedding(Parameters):
    """The product of every patch with one kernel. An image of one channel counts as replicated over three."""

    structure: VisionTransformerStructure
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "B S S C"]) -> Float[Array, "B h w D"]:
        patch, width, layers = self.structure.patch, self.structure.width, self.layers
        kernel = self.param("kernel", _init, (patch, patch, 3, width), layers.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (width,), layers.param_dtype)
        if x.shape[-1] == 1:
            kernel = kernel.sum(axis=2, keepdims=True)
        batch, side, _, channels = x.shape
        cells = side // patch
        patches = x.reshape(batch, cells, patch, cells, patch, channels).swapaxes(2, 3)
        patches = patches.reshape(batch, cells, cells, -1).astype(layers.dtype)
        return patches @ kernel.reshape(-1, width).astype(layers.dtype) + bias.astype(layers.dtype)


class Block(nn.Module):
    """Self-attention, then a two-layer network, each after a layer norm and added to its input."""

    structure: VisionTransformerStructure
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        structure, layers = self.structure, self.layers
        dense: Callable[..., Dense] = partial(
            Dense, kernel_init=_init, dtype=layers.dtype, param_dtype=layers.param_dtype
        )
        norm = partial(LayerNorm, structure.epsilon, layers.dtype, layers.param_dtype)

        def scaled(y: Float[Array, "B L D"], name: str) -> Float[Array, "B L D"]:
            if not structure.layer_scale:
                return y
            init = nn.initializers.constant(structure.layer_scale)
            return y * Value((structure.width,), init, layers.param_dtype, name=name)().astype(layers.dtype)

        y = norm(name="norm1")(x)
        query, key, value = (
            dense(structure.width, name=name)(y).reshape(*y.shape[:2], structure.heads, -1)
            for name in ("query", "key", "value")
        )
        y = dense(structure.width, name="attention_output")(attend(query, key, value).reshape(y.shape))
        x = x + scaled(y, "layer_scale1")
        inner = dense(structure.mlp_width, name="intermediate")(norm(name="norm2")(x))
        y = dense(structure.width, name="output")(recomputed(ACTIVATIONS[structure.activation], inner))
        block: Array = checkpoint_name(x + scaled(y, "layer_scale2"), "block")
        return block


class VisionTransformer(nn.Module):
    """A vision transformer that returns features at three levels."""

    structure: VisionTransformerStructure
    layers: Layers

    @nn.compact
    def __call__(self, x: Float[Array, "B S S C"], *, train: bool = False) -> Features:
        """The patch tokens of two blocks as maps [B, S / patch, S / patch, D], and the class token or their mean.

        `train` changes nothing: the network has neither dropout nor statistics. The norm after the last block is
        applied to both maps, as DINOv2 does where it hands out the features of several blocks.
        """
        structure, width = self.structure, self.structure.width
        norm = LayerNorm(structure.epsilon, self.layers.dtype, self.layers.param_dtype, name="norm")
        patches = PatchEmbedding(structure, self.layers, name="patch_embedding")(x)
        batch, cells = patches.shape[:2]
        x, first = self._with_tokens(patches), 1 + structure.registers
        x = lax.stop_gradient(x) if structure.train_last else x
        shallow = x
        ends = {structure.shallow_block, structure.blocks - structure.train_last, structure.blocks} - {0}
        for start, stop in pairwise([0, *sorted(ends)]):
            x = self._blocks(x, start, stop)
            x = lax.stop_gradient(x) if structure.keeps(f"block_{stop - 1}") else x
            if stop == structure.shallow_block:
                shallow = x
        x = norm(x)
        deep = x[:, first:].reshape(batch, cells, cells, width)
        shallow = deep if structure.shallow_block == structure.blocks else norm(shallow[:, first:]).reshape(deep.shape)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        whole = x[:, 0].astype(wide) if structure.whole == "class" else deep.astype(wide).mean(axis=(1, 2))
        return Features(shallow, deep, whole)

    def _blocks(self, x: Float[Array, "B L D"], start: int, stop: int) -> Float[Array, "B L D"]:
        """The blocks `start` to `stop` - 1.

        Where activations are computed again in the backward pass, the blocks are a loop: compilers compute what a loop
        needs in its turn, but several blocks of a row at once.
        """
        if not self.layers.remat or self.is_initializing():
            for number in range(start, stop):
                x = Block(self.structure, self.layers, name=f"block_{number}")(x)
            return x
        block, kept = Block(self.structure, self.layers, parent=None), self.variables["params"]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(kept[f"block_{n}"] for n in range(start, stop)))

        def step(x: Float[Array, "B L D"], params: PyTree[Array]) -> tuple[Float[Array, "B L D"], None]:
            return cast(Array, block.apply({"params": params}, x)), None

        return lax.scan(jax.checkpoint(step, prevent_cse=False), x, stacked)[0]

    def _with_tokens(self, patches: Float[Array, "B h w D"]) -> Float[Array, "B L D"]:
        """The class token, the registers and the patches, row by row, with the position embeddings.

        The embeddings are interpolated bicubically in the precision of the parameters. For networks with registers the
        interpolation is antialiased, as in Transformers. Registers have no position.
        """
        batch, cells, _, width = patches.shape
        structure, param_dtype, dtype = self.structure, self.layers.param_dtype, self.layers.dtype
        grid = structure.position_grid
        token = Value((1, 1, width), param_dtype=param_dtype, name="class_token")()
        positions = Value((1, 1 + grid * grid, width), param_dtype=param_dtype, name="position_embeddings")()
        places = positions[0, 1:].reshape(grid, grid, width)
        if cells != grid:
            matrix = cubic(grid, cells, antialias=structure.registers > 0)
            places = jnp.moveaxis(resize(jnp.moveaxis(places, -1, 0), matrix, matrix), 0, -1)
        tokens = [token + positions[:, :1]]
        if structure.registers:
            tokens.append(Value((1, structure.registers, width), param_dtype=param_dtype, name="register_tokens")())
        before = [jnp.broadcast_to(array.astype(dtype), (batch, *array.shape[1:])) for array in tokens]
        placed = patches + places.astype(dtype)
        return jnp.concatenate([*before, placed.reshape(batch, -1, width)], axis=1)


def _fingerprint(blocks: int, width: int, mlp_width: int) -> str:
    return f"{blocks} blocks of width {width} and {mlp_width}"


_PROJECTION = "embeddings.patch_embeddings.projection.weight"


def _sizes(shapes: Shapes, mlp: str) -> str:
    if len(kernel := shapes.get(_PROJECTION, ())) != 4:
        return ""
    mlp_width = shapes.get(f"encoder.layer.0.{mlp}.weight", (0,))[0]
    return _fingerprint(count_parts(shapes, r"encoder\.layer\.(\d+)\.", first=0), kernel[0], mlp_width)


def _fingerprint_of_dinov2(shapes: Shapes) -> str:
    return _sizes(shapes, "mlp.fc1") if "encoder.layer.0.norm1.weight" in shapes else ""


def _fingerprint_of_vit(shapes: Shapes) -> str:
    return _sizes(shapes, "intermediate.dense") if "encoder.layer.0.layernorm_before.weight" in shapes else ""


def _options(shapes: Shapes, config: Mapping[str, Json]) -> dict[str, Json]:
    """The options that shapes show (patch, grid of positions, registers), and those of a Hugging Face config.json."""
    width, *_, patch = shapes[_PROJECTION]
    layers = count_parts(shapes, r"encoder\.layer\.(\d+)\.", first=0)
    for key, value in (("hidden_size", width), ("num_hidden_layers", layers), ("patch_size", patch)):
        if config.get(key, value) != value:
            raise UserError(
                f"its config.json says {key} {config[key]}, its tensors {value}: they do not belong together"
            )
    positions = shapes.get("embeddings.position_embeddings", (1, 2, 0))[1] - 1
    found: dict[str, Json] = {"patch": patch, "position_grid": round(positions**0.5)}
    if registers := shapes.get("embeddings.register_tokens", (1, 0, 0))[1]:
        found["registers"] = registers
    stated = {"heads": "num_attention_heads", "activation": "hidden_act", "epsilon": "layer_norm_eps"}
    return found | {ours: config[theirs] for ours, theirs in stated.items() if theirs in config}


_BLOCK, _LAYER = r"block_(\d+)/", r"encoder.layer.\1."
_SHARED_NAMES = (
    (r"patch_embedding", r"embeddings.patch_embeddings.projection"),
    (r"class_token", r"embeddings.cls_token"),
    (r"position_embeddings", r"embeddings.position_embeddings"),
    (r"norm", r"layernorm"),
    (_BLOCK + r"(query|key|value)", _LAYER + r"attention.attention.\2"),
    (_BLOCK + r"attention_output", _LAYER + r"attention.output.dense"),
)

DINOV2 = Family(
    "dinov2",
    VisionTransformer,
    (
        *_SHARED_NAMES,
        (r"register_tokens", r"embeddings.register_tokens"),
        (_BLOCK + r"(norm\d)", _LAYER + r"\2"),
        (_BLOCK + r"(layer_scale\d)", _LAYER + r"\2.lambda1"),
        (_BLOCK + r"intermediate", _LAYER + r"mlp.fc1"),
        (_BLOCK + r"output", _LAYER + r"mlp.fc2"),
    ),
    _fingerprint_of_dinov2,
    _options,
)
VIT = Family(
    "vit",
    VisionTransformer,
    (
        *_SHARED_NAMES,
        (_BLOCK + r"norm1", _LAYER + r"layernorm_before"),
        (_BLOCK + r"norm2", _LAYER + r"layernorm_after"),
        (_BLOCK + r"(intermediate|output)", _LAYER + r"\2.dense"),
    ),
    _fingerprint_of_vit,
    _options,
)

_SIZES = {
    "small": {"width": 384, "blocks": 12, "heads": 6, "mlp_width": 1536, "shallow_block": 6},
    "base": {"width": 768, "blocks": 12, "heads": 12, "mlp_width": 3072, "shallow_block": 6},
    "large": {"width": 1024, "blocks": 24, "heads": 16, "mlp_width": 4096, "shallow_block": 12},
}
_TINY = {"width": 64, "blocks": 4, "heads": 2, "mlp_width": 128, "shallow_block": 2}  # for laptops
_FIXED = ("width", "blocks", "mlp_width")  # sizes by which a network has its name


def _rows(family: Family, without: Sequence[str] = (), **structure: Any) -> dict[str, Backbone]:
    """The rows of a family, whose networks have no option of the names in `without`."""
    options = tuple(field.name for field in fields(VisionTransformerStructure) if field.name not in without)
    small = Backbone(family, VisionTransformerStructure(**{**_TINY, **structure}), options)
    named = tuple(name for name in options if name not in _FIXED)
    return {
        **{
            f"{family.name}_{size}": Backbone(family, VisionTransformerStructure(**{**sizes, **structure}), named)
            for size, sizes in _SIZES.items()
        },
        f"{family.name}_tiny": small,
    }


VISION_TRANSFORMERS = {
    **_rows(DINOV2, patch=14, position_grid=37, layer_scale=1.0),
    **_rows(VIT, ("registers", "layer_scale"), patch=16, position_grid=14, epsilon=1e-12),
}
