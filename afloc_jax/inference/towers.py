"""Both towers of a trained model with their tokenizer: images and prompts become embeddings."""

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from tokenizers import Tokenizer

from afloc_jax import models
from afloc_jax.errors import UsageError
from afloc_jax.heatmaps import sharpened
from afloc_jax.inference import programs
from afloc_jax.inference import windows as sliding
from afloc_jax.inference.batching import in_threads
from afloc_jax.inference.calls import listed
from afloc_jax.inference.figures import MOST_SIDE, smaller
from afloc_jax.inference.pairs import Deep, Pairs, compute_pairs
from afloc_jax.inference.pixels import ImageInput, pixels_of, to_square
from afloc_jax.inference.prompt_reading import PromptReading, read_prompt
from afloc_jax.inference.remembered import Remembered
from afloc_jax.levels import ImageLevels, TextLevels
from afloc_jax.models import build
from afloc_jax.models.settings import ModelSettings
from afloc_jax.seals import Verification
from afloc_jax.weights import folder as model_folder
from afloc_jax.weights.calibration import Calibration
from afloc_jax.weights.config import FolderConfig, Preprocessing
from data_pipelines.constants import Framing, GreyRule
from data_pipelines.images import Geometry
from data_pipelines.reports import clean_prompt
from data_pipelines.tokens import tokenize

_REMEMBERED_PROMPTS = 4096  # of each model, 6 kB each
_REMEMBERED_IMAGES = 32 << 20  # bytes of deep maps of each model, 1 MB an image in the published architecture


class PromptVectors(NamedTuple):
    """What a task needs of T prompts."""

    reports: Float[np.ndarray, "T D"]  # embeddings of whole prompts, for similarities and classes
    queries: Float[np.ndarray, "T D"]  # of heat maps, see `HeatmapSettings.query`


class Framed(NamedTuple):
    """An image as a model reads it."""

    square: UInt8[np.ndarray, "S S"]
    geometry: Geometry  # where the image lies in the square
    picture: UInt8[np.ndarray, "h w"] | None  # to draw on, with sides of at most `MOST_SIDE`; None if not asked for


