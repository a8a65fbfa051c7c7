"""ONE table between the published PyTorch names and our variables, used in both directions.

PyTorch keeps convolution kernels as [out, in, height, width] and linear weights as [out, in]; Flax keeps them as
[height, width, in, out] and [in, out]. The projections of the maps are 1x1 convolutions there and linear layers here.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import PyTree

from afloc_jax.errors import UserError
from afloc_jax.levels import TokenBatch
from afloc_jax.models.afloc import AFLoc
from afloc_jax.models.resnet import ResNetSettings
from afloc_jax.models.settings import ModelSettings, parse

# Module path of ours -> module name there. The first pattern that matches the whole path decides.
_MODULES = [
    (re.compile(ours), theirs)
    for ours, theirs in (
        (r"image_encoder/project_shallow", r"img_encoder.local2_embedder"),
        (r"image_encoder/project_deep", r"img_encoder.local_embedder"),
        (r"image_encoder/project_whole", r"img_encoder.global_embedder"),
        # Not in the release, which does not centre its projections.
        (r"image_encoder/center_shallow", r"img_encoder.local2_norm"),
        (r"image_encoder/center_deep", r"img_encoder.local_norm"),
        (r"image_encoder/center_whole", r"img_encoder.global_norm"),
        (r"image_encoder/backbone/(lateral\d+)", r"img_encoder.model.\1"),  # nor has it stages added from above
        (r"image_encoder/backbone/(conv1|bn1)", r"img_encoder.model.\1"),
        (r"image_encoder/backbone/(layer\d+)_(\d+)/downsample_conv", r"img_encoder.model.\1.\2.downsample.0"),
        (r"image_encoder/backbone/(layer\d+)_(\d+)/downsample_bn", r"img_encoder.model.\1.\2.downsample.1"),
        (r"image_encoder/backbone/(layer\d+)_(\d+)/((?:conv|bn)\d)", r"img_encoder.model.\1.\2.\3"),
        (r"image_encoder/backbone/(conv0|norm0|norm5)", r"img_encoder.model.features.\1"),
        (r"image_encoder/backbone/(transition\d)_(norm|conv)", r"img_encoder.model.features.\1.\2"),
        (
            r"image_encoder/backbone/(denseblock\d)_(denselayer\d+)/((?:conv|norm)\d)",
            r"img_encoder.model.features.\1.\2.\3",
        ),
        (r"text_encoder/bert/embeddings_norm", r"text_encoder.model.embeddings.LayerNorm"),
        (r"text_encoder/bert/(\w+_embeddings)", r"text_encoder.model.embeddings.\1"),
        (r"text_encoder/bert/pooler", r"text_encoder.model.pooler.dense"),
        (
            r"text_encoder/bert/layer_(\d+)/(query|key|value)",
            r"text_encoder.model.encoder.layer.\1.attention.self.\2",
        ),
        (
            r"text_encoder/bert/layer_(\d+)/attention_output",
            r"text_encoder.model.encoder.layer.\1.attention.output.dense",
        ),
        (
            r"text_encoder/bert/layer_(\d+)/attention_norm",
            r"text_encoder.model.encoder.layer.\1.attention.output.LayerNorm",
        ),
        (r"text_encoder/bert/layer_(\d+)/intermediate", r"text_encoder.model.encoder.layer.\1.intermediate.dense"),
        (r"text_encoder/bert/layer_(\d+)/output", r"text_encoder.model.encoder.layer.\1.output.dense"),
        (r"text_encoder/bert/layer_(\d+)/output_norm", r"text_encoder.model.encoder.layer.\1.output.LayerNorm"),
    )
]
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Names there that hold nothing a model needs: counters, constants, and the stage-4 projection of an unused objective.
_IGNORED = re.compile(r".*\.(num_batches_tracked|position_ids)|img_encoder\.local_f_embedder\.(weight|bias)")

_ALIGNMENT = 64  # bytes

Layout = Literal["same", "linear", "convolution", "pointwise"]


@dataclass(frozen=True)
class Entry:
    """One row of the table: an array of ours and its name and shape in PyTorch."""

    path: tuple[str, ...]  # collection first: params or batch_stats
    name: str
    shape: tuple[int, ...]  # in PyTorch
    layout: Layout

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """The array in PyTorch's layout."""
        if self.layout == "convolution":
            return array.transpose(3, 2, 0, 1)
        if self.layout == "linear":
            return array.T
        return array.T[:, :, None, None] if self.layout == "pointwise" else array

    def from_torch(self, array: np.ndarray) -> np.ndarray:
        """The array in our layout."""
        if self.layout == "convolution":
            return array.transpose(2, 3, 1, 0)
        if self.layout == "linear":
            return array.T
        return array[:, :, 0, 0].T if self.layout == "pointwise" else array


