"""The compiled programs of a model in use: both encoders, heat maps, and their peaks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, UInt8

from afloc_jax.heatmaps import HeatmapSettings
from afloc_jax.inference.batching import chunks, concatenate, own_slots, pad, trim
from afloc_jax.levels import ImageLevels, TextLevels, TokenBatch
from afloc_jax.models import AFLoc
from afloc_jax.models.backbone import Features
from data_pipelines.tokens import TokenArrays


# The network is static and hashable, so models of one architecture (trained and untrained) share compiled programs.
# By default accelerators multiply in a lower precision; maps must agree to the fourth digit between devices.
@functools.partial(jax.jit, static_argnames="network")
def encode_images(network: AFLoc, variables: PyTree, squares: UInt8[Array, "B S S"]) -> PyTree:
    """The levels of B squares, see `ImageLevels`."""
    with jax.default_matmul_precision("float32"):
        return network.apply(variables, squares, method="encode_image")


@functools.partial(jax.jit, static_argnames=("network", "names"))
def backbone_features(
    network: AFLoc, variables: PyTree, squares: UInt8[Array, "B S S"], names: tuple[str, ...]
) -> dict[str, Array]:
    """The features of B squares by name, as the backbone gives them before any projection, see `Features`."""
    with jax.default_matmul_precision("float32"):
        _, state = network.apply(
            variables,
            squares,
            method="encode_image",
            capture_intermediates=lambda module, _: module.name == "backbone",
            mutable=["intermediates"],
        )
    features: Features = state["intermediates"]["image_encoder"]["backbone"]["__call__"][0]
    return {name: getattr(features, name) for name in names}


@functools.partial(jax.jit, static_argnames=("network", "slots"))
def encode_texts(network: AFLoc, variables: PyTree, tokens: TokenBatch, slots: int) -> PyTree:
    """The levels of texts in so many token slots, see `TextLevels`."""
    with jax.default_matmul_precision("float32"):
        return network.apply(variables, tokens, slots=slots, method="encode_text")


@functools.partial(jax.jit, static_argnames=("side", "settings", "input_size"))
def heatmaps_of(
    deep: Float[Array, "B h w D"],
    images: Int[Array, " P"],
    queries: Float[Array, "P D"],
    side: int,
    settings: HeatmapSettings,
    input_size: int,
) -> Float[Array, "P {side} {side}"]:
    """Heat maps [P, side, side] of the regions deep[images] [P, h, w, D] and the queries [P, D]."""
    return settings.map(deep[images].astype(jnp.float32), queries, side, input_size)


@jax.jit
def peaks_of(
    deep: Float[Array, "B h w D"], images: Int[Array, " P"], queries: Float[Array, "P D"]
) -> Float[Array, " P"]:
    """The largest cosine of a region of deep[images] with each query. A zero vector has cosine 0."""
    regions = deep[images].astype(jnp.float32)
    dots = jnp.einsum("phwd,pd->phw", regions, queries, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.linalg.norm(regions, axis=-1) * jnp.linalg.norm(queries, axis=-1)[:, None, None]
    return (dots / jnp.where(norms > 0, norms, 1)).max((-2, -1))


def levels_of_images(network: AFLoc, variables: PyTree, squares: UInt8[np.ndarray, "B S S"], most: int) -> ImageLevels:
    """`encode_images` for any number of squares, at most `most` at once, as NumPy arrays."""
    parts = [
        trim(encode_images(network, variables, pad(squares[rows], size)), count)
        for rows, count, size in chunks(len(squares), most)
    ]
    return concatenate(parts)


def features_of_images(
    network: AFLoc, variables: PyTree, squares: UInt8[np.ndarray, "B S S"], names: tuple[str, ...], most: int
) -> dict[str, np.ndarray]:
    """`backbone_features` for any number of squares, at most `most` at once, as NumPy arrays."""
    parts = [
        jax.tree.map(
            lambda leaf, count=count: np.asarray(leaf)[:count],
            backbone_features(network, variables, pad(squares[rows], size), names),
        )
        for rows, count, size in chunks(len(squares), most)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def levels_of_texts(network: AFLoc, variables: PyTree, tokens: TokenArrays, most: int) -> TextLevels:
    """`encode_texts` for any number of texts, at most `most` at once, in as many slots as they need."""
    slots, parts = tokens["word_ids"].shape[1], []
    arrays: dict[str, PyTree] = {**tokens}
    for rows, some, size in chunks(len(tokens["word_ids"]), most):
        part = rows, slice(own_slots(tokens["word_ids"][rows]))
        cut: dict[str, PyTree] = {name: pad(array[part[: array.ndim]], size) for name, array in arrays.items()}
        parts.append(trim(encode_texts(network, variables, TokenBatch(**cut), slots), some))
    return concatenate(parts)
