"""Export as serialized JAX functions (StableHLO): image tower, text tower and heat map, with a symbolic batch.

    image.stablehlo    (weights of image.npz, image) -> {shallow, deep, whole}
    text.stablehlo     (weights of text.npz, token_ids, word_ids, sentence_ids, sentence_count)
                       -> {words, sentences, report, asked}
    heatmap.stablehlo  (deep, asked) -> {heatmap}
    manifest.json      these signatures with shapes and types; "batch" stands for any number of at least 1

`asked` is the query of the heat map: the report embedding, or the mean of the sentences, of a prompt.

`jax.export.deserialize` reads the functions, which run on CPU, CUDA and TPU without afloc_jax and Flax (it needs
flatbuffers). Weights are arguments: as constants they would be stored inside the programs, slow compilation down by
constant folding, and could neither be placed on a device once for all calls nor be replaced.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export
from jax.typing import DTypeLike
from jaxtyping import PyTree

from afloc_jax.export.source import Source, copy_file, write_arrays, write_inputs_reader
from afloc_jax.files import Path, write_json
from afloc_jax.levels import TokenBatch
from afloc_jax.models import build
from afloc_jax.settings import Json

PLATFORMS = ("cpu", "cuda", "tpu")
Arguments: TypeAlias = dict[str, jax.ShapeDtypeStruct]
Weights: TypeAlias = dict[str, np.ndarray]  # the arrays of a tower, by their path joined with "/"

TOWERS = {"image": "image_encoder", "text": "text_encoder"}  # file name -> module of the model


def write(source: Source, folder: Path) -> None:
    """Writes the export into an empty folder."""
    write_inputs_reader(source, folder)
    weights = {name: _weights(source, module) for name, module in TOWERS.items()}
    for name, arrays in weights.items():
        write_arrays(folder / f"{name}.npz", arrays)
    functions: dict[str, Json] = {}
    for name, function, arguments in _functions(source):
        leading = (weights[name],) if name in weights else ()
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(*leading, *arguments.values())
        (folder / f"{name}.stablehlo").write_bytes(exported.serialize())
        outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
        functions[name] = {
            "file": f"{name}.stablehlo",
            "weights": f"{name}.npz" if leading else None,
            "inputs": {key: _signature(value) for key, value in arguments.items()},
            "outputs": {key: _signature(value) for key, value in outputs.items()},
        }
    write_json(folder / "manifest.json", {"jax": jax.__version__, "platforms": PLATFORMS, "functions": functions})
    copy_file("afloc_stablehlo.py", folder)


def _functions(source: Source) -> list[tuple[str, Callable, Arguments]]:
    """The name of each exported function, the function, and its arguments after the weights."""
    network, settings = build(source.settings), source.config.localization
    side, cells, slots = source.image_size, source.deep_cells, source.max_tokens
    width, input_size = source.settings.projection_dim, source.settings.image.input_size
    (batch,) = export.symbolic_shape("batch")

    def array(dtype: DTypeLike, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    # The precision of afloc_jax itself: by default accelerators multiply in a lower one.
    def encode_image(weights, image):
        with jax.default_matmul_precision("float32"):
            levels: Any = network.apply(_variables(weights), image, method="encode_image")
        return {"shallow": levels.shallow, "deep": levels.deep, "whole": levels.whole}

    def encode_text(weights, token_ids, word_ids, sentence_ids, sentence_count):
        tokens = TokenBatch(token_ids, word_ids, sentence_ids, sentence_count, sentence_count)  # word counts: unused
        with jax.default_matmul_precision("float32"):
            levels: Any = network.apply(_variables(weights), tokens, method="encode_text")
            asked = settings.query(levels)
        return {"words": levels.words, "sentences": levels.sentences, "report": levels.report, "asked": asked}

    def heat_map(deep, asked):
        return {"heatmap": settings.map(deep, asked, side, input_size)}

    tokens = {name: array(jnp.int32, slots) for name in ("token_ids", "word_ids", "sentence_ids")}
    return [
        ("image", encode_image, {"image": array(jnp.uint8, side, side)}),
        ("text", encode_text, tokens | {"sentence_count": array(jnp.int32)}),
        ("heatmap", heat_map, {"deep": array(jnp.float32, cells, cells, width), "asked": array(jnp.float32, width)}),
    ]


def _weights(source: Source, module: str) -> Weights:
    """The variables of one tower, by their path joined with "/"."""
    flat = traverse_util.flatten_dict(source.variables, sep="/")
    return {name: array for name, array in flat.items() if name.split("/")[1] == module}


def _variables(weights: Weights) -> PyTree:
    return traverse_util.unflatten_dict(weights, sep="/")


def _signature(value: jax.ShapeDtypeStruct) -> dict[str, Json]:
    shape: list[Json] = [size if isinstance(size, int) else str(size) for size in value.shape]
    return {"shape": shape, "type": value.dtype.name}
