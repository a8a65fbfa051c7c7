"""The arrays of a model: their initial values, their shapes by path, and which of them are trainable."""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, PRNGKeyArray, PyTree, UInt8

from afloc_jax.levels import TokenBatch
from afloc_jax.models.afloc import AFLoc, ImageEncoder, TextEncoder
from afloc_jax.models.parameters import SHAPES
from afloc_jax.models.settings import ModelSettings

ArrayPath = tuple[str, ...]
"""The path of an array in the variables: its collection ("params" or "batch_stats"), its modules, its own name."""


def initial_variables(model: AFLoc, key: PRNGKeyArray) -> PyTree:
    """`params` and `batch_stats` with initial values, to be called under `jax.jit` or `jax.eval_shape`.

    Flax initialises a model by running it. The smallest image and text suffice, as no shape depends on their sizes.
    """
    return model.init(key, *_smallest_inputs())


def _smallest_inputs() -> tuple[UInt8[Array, "B S S"], TokenBatch]:
    slots, count = jnp.zeros((1, 3), jnp.int32), jnp.ones(1, jnp.int32)
    return jnp.zeros((1, 32, 32), jnp.uint8), TokenBatch(slots, slots, slots, count, count)


def _shape_keys() -> dict[str, PRNGKeyArray]:
    return {"params": jax.random.key(0), SHAPES: jax.random.key(0)}


@functools.lru_cache(maxsize=32)
def variable_shapes(settings: ModelSettings) -> Mapping[ArrayPath, tuple[int, ...]]:
    """The shape of every array of a model.

    Tracing every layer would take most of a second. Therefore a model of few blocks and one BERT layer is traced, and
    its arrays give the shapes of all others.
    """
    image, text = settings.image, settings.text
    one_layer = dataclasses.replace(text, bert={**text.bert, "num_hidden_layers": 1}, last_layers=1)
    image_encoder = ImageEncoder(image, image.structure.brief(), settings.projection_dim)
    towers = {
        "image_encoder": jax.eval_shape(lambda: image_encoder.init(_shape_keys(), _smallest_inputs()[0])),
        "text_encoder": jax.eval_shape(lambda: TextEncoder(one_layer).init(_shape_keys(), _smallest_inputs()[1])),
    }
    shapes = {
        (collection, tower, *path): leaf.shape
        for collection in ("batch_stats", "params")
        for tower, variables in towers.items()
        for traced, leaf in traverse_util.flatten_dict(variables.get(collection, {})).items()
        for path in _represented(traced, settings)
    }
    return MappingProxyType(shapes)


def _represented(path: ArrayPath, settings: ModelSettings) -> list[ArrayPath]:
    """The path of a traced array, and the paths of arrays of the same shape in layers or blocks that were left out."""
    paths = [path]
    for position, module in enumerate(path):
        others = settings.image.structure.stands_for(module)
        if module == "layer_0":  # BERT's layers have equal shapes, so only the first is traced
            others = [f"layer_{layer}" for layer in range(1, settings.text.structure.num_hidden_layers)]
        paths += [(*path[:position], other, *path[position + 1 :]) for other in others]
    return paths


def trainable(params: PyTree, settings: ModelSettings) -> PyTree:
    """Whether each parameter is trainable, as a tree of booleans like `params`.

    Parameters of a frozen backbone, of frozen blocks or of a frozen text encoder are not: their gradient is zero, but
    weight decay would change them.
    Nor are those of BERT's pooler, which no output depends on. The projections of a frozen encoder are trainable.
    """

    def decide(path: tuple[jax.tree_util.DictKey, ...], _: PyTree) -> bool:
        names = [entry.key for entry in path]
        backbone = names[:2] == ["image_encoder", "backbone"]
        frozen_image = backbone and (settings.image.freeze or settings.image.structure.keeps(names[2]))
        frozen_text = settings.text.freeze and names[:2] == ["text_encoder", "bert"]
        return not (frozen_image or frozen_text or "pooler" in names)

    return jax.tree_util.tree_map_with_path(decide, params)
