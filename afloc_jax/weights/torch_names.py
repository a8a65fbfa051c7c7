"""The table of published PyTorch names and our variables, used for reading and for writing weights.

PyTorch keeps convolution kernels as [out, in, height, width] and linear weights as [out, in]. Flax keeps them as
[height, width, in, out] and [in, out]. The projections of the maps are 1x1 convolutions in PyTorch and linear layers
here.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from flax import traverse_util
from flax.core import unfreeze
from jaxtyping import PyTree

from afloc_jax.errors import UserError
from afloc_jax.models.settings import BACKBONES, ModelSettings
from afloc_jax.models.variables import ArrayPath, variable_shapes

# Our module path -> the published module name. The first pattern that matches the full path is used. Backbones have
# tables of their own (models/).
_MODULES = (
    (r"image_encoder/project_shallow", r"img_encoder.local2_embedder"),
    (r"image_encoder/project_deep", r"img_encoder.local_embedder"),
    (r"image_encoder/project_whole", r"img_encoder.global_embedder"),
    # Not published: the release does not centre its projections.
    (r"image_encoder/center_shallow", r"img_encoder.local2_norm"),
    (r"image_encoder/center_deep", r"img_encoder.local_norm"),
    (r"image_encoder/center_whole", r"img_encoder.global_norm"),
    # CXR-BERT's names; the release has no projection of texts.
    (r"text_encoder/projection/(hidden|output)", r"text_encoder.cls_projection_head.dense_to_\1"),
    (r"text_encoder/projection/norm", r"text_encoder.cls_projection_head.LayerNorm"),
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
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "value": "",  # a parameter without a layer
}
# PyTorch names that the model does not need: counters, constants, and the stage-4 projection of an unused objective.
_IGNORED = re.compile(r".*\.(num_batches_tracked|position_ids)|img_encoder\.local_f_embedder\.(weight|bias)")

_ALIGNMENT = 64  # bytes

Layout = Literal["same", "linear", "convolution", "pointwise"]


@dataclass(frozen=True)
class Entry:
    """One row of the table: one of our arrays, with its name and shape in PyTorch."""

    path: ArrayPath
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


def table(model: ModelSettings) -> tuple[Entry, ...]:
    """The rows of all arrays of a model. No parameter is computed."""
    model.check_text_encoder()
    return _table(model)


def to_torch(variables: PyTree, model: ModelSettings) -> dict[str, np.ndarray]:
    """The variables as a state dict that the published PyTorch model loads.

    Args:
        variables: {"params": ..., "batch_stats": ...} as `AFLoc.init` returns them.
        model: the architecture of the variables.

    Returns:
        Contiguous arrays by PyTorch name, with a zero `num_batches_tracked` beside each pair of running statistics.

    Raises:
        UserError: the variables are not those of this model. The message lists the names that are missing, unexpected
            or of another shape.
    """
    rows = table(model)
    flat = traverse_util.flatten_dict(unfreeze(variables))
    compare(
        "the variables",
        {"/".join(path): np.shape(array) for path, array in flat.items()},
        {"/".join(row.path): _our_shape(row) for row in rows},
    )
    return with_counters({row.name: np.ascontiguousarray(row.to_torch(np.asarray(flat[row.path]))) for row in rows})


def with_counters(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict with a zero `num_batches_tracked` beside each pair of running statistics, as PyTorch expects."""
    counted: dict[str, np.ndarray] = {}
    for name, array in state.items():
        counted[name] = array
        if name.endswith("running_var"):
            counted[name.removesuffix("running_var") + "num_batches_tracked"] = np.zeros((), np.int64)
    return counted


def from_torch(state_dict: Mapping[str, np.ndarray], model: ModelSettings) -> dict[str, PyTree]:
    """Variables ({"params": ..., "batch_stats": ...}, NumPy arrays) from a state dict with the published names.

    float64 stays float64; every other type becomes float32. `num_batches_tracked`, `position_ids` and
    `local_f_embedder` (a projection that the published objective does not use) are ignored.

    Raises:
        UserError: names are missing, unexpected or of another shape than in the model. The message lists them.
    """
    rows = table(model)
    given = {name: array for name, array in state_dict.items() if not _IGNORED.fullmatch(name)}
    compare(
        "the state dict",
        {name: np.shape(array) for name, array in given.items()},
        {row.name: row.shape for row in rows},
    )
    arrays = [np.asarray(given[row.name]) for row in rows]
    copies = [_aligned_like(row, array) for row, array in zip(rows, arrays, strict=True)]
    with ThreadPoolExecutor() as threads:  # the interpreter's lock is released while half a GB is copied
        list(threads.map(_copy, rows, arrays, copies))
    return traverse_util.unflatten_dict(dict(zip((row.path for row in rows), copies, strict=True)))


@functools.lru_cache(maxsize=32)
def _table(settings: ModelSettings) -> tuple[Entry, ...]:
    backbone = [
        (rf"image_encoder/backbone/{ours}", rf"img_encoder.model.{theirs}")
        for ours, theirs in BACKBONES[settings.image.backbone].family.torch_names
    ]
    names = [(re.compile(ours), theirs) for ours, theirs in (*_MODULES, *backbone)]
    return tuple(_entry(path, shape, names) for path, shape in variable_shapes(settings).items())


def _entry(path: ArrayPath, shape: Sequence[int], names: Sequence[tuple[re.Pattern[str], str]]) -> Entry:
    module, leaf = "/".join(path[1:-1]), path[-1]
    for ours, theirs in names:
        if match := ours.fullmatch(module):
            name = ".".join(part for part in (match.expand(theirs), _LEAVES[leaf]) if part)
            break
    else:
        raise KeyError(f"{'/'.join(path)} has no PyTorch name: add its module to the backbone's family or torch_names")
    layout: Layout = "same"
    if leaf == "kernel":
        pointwise = module.endswith(("project_shallow", "project_deep"))
        layout = "convolution" if len(shape) == 4 else "pointwise" if pointwise else "linear"
    entry = Entry(path, name, (), layout)
    # A broadcast view of one element has the shape of the array without its memory.
    return Entry(path, name, entry.to_torch(np.broadcast_to(np.float32(0), shape)).shape, layout)


def _copy(row: Entry, array: np.ndarray, target: np.ndarray) -> None:
    """Copies an array in PyTorch's layout to one in ours."""
    if row.layout == "same" or array.dtype != np.float32:
        np.copyto(target, row.from_torch(array), casting="unsafe")
        return
    # The first axis becomes the last. OpenCV does it ten times as fast as NumPy, which reads across memory.
    matrix = array.reshape(len(array), -1)
    if array.shape[2:] in ((), (1, 1)):
        cv2.transpose(matrix, target.reshape(-1, len(array)))
    else:
        np.copyto(target, cv2.transpose(matrix).reshape(*array.shape[1:], -1).transpose(1, 2, 0, 3))


def _aligned_like(row: Entry, array: np.ndarray) -> np.ndarray:
    """Memory for the copy, at a multiple of 64 bytes, so that JAX on a CPU uses it without another copy."""
    dtype = np.dtype(np.float64 if array.dtype == np.float64 else np.float32)
    size = array.size * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(_our_shape(row))


def _our_shape(row: Entry) -> tuple[int, ...]:
    return row.from_torch(np.broadcast_to(np.float32(0), row.shape)).shape


def compare(what: str, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises one UserError that names all differences between two sets of named shapes."""
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