class Towers:
    """Both towers with their tokenizer, compiled once per batch size.

    Batches are padded to a power of two up to `batch_size`, so that few shapes are compiled for any number of images.
    The vectors of prompts are kept, and the deep maps of images that were asked about last; several threads may use a
    model at once.
    """

    def __init__(
        self,
        config: FolderConfig,
        variables: model_folder.Variables,
        tokenizer: Tokenizer,
        verification: Verification | None = None,
        *,
        batch_size: int = 32,
        weights_file: UInt8[np.ndarray, " bytes"] | None = None,
        calibration: Calibration | None = None,
    ):
        """Puts the variables on the default device. Nothing is compiled yet.

        Args:
            config: the config of a model folder.
            variables: Flax variables for `config.architecture`.
            tokenizer: from `data_pipelines.tokens.load_tokenizer`.
            batch_size: the largest number of images or prompts computed at once.
            weights_file: the bytes of the file that the variables came from, if any; for `weights_sha256`.
            verification: the comparison of the files with their seal, which is finished before the first result.
            calibration: of presence; None for a model that is not calibrated.
        """
        self.config = config
        self.calibration = calibration
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.heatmap_settings = config.localization
        self.prune = False  # whether prompts of maps are without the words that do not localise
        self.windows = 1  # per side, whose maps are joined
        self._weights_file = weights_file
        self._verification = verification
        # (prompt level, cleaned prompt) -> a row of each array of `PromptVectors`
        self._prompts = Remembered[tuple[str, str], tuple[np.ndarray, np.ndarray]](_REMEMBERED_PROMPTS)
        self._images = Remembered[bytes, Deep](_REMEMBERED_IMAGES, size=lambda deep: deep.nbytes)
        self.variables = jax.device_put(variables)
        self._network = build(config.architecture, dtype=jnp.float32)

    @functools.cached_property
    def weights_sha256(self) -> str:
        """The SHA-256 of the weights file, which identifies the weights behind a result; empty without a file.

        >>> len(model.weights_sha256)
        64
        """
        return "" if self._weights_file is None else hashlib.sha256(self._weights_file.data).hexdigest()

    @property
    def image_size(self) -> int:
        """The side of the padded square in pixels.

        >>> model.image_size
        224
        """
        return self.config.preprocessing.image_size

    @property
    def _read_as(self) -> Preprocessing:
        """How images become squares, which are larger than the model's where windows are cut from them."""
        how = self.config.preprocessing
        side, short = (sliding.frame_side(length, self.windows) for length in (how.image_size, how.short_side))
        return how if self.windows == 1 else dataclasses.replace(how, image_size=side, short_side=short)

    def grey_rule(self, compatible: bool = False) -> GreyRule:
        """How image files become grey: as in training, or with `compatible` as in the published release.

        >>> model.grey_rule(), model.grey_rule(compatible=True)
        ('luma', 'cv2')
        """
        return "cv2" if compatible else self.config.preprocessing.grey

    def untrained(self) -> Self:
        """A model of the same architecture with the random initial parameters of a run with its seed.

        >>> model.untrained().weights_sha256
        ''
        """
        variables = initial_variables(self.config.architecture, self.config.seed)
        other = type(self)(self.config, variables, self.tokenizer, batch_size=self.batch_size)
        return other.with_maps(sharpen=self.heatmap_settings.sharpen, prune=self.prune, windows=self.windows)

    def with_maps(self, *, sharpen: bool | None = None, prune: bool | None = None, windows: int | None = None) -> Self:
        """This model with other heat maps. It shares the weights and all that is kept.

        Args:
            sharpen: whether maps are sharpened, see `heatmaps.sharpened`; None for what this model does.
            prune: whether prompts are asked without the words that do not localise, see `inference.pruning`; likewise.
            windows: windows per side whose maps are joined, see `inference.windows`; 1 for the whole image, likewise.

        Raises UsageError for another number of windows than 1 to 9.

        >>> sharp = model.with_maps(sharpen=True, prune=True)
        >>> sharp.localize(["chest.png"], ["small left effusion"])[0][0].prompt
        'left effusion'
        """
        other, before = copy.copy(self), self.heatmap_settings
        other.heatmap_settings = dataclasses.replace(before, sharpen=before.sharpen if sharpen is None else sharpen)
        other.prune = self.prune if prune is None else prune
        other.windows = self.windows if windows is None else windows
        sliding.check(other.windows)
        return other

    def forget_images(self) -> None:
        """Lets go of what is kept of the images that were asked about last.

        >>> model.forget_images()
        """
        self._images.clear()

    # Images

    def embed_images(self, images: Iterable[ImageInput]) -> ImageLevels:
        """The three levels of B images, as float32 NumPy arrays: see `ImageLevels`.

        Args:
            images: files, PIL images or arrays, see `afloc_jax.inference.pixels.pixels_of`.

        Raises:
            UsageError: there is no image, or one is an array of another form.
            UserError: an image cannot be read.

        >>> model.embed_images(["chest.png", chest]).whole.shape  # B, D
        (2, 32)
        """
        return self.embed_squares(np.stack([framed.square for framed in self._framed(listed(images, "images"))]))

    def embed_squares(self, squares: UInt8[np.ndarray, "B S S"]) -> ImageLevels:
        """The three levels of padded squares [B, S, S] uint8, as float32 NumPy arrays.

        >>> square, geometry = model.square_of("chest.png")
        >>> model.embed_squares(square[None]).deep.shape  # B, h, w, D
        (1, 8, 8, 32)
        """
        squares = np.asarray(squares)
        if squares.ndim != 3 or squares.dtype != np.uint8:
            raise UsageError(f"squares must be uint8 [B, S, S], got {squares.dtype} {list(squares.shape)}")
        levels = programs.levels_of_images(self._network, self.variables, squares, self.batch_size)
        self._verify()
        return levels

    def backbone_features(
        self, squares: UInt8[np.ndarray, "B S S"], names: Sequence[str] = ("whole",)
    ) -> dict[str, np.ndarray]:
        """What the backbone gives for padded squares [B, S, S] uint8, before it is projected to the shared width.

        Args:
            squares: padded squares, see `square_of`.
            names: some of "shallow" [B, H1, W1, C1], "deep" [B, H2, W2, C2] and "whole" [B, C3].

        >>> square, geometry = model.square_of("chest.png")
        >>> model.backbone_features(square[None])["whole"].shape  # B, C3
        (1, 16)
        """
        found = programs.features_of_images(self._network, self.variables, squares, tuple(names), self.batch_size)
        self._verify()
        return found

    def square_of(
        self, image: ImageInput, framing: Framing = "pad", compatible: bool = False
    ) -> tuple[UInt8[np.ndarray, "S S"], Geometry]:
        """The square [S, S] uint8 that the model reads of an image, and where the image lies in it.

        Args:
            image: a file, a PIL image or an array, see `afloc_jax.inference.pixels.pixels_of`.
            framing: "pad" fits the image into the square, padded by zeros (an imported encoder may crop or stretch it
                instead, see docs/weights.md); "crop" scales the short side to the square and cuts out the middle.
            compatible: read grey values as the published release does.

        Raises:
            UsageError: it is no image, or there is no such framing.
            UserError: the image cannot be read.

        >>> square, geometry = model.square_of("chest.png")
        >>> square.shape, geometry.height, geometry.width
        ((224, 224), 97, 131)
        """
        rule, how = self.grey_rule(compatible), self._read_as
        return to_square(image, how.image_size, framing, rule, how.equalize, how.frame)

    # Prompts

    def embed_texts(self, texts: Sequence[str], *, compatible: bool = False) -> TextLevels:
        """The three levels of B prompts after cleaning, as float32 NumPy arrays: see `TextLevels`.

        Raises UserError for a prompt without a word.

        >>> model.embed_texts(["Small left effusion.", "nodule"]).report.shape  # B, D
        (2, 32)
        """
        return self._embed_clean_texts(self.read_prompts(texts, compatible=compatible))

    def embed_prompts(self, prompts: Sequence[str], *, compatible: bool = False) -> Float[np.ndarray, "T D"]:
        """The embeddings of whole prompts after cleaning. They are kept, so that every prompt is encoded once.

        Raises UserError for a prompt without a word.

        >>> model.embed_prompts(["small left effusion", "nodule"]).shape
        (2, 32)
        """
        return self._prompt_vectors(self.read_prompts(prompts, compatible=compatible)).reports

    def read_prompts(self, prompts: Sequence[str], *, compatible: bool = False) -> list[str]:
        """The prompts after cleaning. Raises UserError for a prompt without a word.

        >>> model.read_prompts(["Small LEFT effusion."])
        ['small left effusion']
        """
        return [clean_prompt(prompt, compatible=compatible) for prompt in listed(prompts, "prompts")]

    def examine(self, prompts: Sequence[str], *, compatible: bool = False, prune: bool = False) -> list[PromptReading]:
        """How the model reads each prompt: the text after cleaning, unknown words, and whether its end is cut off.

        With `prune` it is without the words that do not localise, see `inference.pruning`.

        >>> [reading.text for reading in model.examine(["Small LEFT effusion.", "???"])]
        ['small left effusion', '']
        """
        how = self.tokenizer, self.config.prompts.max_tokens, self.config.unseen_pieces
        return [read_prompt(prompt, *how, compatible=compatible, prune=prune) for prompt in prompts]

    # Parts

    def _verify(self) -> None:
        """Raises UserError if weights or tokenizer are not those that were sealed. Called before results are returned.

        Hashing takes longer than loading, and the first call compiles meanwhile.
        """
        if self._verification:
            self._verification.finish()

    def _framed(
        self,
        images: Sequence[ImageInput],
        framing: Framing = "pad",
        compatible: bool = False,
        first: int = 0,
        pictures: bool = False,
    ) -> list[Framed]:
        """The images as the model reads them. Errors call the first one images[first]."""
        rule, how = self.grey_rule(compatible), self._read_as

        def framed(numbered: tuple[int, ImageInput]) -> Framed:
            pixels = pixels_of(numbered[1], rule, f"images[{numbered[0]}]")
            square, geometry = to_square(pixels, how.image_size, framing, rule, how.equalize, how.frame)
            picture = smaller(pixels, MOST_SIDE) if pictures else None
            return Framed(square, geometry, picture.copy() if picture is pixels else picture)  # not the caller's memory

        return in_threads(framed, list(enumerate(images, first)))

    def _prompt_vectors(self, texts: Sequence[str]) -> PromptVectors:
        """The vectors of cleaned prompts. Only those that are not known yet are encoded."""
        level = self.heatmap_settings.prompt_level

        def encoded(new: list[tuple[str, str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            levels = self._embed_clean_texts([text for _, text in new])
            return zip(np.asarray(levels.report), self._queries(levels), strict=True)

        reports, queries = zip(*self._prompts.all_of([(level, text) for text in texts], encoded), strict=True)
        return PromptVectors(np.stack(reports), np.stack(queries))

    def _embed_clean_texts(self, texts: Sequence[str]) -> TextLevels:
        tokens = tokenize(self.tokenizer, list(texts), self.config.prompts.max_tokens)
        levels = programs.levels_of_texts(self._network, self.variables, tokens, self.batch_size)
        self._verify()
        return levels

    def _queries(self, texts: TextLevels) -> Float[np.ndarray, "B D"]:
        return np.asarray(self.heatmap_settings.query(texts))

    def _pairs(
        self,
        squares: UInt8[np.ndarray, "B S S"],
        image_of: Int[np.ndarray, " P"],
        queries: Float[np.ndarray, "T D"],
        text_of: Int[np.ndarray, " P"],
        maps: bool = True,
        peaks: bool = False,
        keep: bool = False,
    ) -> Pairs:
        """See `compute_pairs`. With `keep` the images are likely to be asked about again."""
        how, side = self.heatmap_settings if maps else None, self.config.architecture.image.input_size
        if how and self.windows > 1:
            found = self._windowed(squares, image_of, queries, text_of, peaks, keep)
        else:
            parts = self._network, self.variables, squares, image_of, queries, text_of
            found = compute_pairs(*parts, how, side, self.batch_size, peaks, self._images if keep else None)
        self._verify()
        found.check()
        return found

    def _windowed(
        self,
        squares: UInt8[np.ndarray, "B F F"],
        image_of: Int[np.ndarray, " P"],
        queries: Float[np.ndarray, "T D"],
        text_of: Int[np.ndarray, " P"],
        peaks: bool,
        keep: bool,
    ) -> Pairs:
        """`_pairs` with the maps of windows. Peaks and embeddings are those of the whole image, as calibrated."""
        small = np.stack([sliding.scaled(square, self.image_size) for square in squares])
        whole = self._pairs(small, image_of, queries, text_of, maps=False, peaks=peaks, keep=keep)
        plain = dataclasses.replace(self.heatmap_settings, sharpen=False)
        side = self.config.architecture.image.input_size

        def maps_of(parts: np.ndarray, part_of: np.ndarray, texts: np.ndarray) -> np.ndarray:
            pairs = self._network, self.variables, parts, part_of, queries, texts
            return compute_pairs(*pairs, plain, side, self.batch_size, peaks=False).maps

        maps = sliding.windowed_maps(maps_of, squares, image_of, text_of, self.image_size, self.windows)
        return whole._replace(maps=np.asarray(sharpened(maps)) if self.heatmap_settings.sharpen else maps)


def initial_variables(architecture: ModelSettings, seed: int) -> model_folder.Variables:
    """Random variables of an architecture, the same for the same seed."""
    # jit removes the forward pass, which Flax traces for shapes only; the random values remain.
    return jax.jit(models.initial_variables, static_argnums=0)(build(architecture), jax.random.key(seed))
