"""The two towers of AFLoc (arXiv 2401.02044): images and reports, each at three levels, in one shared width."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from afloc_jax.errors import UsageError
from afloc_jax.interpolation import aligned_corners, resize
from afloc_jax.levels import ImageLevels, TextLevels, TokenBatch
from afloc_jax.models.backbone import Features, Structure
from afloc_jax.models.bert import Bert
from afloc_jax.models.convolution import Layers
from afloc_jax.models.settings import BACKBONES, ImageSettings, ModelSettings, TextSettings
from afloc_jax.models.text_units import sentence_context, text_levels
from afloc_jax.vectors import unit_norm

# PyTorch's default of linear and convolution layers: uniform within 1 / sqrt(fan_in).
_projection_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ImageEncoder(nn.Module):
    """Backbone, and one linear projection per level to the shared width (batch-normalised with `center`)."""

    settings: ImageSettings
    structure: Structure  # the backbone's
    projection_dim: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, image: Shaped[Array, "B S S"], *, train: bool = False, with_factors: bool = False
    ) -> ImageLevels:
        settings, layers = self.settings, Layers(self.settings.statistics_group, self.dtype, self.param_dtype)
        backbone = BACKBONES[settings.backbone].family.module(self.structure, layers, name="backbone")
        x = prepare_image(image, settings.input_size, self.param_dtype)[..., None]
        # A frozen backbone runs as in evaluation: its running statistics must not move either.
        features: Features = backbone(x, train=train and not settings.freeze)
        if settings.freeze:
            features = lax.stop_gradient(features)

        def project(name: str, features: Array, use_bias: bool, dtype: DTypeLike) -> Array:
            dense = nn.Dense(
                self.projection_dim,
                use_bias=use_bias,
                dtype=dtype,
                param_dtype=self.param_dtype,
                kernel_init=_projection_init,
                name=f"project_{name}",
            )
            projected = dense(features)
            if not settings.center:
                return projected
            # Features behind a ReLU share a large mean, in which cosines drown; this takes it away.
            center = layers.norm(dtype=dtype, name=f"center_{name}")
            maps = projected.reshape(projected.shape[0], -1, 1, self.projection_dim)
            return center(maps, train=train).reshape(projected.shape)

        levels = ImageLevels(
            shallow=project("shallow", features.shallow, False, self.dtype),
            deep=project("deep", features.deep, False, self.dtype),
            whole=project("whole", features.whole, True, self.param_dtype),
        )
        if not with_factors or settings.center:
            return levels
        kernel: Array = self.get_variable("params", "project_shallow")["kernel"]
        return dataclasses.replace(levels, shallow_factors=(features.shallow, kernel))


class TextEncoder(nn.Module):
    """BERT and the merging of its pieces into words, sentences and the report. No projection, as published."""

    settings: TextSettings
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: TokenBatch, *, train: bool = False) -> TextLevels:
        settings = self.settings
        bert = Bert(settings.structure, self.dtype, self.param_dtype, name="bert")
        if settings.context == "sentence":
            attend, positions = sentence_context(tokens)
        else:
            attend, positions = tokens.word_ids >= 0, None
        states = bert(tokens.token_ids, attend, positions, train=train and not settings.freeze)
        if settings.freeze:
            states = lax.stop_gradient(states)
        return text_levels(
            states,
            tokens,
            last_layers=settings.last_layers,
            merge_layers=settings.merge_layers,
            merge_pieces=settings.merge_pieces,
        )


class AFLoc(nn.Module):
    """Image and text tower. Collections: `params`, `batch_stats`; random stream with `train`: `dropout`.

    `dtype` is the precision of the computation. Parameters, batch statistics, text units and the image vector stay
    float32 (float64 when `dtype` is float64); the two maps are in `dtype`.
    """

    settings: ModelSettings
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        image = self.settings.image
        self.image_encoder = ImageEncoder(image, image.structure, self.settings.projection_dim, self.dtype, param_dtype)
        self.text_encoder = TextEncoder(self.settings.text, self.dtype, param_dtype)

    def __call__(
        self, image: Shaped[Array, "B S S"], tokens: TokenBatch, *, train: bool = False, with_factors: bool = False
    ) -> tuple[ImageLevels, TextLevels]:
        """Both sides. `train` uses batch statistics (and updates `batch_stats` when mutable) and dropout.

        `with_factors` adds `shallow_factors`, which exist where the shallow map is a plain projection of features:
        without `image.center` and `normalize`.
        """
        image_levels = self.encode_image(image, train=train, with_factors=with_factors)
        return image_levels, self.encode_text(tokens, train=train)

    def encode_image(
        self, image: Shaped[Array, "B S S"], *, train: bool = False, with_factors: bool = False
    ) -> ImageLevels:
        """The levels of uint8 squares, or of floats in [-1, 1]."""
        levels = self.image_encoder(image, train=train, with_factors=with_factors and not self.settings.normalize)
        if self.settings.normalize:
            levels = dataclasses.replace(
                levels, shallow=unit_norm(levels.shallow), deep=unit_norm(levels.deep), whole=unit_norm(levels.whole)
            )
        return levels

    def encode_text(self, tokens: TokenBatch, *, train: bool = False) -> TextLevels:
        """The levels of texts."""
        levels = self.text_encoder(tokens, train=train)
        if self.settings.normalize:
            levels = dataclasses.replace(
                levels,
                words=unit_norm(levels.words),
                sentences=unit_norm(levels.sentences),
                report=unit_norm(levels.report),
            )
        return levels


def build(settings: ModelSettings, dtype: DTypeLike = jnp.float32) -> AFLoc:
    """The model that `config.model` describes, without parameters (`initial_variables` makes them).

    Args:
        settings: `config.model`; `ModelSettings.read` takes it from a ConfigDict or from nested dicts.
        dtype: precision of the computation: float32, bfloat16 or float64 (needs jax_enable_x64).

    Raises:
        UsageError: the settings do not fit the text encoder.
    """
    settings.check_text_encoder()
    return AFLoc(settings, dtype)


def prepare_image(
    image: Shaped[Array, "B S S"], input_size: int, dtype: DTypeLike = jnp.float32
) -> Float[Array, "B I I"]:
    """Squares scaled to [-1, 1] and resized to `input_size`.

    uint8 pixels become (x / 255 - 0.5) / 0.5; floats are taken as already scaled. The resize is bilinear with aligned
    corners, as published, written as one matrix product per axis. Where `input_size` divides the side, each output
    pixel is the mean of its block instead: bilinear sampling would skip most pixels there.

    Raises:
        UsageError: the images are not a batch of one-channel squares, or neither uint8 nor floating point.
    """
    if image.ndim != 3 or image.shape[1] != image.shape[2]:
        raise UsageError(f"images have shape {image.shape}: give a batch of one-channel squares, [B, S, S]")
    if image.dtype == jnp.uint8:
        x = (image.astype(dtype) / 255 - 0.5) / 0.5
    elif jnp.issubdtype(image.dtype, jnp.floating):
        x = image.astype(dtype)
    else:
        raise UsageError(f"images are {image.dtype}: give uint8, or floats in [-1, 1]")
    batch, side, _ = image.shape
    if side == input_size:
        return x
    if side % input_size == 0:
        factor = side // input_size
        return x.reshape(batch, input_size, factor, input_size, factor).mean(axis=(2, 4))
    matrix = jnp.asarray(aligned_corners(side, input_size), dtype)
    return resize(x, matrix, matrix)