def table(model_config: Mapping[str, Any] | ModelSettings) -> tuple[Entry, ...]:
    """Every array of the model that `config.model` describes, one row each; no parameter is computed.

    Raises:
        UsageError: the config is wrong.
    """
    return _table(parse(model_config))


def to_torch(variables: PyTree, model_config: Mapping[str, Any] | ModelSettings) -> dict[str, np.ndarray]:
    """Variables as a state dict that the published PyTorch model loads.

    Args:
        variables: {"params": ..., "batch_stats": ...} of `AFLoc.init`.
        model_config: the `config.model` they belong to.

    Returns:
        Contiguous arrays by PyTorch name, with a zero `num_batches_tracked` beside each pair of running statistics.

    Raises:
        UserError: the variables are not those of this model; names what is missing, left over or of another shape.
    """
    rows = table(model_config)
    flat = traverse_util.flatten_dict(_plain_dicts(variables))
    compare(
        "the variables",
        {"/".join(path): np.shape(array) for path, array in flat.items()},
        {"/".join(row.path): _our_shape(row) for row in rows},
    )
    return with_counters({row.name: np.ascontiguousarray(row.to_torch(np.asarray(flat[row.path]))) for row in rows})


def with_counters(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict with a zero `num_batches_tracked` beside each pair of running statistics, as PyTorch expects it."""
    counted: dict[str, np.ndarray] = {}
    for name, array in state.items():
        counted[name] = array
        if name.endswith("running_var"):
            counted[name.removesuffix("running_var") + "num_batches_tracked"] = np.zeros((), np.int64)
    return counted


def from_torch(state_dict: Mapping[str, np.ndarray], model_config: Mapping[str, Any] | ModelSettings) -> dict[str, Any]:
    """Variables ({"params": ..., "batch_stats": ...}, NumPy arrays) from a state dict with the published names.

    float64 stays float64, every other type becomes float32. `num_batches_tracked`, `position_ids` and
    `local_f_embedder` (a projection that the published objective switches off) are accepted and dropped.

    Raises:
        UserError: names are missing, unexpected or of another shape than `model_config` asks for; they are listed.
    """
    rows = table(model_config)
    given = {name: array for name, array in state_dict.items() if not _IGNORED.fullmatch(name)}
    compare(
        "the state dict",
        {name: np.shape(array) for name, array in given.items()},
        {row.name: row.shape for row in rows},
    )
    with ThreadPoolExecutor() as threads:  # NumPy copies without the interpreter's lock; half a GB is worth two cores
        arrays = threads.map(lambda row: _aligned(row.from_torch(np.asarray(given[row.name]))), rows)
    return traverse_util.unflatten_dict(dict(zip((row.path for row in rows), arrays, strict=True)))


@functools.lru_cache(maxsize=32)
def _table(settings: ModelSettings) -> tuple[Entry, ...]:
    side = settings.image.input_size
    slots, count = jnp.zeros((1, 3), jnp.int32), jnp.zeros(1, jnp.int32)
    variables = jax.eval_shape(
        AFLoc(_brief(settings)).init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, side, side), jnp.float32),
        TokenBatch(slots, slots, slots, count, count),
    )
    return tuple(
        _entry(path, leaf.shape)
        for traced, leaf in traverse_util.flatten_dict(variables).items()
        for path in _repeated(traced, settings)
    )


def _brief(settings: ModelSettings) -> ModelSettings:
    """The same model with one BERT layer and at most two blocks a stage: tracing every layer takes most of a second.

    All BERT layers have the same arrays, and so do all blocks of a residual stage but its first.
    """
    structure, text = settings.image.structure, settings.text
    if isinstance(structure, ResNetSettings):
        structure = dataclasses.replace(structure, blocks=tuple(min(blocks, 2) for blocks in structure.blocks))
    text = dataclasses.replace(text, bert=dataclasses.replace(text.bert, num_hidden_layers=1), last_layers=1)
    return dataclasses.replace(settings, image=dataclasses.replace(settings.image, structure=structure), text=text)


def _repeated(path: tuple[str, ...], settings: ModelSettings) -> Iterator[tuple[str, ...]]:
    """The path of a traced array, and those of the layers or blocks for which it stands."""
    yield path
    structure = settings.image.structure
    for position, module in enumerate(path):
        if module == "layer_0":
            names = [f"layer_{layer}" for layer in range(1, settings.text.bert.num_hidden_layers)]
        elif isinstance(structure, ResNetSettings) and (stage := re.fullmatch(r"layer(\d+)_1", module)):
            names = [f"layer{stage[1]}_{block}" for block in range(2, structure.blocks[int(stage[1]) - 1])]
        else:
            continue
        yield from (path[:position] + (name,) + path[position + 1 :] for name in names)


def _entry(path: tuple[str, ...], shape: Sequence[int]) -> Entry:
    module, leaf = "/".join(path[1:-1]), path[-1]
    for ours, theirs in _MODULES:
        if match := ours.fullmatch(module):
            name = f"{match.expand(theirs)}.{_LEAVES[leaf]}"
            break
    else:
        raise KeyError(f"afloc_jax/weights/torch_names.py has no PyTorch name for {'/'.join(path)}: add its module")
    layout: Layout = "same"
    if leaf == "kernel":
        pointwise = module.endswith(("project_shallow", "project_deep"))
        layout = "convolution" if len(shape) == 4 else "pointwise" if pointwise else "linear"
    entry = Entry(path, name, (), layout)
    # A view of one element has the shape of the whole array: nothing is allocated.
    return Entry(path, name, entry.to_torch(np.broadcast_to(np.float32(0), shape)).shape, layout)


def _aligned(array: np.ndarray) -> np.ndarray:
    """A contiguous copy that starts at a multiple of 64 bytes, where JAX on a CPU uses it as it lies."""
    dtype = np.dtype(np.float64 if array.dtype == np.float64 else np.float32)
    memory = np.empty(array.size * dtype.itemsize + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + array.size * dtype.itemsize].view(dtype).reshape(array.shape)
    np.copyto(copy, array, casting="unsafe")
    return copy


def _our_shape(row: Entry) -> tuple[int, ...]:
    return row.from_torch(np.broadcast_to(np.float32(0), row.shape)).shape


def _plain_dicts(tree: Any) -> Any:
    return {key: _plain_dicts(value) for key, value in tree.items()} if isinstance(tree, Mapping) else tree


def compare(what: str, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise one error that names every kind of difference between two sets of named shapes."""
    missing = [f"{name} {list(wanted[name])}" for name in wanted if name not in found]
    unexpected = [f"{name} {list(found[name])}" for name in found if name not in wanted]
    reshaped = [
        f"{name} {list(found[name])} instead of {list(wanted[name])}"
        for name in wanted
        if name in found and tuple(found[name]) != tuple(wanted[name])
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
    parts = [f"{kind}: {_shortened(names)}" for kind, names in kinds if names]
    if parts:
        raise UserError(f"{what} cannot fill the model of this config; {'; '.join(parts)}")


def _shortened(names: list[str], shown: int = 8) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + rest
