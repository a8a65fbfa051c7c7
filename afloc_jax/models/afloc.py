"""The two towers of AFLoc (arXiv 2401.02044): images and reports, each at three levels of one shared width."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree, Shaped

from afloc_jax.errors import UsageError
from afloc_jax.interpolation import aligned_corners, resize
from afloc_jax.levels import ImageLevels, TextLevels, TokenBatch
from afloc_jax.models.backbone import Features, Structure
from afloc_jax.models.bert import Bert, ProjectionHead
from afloc_jax.models.convolution import Layers
from afloc_jax.models.parameters import Dense
from afloc_jax.models.settings import BACKBONES, ImageSettings, ModelSettings, TextSettings
from afloc_jax.models.text_units import sentence_context, text_levels
from afloc_jax.vectors import unit_norm

# PyTorch's default for linear and convolution layers: uniform in +-1 / sqrt(fan_in).
_projection_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ImageEncoder(nn.Module):
    """The backbone, and one linear projection per level to the shared width (batch-normalised with `center`).

    Features of a frozen backbone (`backbone_features`) may take the place of images.
    """

    settings: ImageSettings
    structure: Structure  # structure of the backbone
    projection_dim: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, image: Shaped[Array, "B S S"] | Features, *, train: bool = False, with_factors: bool = False
    ) -> ImageLevels:
        settings = self.settings
        layers = Layers(settings.statistics_group, self.dtype, self.param_dtype, self.remat and train)
        if isinstance(image, Features):
            features = image
        else:
            backbone = BACKBONES[settings.backbone].family.module(self.structure, layers, name="backbone")
            # A frozen backbone runs in evaluation mode, so that its running statistics do not change either.
            features = backbone(read_image(settings, image, self.param_dtype), train=train and not settings.freeze)
            if settings.freeze:
                features = lax.stop_gradient(features)

        def project(
            name: str, features: Float[Array, "B *S C"], use_bias: bool, dtype: DTypeLike
        ) -> Float[Array, "B *S D"]:
            dense = Dense(
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
            # Features after a ReLU share a large mean, which dominates their cosines. Centring removes it.
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
    """BERT, and the merging of its pieces into words, sentences and the report. As published, without a projection.

    With `settings.projection` a head follows BERT. It is computed in the precision of the text units.
    """

    settings: TextSettings
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: TokenBatch, *, train: bool = False, slots: int | None = None) -> TextLevels:
        settings = self.settings
        bert = Bert(settings.structure, self.dtype, self.param_dtype, name="bert")
        if settings.context == "sentence":
            attend, positions = sentence_context(tokens)
        else:
            attend, positions = tokens.word_ids >= 0, None
        states = bert(tokens.token_ids, attend, positions, train=train and not settings.freeze)
        if settings.freeze:
            states = lax.stop_gradient(states)
        head = ProjectionHead(settings.projection, self.param_dtype, name="projection") if settings.projection else None
        return text_levels(
            states,
            tokens,
            last_layers=settings.last_layers,
            merge_layers=settings.merge_layers,
            merge_pieces=settings.merge_pieces,
            slots=slots,
            project=head,
        )


class AFLoc(nn.Module):
    """The image and the text tower. Collections: `params`, `batch_stats`. Random stream with `train`: `dropout`.

    `dtype` is the precision of the computation and of the two maps. Parameters, batch statistics, text units and the
    global image vector are float32 (float64 if `dtype` is float64). `remat` says that the backward pass of training
    computes activations again: networks of equal blocks are then loops.
    """

    settings: ModelSettings
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        param_dtype = jnp.promote_types(self.dtype, jnp.float32)
        image = self.settings.image
        self.image_encoder = ImageEncoder(
            image, image.structure, self.settings.projection_dim, self.dtype, param_dtype, self.remat
        )
        self.text_encoder = TextEncoder(self.settings.text, self.dtype, param_dtype)

    def __call__(
        self,
        image: Shaped[Array, "B S S"] | Features,
        tokens: TokenBatch,
        *,
        train: bool = False,
        with_factors: bool = False,
    ) -> tuple[ImageLevels, TextLevels]:
        """The levels of B images and their reports.

        `train` turns on dropout and the statistics of the batch, and updates `batch_stats` if they are mutable.
        `with_factors` adds `shallow_factors`. They need a shallow map that is a plain projection of features, that is
        no `image.center` and no `normalize`.
        """
        image_levels = self.encode_image(image, train=train, with_factors=with_factors)
        return image_levels, self.encode_text(tokens, train=train)

    def encode_image(
        self, image: Shaped[Array, "B S S"] | Features, *, train: bool = False, with_factors: bool = False
    ) -> ImageLevels:
        """The levels of B squares, which are uint8, or floats in [-1, 1]; or of features of a frozen backbone."""
        levels = self.image_encoder(image, train=train, with_factors=with_factors and not self.settings.normalize)
        if self.settings.normalize:
            levels = dataclasses.replace(
                levels, shallow=unit_norm(levels.shallow), deep=unit_norm(levels.deep), whole=unit_norm(levels.whole)
            )
        return levels

    def encode_text(self, tokens: TokenBatch, *, train: bool = False, slots: int | None = None) -> TextLevels:
        """The levels of B texts. `slots` is the number of their token slots where empty ones at the end were cut."""
        levels = self.text_encoder(tokens, train=train, slots=slots)
        if self.settings.normalize:
            levels = dataclasses.replace(
                levels,
                words=unit_norm(levels.words),
                sentences=unit_norm(levels.sentences),
                report=unit_norm(levels.report),
            )
        return levels


def build(settings: ModelSettings, dtype: DTypeLike = jnp.float32, remat: bool = False) -> AFLoc:
    """The model that `config.model` describes, without parameters (see `initial_variables`).

    Args:
        settings: `config.model`; `ModelSettings.read` reads it from a ConfigDict or nested dicts.
        dtype: the precision of the computation: float32, bfloat16 or float64 (needs jax_enable_x64).
        remat: whether the backward pass of training computes activations again.

    Raises:
        UsageError: the settings do not fit the text encoder.
    """
    settings.check_text_encoder()
    return AFLoc(settings, dtype, remat)


def backbone_features(
    settings: ImageSettings, variables: Mapping[str, PyTree], image: Shaped[Array, "B S S"], dtype: DTypeLike
) -> Features:
    """The features of B squares by a frozen backbone, which `ImageEncoder` takes in their place.

    Args:
        settings: `config.model.image`.
        variables: `params` and `batch_stats` of the backbone alone.
        image: the squares.
        dtype: the precision of the model.
    """
    param_dtype = jnp.promote_types(dtype, jnp.float32)
    layers = Layers(settings.statistics_group, dtype, param_dtype)
    backbone = BACKBONES[settings.backbone].family.module(settings.structure, layers)
    return Features(*backbone.apply(variables, read_image(settings, image, param_dtype), train=False))


def read_image(settings: ImageSettings, image: Shaped[Array, "B S S"], dtype: DTypeLike) -> Float[Array, "B I I C"]:
    """Squares as the backbone reads them: resized to `input_size` and scaled by `mean` and `std`."""
    return scaled(prepare_image(image, settings.input_size, dtype), settings.mean, settings.std)


def scaled(x: Float[Array, "B I I"], mean: tuple[float, ...], std: tuple[float, ...]) -> Float[Array, "B I I C"]:
    """Squares in [-1, 1] as (pixel - mean) / std of pixels in [0, 1]. C is 1 where all channels would be equal."""
    if len({*mean}) == len({*std}) == 1:
        mean, std = mean[:1], std[:1]
    if (mean, std) == ((0.5,), (0.5,)):
        return x[..., None]
    # (x / 2 + 1/2 - mean) / std
    factor, offset = (0.5 / np.array(std), (0.5 - np.array(mean)) / np.array(std))
    return x[..., None] * jnp.asarray(factor, x.dtype) + jnp.asarray(offset, x.dtype)


def prepare_image(
    image: Shaped[Array, "B S S"], input_size: int, dtype: DTypeLike = jnp.float32
) -> Float[Array, "B I I"]:
    """Squares scaled to [-1, 1] and resized to I = `input_size`.

    uint8 pixels x become (x / 255 - 0.5) / 0.5; floats must be scaled already. The resize is bilinear with aligned
    corners, as published, by one matrix product per axis. Where `input_size` divides the side, each output pixel is
    instead the mean of its block, because bilinear sampling would ignore most pixels there.

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
