"""The `Model` class: a trained model that embeds, localises and classifies."""

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from tokenizers import Tokenizer

from afloc_jax import models
from afloc_jax.errors import UsageError
from afloc_jax.files import fetched
from afloc_jax.inference import programs
from afloc_jax.inference.batching import in_threads
from afloc_jax.inference.class_prompts import ClassPhrases, PromptSet
from afloc_jax.inference.localization import Localization, check_call, localizations
from afloc_jax.inference.pairs import Pairs, compute_pairs, grid
from afloc_jax.inference.presence import evidence_of, presence_of_all
from afloc_jax.inference.prompt_reading import PromptReading, read_prompt
from afloc_jax.inference.squares import ImageInput, to_square
from afloc_jax.inference.zero_shot import class_probabilities, class_scores, contrast_probabilities
from afloc_jax.levels import ImageLevels, TextLevels
from afloc_jax.models import build
from afloc_jax.models.settings import ModelSettings
from afloc_jax.seals import Verification
from afloc_jax.weights import folder as model_folder
from afloc_jax.weights.calibration import Calibration, read_calibration
from afloc_jax.weights.config import FolderConfig
from afloc_jax.weights.hub import model_folder_of
from data_pipelines.constants import Framing, GreyRule
from data_pipelines.images import Geometry
from data_pipelines.reports import clean_prompt
from data_pipelines.tokens import tokenize

_REMEMBERED_PROMPTS = 4096  # of each model, 6 kB each


class PromptVectors(NamedTuple):
    """What a task needs of T prompts."""

    reports: Float[np.ndarray, "T D"]  # embeddings of whole prompts, for similarities and classes
    queries: Float[np.ndarray, "T D"]  # of heat maps, see `HeatmapSettings.query`


class Model:
    """Both towers with their tokenizer, compiled once per batch size.

    Batches are padded to a power of two up to `batch_size`, so that few shapes are compiled for any number of images.
    Every prompt is encoded once, and its vectors are kept.
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
        self._weights_file = weights_file
        self._verification = verification
        # (prompt level, cleaned prompt) -> a row of each array of `PromptVectors`
        self._known_prompts: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
        self.variables = jax.device_put(variables)
        self._network = build(config.architecture, dtype=jnp.float32)

    @functools.cached_property
    def weights_sha256(self) -> str:
        """The SHA-256 of the weights file, which identifies the weights behind a result; empty without a file."""
        return "" if self._weights_file is None else hashlib.sha256(self._weights_file.data).hexdigest()

    @property
    def image_size(self) -> int:
        """The side of the padded square in pixels."""
        return self.config.preprocessing.image_size

    def grey_rule(self, compatible: bool = False) -> GreyRule:
        """How image files become grey: as in training, or with `compatible` as in the published release."""
        return "cv2" if compatible else self.config.preprocessing.grey

    def untrained(self) -> "Model":
        """A model of the same architecture with the random initial parameters of a run with its seed."""
        variables = initial_variables(self.config.architecture, self.config.seed)
        return Model(self.config, variables, self.tokenizer, batch_size=self.batch_size)

    # Embeddings

    def embed_images(self, images: Sequence[ImageInput]) -> ImageLevels:
        """The three levels of B images (files, or grey arrays [H, W] of any size), as float32 NumPy arrays."""
        return self.embed_squares(self._squares(images)[0])

    def embed_texts(self, texts: Sequence[str], *, compatible: bool = False) -> TextLevels:
        """The three levels of B prompts after cleaning, as float32 NumPy arrays."""
        return self._embed_clean_texts(self.read_prompts(texts, compatible=compatible))

    def embed_squares(self, squares: UInt8[np.ndarray, "B S S"]) -> ImageLevels:
        """The three levels of padded squares [B, S, S] uint8, as float32 NumPy arrays."""
        squares = np.asarray(squares)
        if squares.ndim != 3 or squares.dtype != np.uint8:
            raise UsageError(f"images must be uint8 [B, S, S], got {squares.dtype} {list(squares.shape)}")
        levels = programs.levels_of_images(self._network, self.variables, squares, self.batch_size)
        self._verify()
        return levels

    def embed_prompts(self, prompts: Sequence[str], *, compatible: bool = False) -> Float[np.ndarray, "T D"]:
        """The embeddings of whole prompts after cleaning. They are kept, so that every prompt is encoded once."""
        return self._prompt_vectors(self.read_prompts(prompts, compatible=compatible)).reports

    def read_prompts(self, prompts: Sequence[str], *, compatible: bool = False) -> list[str]:
        """The prompts after cleaning. Raises UserError for a prompt without a word."""
        if isinstance(prompts, str):
            raise UsageError("prompts must be a list of texts, not one text")
        return [clean_prompt(prompt, compatible=compatible) for prompt in prompts]

    def examine(self, prompts: Sequence[str], *, compatible: bool = False) -> list[PromptReading]:
        """How the model reads each prompt: the text after cleaning, unknown words, and whether its end is cut off."""
        how = self.tokenizer, self.config.prompts.max_tokens, self.config.unseen_pieces
        return [read_prompt(prompt, *how, compatible=compatible) for prompt in prompts]

    def square_of(
        self, image: ImageInput, framing: Framing = "pad", compatible: bool = False
    ) -> tuple[UInt8[np.ndarray, "S S"], Geometry]:
        """The square [S, S] that the model reads of a file or grey array [H, W] uint8, and where the image lies in it.

        Raises UserError for an image that cannot be read or framed.
        """
        rule, equalize = self.grey_rule(compatible), self.config.preprocessing.equalize
        return to_square(image, self.image_size, framing, rule, equalize)

    # Tasks

    def localize(
        self, images: Sequence[ImageInput], prompts: Sequence[str], threshold: float = 0.3, compatible: bool = False
    ) -> list[list[Localization]]:
        """Localises each prompt in each image.

        Args:
            images: files (PNG, JPEG, DICOM) or grey uint8 arrays [H, W].
            prompts: phrases, such as "small left pleural effusion".
            threshold: boxes enclose the values above it on the map scaled to [-1, 1]; within (-1, 1).
            compatible: clean prompts, and read grey values of files, as the published release does.

        Returns:
            One list per image with one `Localization` per prompt.

        Raises:
            UsageError: there is no image or no prompt, or the threshold is outside (-1, 1).
            UserError: an image is unreadable, or a prompt is empty.
        """
        return list(self.localize_each(images, prompts, threshold, compatible))

    def localize_each(
        self, images: Sequence[ImageInput], prompts: Sequence[str], threshold: float = 0.3, compatible: bool = False
    ) -> Iterator[list[Localization]]:
        """`localize`, one image at a time, for maps at original size that do not all fit into memory."""
        check_call(images, prompts, threshold)
        for start in range(0, len(images), self.batch_size):
            squares, geometries = self._squares(images[start : start + self.batch_size], compatible=compatible)
            yield from self.localize_squares(squares, geometries, prompts, threshold, compatible)

    def localize_squares(
        self,
        squares: UInt8[np.ndarray, "B S S"],
        geometries: Sequence[Geometry],
        prompts: Sequence[str],
        threshold: float = 0.3,
        compatible: bool = False,
    ) -> Iterator[list[Localization]]:
        """`localize_each` for images that were framed already, see `square_of`."""
        check_call(geometries, prompts, threshold)
        read = self.read_prompts(prompts, compatible=compatible)
        readings = self.examine(prompts, compatible=compatible)
        reports, queries = self._prompt_vectors(read)
        image_of, text_of = grid(len(squares), len(read))
        found = self._pairs(squares, image_of, queries, text_of, peaks=self.calibration is not None)
        present = presence_of_all(self.calibration, found, queries, read)
        yield from localizations(found.maps, found.images, reports, geometries, readings, threshold, present)

    def heatmaps_of_squares(
        self, images: UInt8[np.ndarray, "B S S"], prompts: Sequence[str], *, compatible: bool = False
    ) -> Float[np.ndarray, "B S S"]:
        """Un-normalised heat maps of squares, for one prompt per image, as the evaluation scores them.

        Args:
            images: [B, S, S] uint8, padded squares.
            prompts: B prompts, one for each image.
            compatible: clean prompts as the published release does.

        Returns:
            [B, S, S] float32: the similarity of deep regions with the prompt, smoothed and upsampled.
        """
        if len(images) != len(prompts):
            raise UsageError(f"{len(images)} images but {len(prompts)} prompts; give one prompt per image")
        return self.heatmaps_of_pairs(images, np.arange(len(images)), prompts, compatible=compatible)

    def heatmaps_of_pairs(
        self,
        images: UInt8[np.ndarray, "B S S"],
        rows: Int[np.ndarray, " P"],
        prompts: Sequence[str],
        *,
        compatible: bool = False,
    ) -> Float[np.ndarray, "P S S"]:
        """Un-normalised heat maps of P prompts: prompt p in image `rows[p]`.

        Every image and every distinct prompt is encoded once. See `heatmaps_of_squares`.

        Returns:
            [P, S, S] float32.
        """
        read = self.read_prompts(prompts, compatible=compatible)
        distinct = sorted(set(read))
        position = {text: i for i, text in enumerate(distinct)}
        queries = self._prompt_vectors(distinct).queries
        return self._pairs(images, np.asarray(rows), queries, np.array([position[text] for text in read])).maps

    def classify(
        self,
        images: Sequence[ImageInput],
        classes: Sequence[str],
        prompts: Mapping[str, ClassPhrases] | PromptSet | None = None,
        compatible: bool = False,
        *,
        framing: Framing = "pad",
        aggregation: str = "mean",
    ) -> Float[np.ndarray, "I C"]:
        """The zero-shot probability of each class in each image, with the rules of the published release.

        The score of a set of prompts aggregates their dot products with the global image embedding. Each class has one
        score of its positive prompts and one of its negative prompts ("no <class>."). The probability is the softmax of
        the two. With a multi-class prompt set it is the softmax of the positive scores over the classes.

        Args:
            images: files or grey uint8 arrays [H, W].
            classes: names of classes, such as "pneumonia".
            prompts: a prompt set, or its classes (see `afloc_jax.inference.class_prompts`).
            compatible: clean prompts as the published release does. (Its classification reads files with Pillow.)
            framing: "pad" fits the image into the square, padded by zeros; "crop" scales the short side to the
                square and cuts out the middle.
            aggregation: "mean" or "max" of the scores of the prompts of a class, see `zero_shot`.

        Returns:
            [images, classes] float32.
        """
        check_call(images, classes, 0.0)
        squares = self._squares(images, framing)[0]
        return self.classify_squares(squares, classes, prompts, compatible, framing, aggregation)[0]

    def classify_squares(
        self,
        squares: UInt8[np.ndarray, "I S S"],
        classes: Sequence[str],
        prompts: Mapping[str, ClassPhrases] | PromptSet | None = None,
        compatible: bool = False,
        framing: Framing = "pad",
        aggregation: str = "mean",
    ) -> tuple[Float[np.ndarray, "I C"], list[list[float | None]]]:
        """`classify` of framed images, and the calibrated probability that each class is present, asked by its name.

        The latter is None for a model that is not calibrated, for cropped images, and for "No finding".
        """
        prompt_set = prompts if isinstance(prompts, PromptSet) else PromptSet(classes=prompts or {})
        how = classes, prompt_set, compatible, aggregation
        if self.calibration is None or framing != "pad":
            probabilities = self.classify_embedded(np.asarray(self.embed_squares(squares).whole), *how)
            return probabilities, [[None] * len(classes) for _ in squares]
        names = self.read_prompts([name.replace("_", " ") for name in classes])
        queries, (image_of, text_of) = self._prompt_vectors(names).queries, grid(len(squares), len(names))
        found = self._pairs(squares, image_of, queries, text_of, maps=False, peaks=True)
        present = presence_of_all(self.calibration, found, queries, names)
        return self.classify_embedded(found.images, *how), present

    def classify_embedded(
        self,
        embeddings: Float[np.ndarray, "B D"],
        classes: Sequence[str],
        prompt_set: PromptSet,
        compatible: bool = False,
        aggregation: str = "mean",
    ) -> Float[np.ndarray, "B C"]:
        """`classify` for global image embeddings [B, D]. Returns [B, classes] float32."""
        sides = [side for name in classes for side in prompt_set.prompts(name)]
        read = self.read_prompts([text for side in sides for text in side], compatible=compatible)
        parts = np.split(self._prompt_vectors(read).reports, np.cumsum([len(side) for side in sides])[:-1])
        positive, negative = (class_scores(embeddings, parts[side::2], aggregation) for side in (0, 1))
        found = class_probabilities(positive) if prompt_set.multiclass else contrast_probabilities(positive, negative)
        return found.astype(np.float32)

    def evidence(
        self, squares: UInt8[np.ndarray, "B S S"], rows: Int[np.ndarray, " P"], prompts: Sequence[str]
    ) -> Float[np.ndarray, "P E"]:
        """The evidence of presence of P prompts, prompt p in image `rows[p]`, see `afloc_jax.inference.presence`."""
        read = self.read_prompts(prompts)
        texts, text_of = np.unique(read, return_inverse=True)
        queries = self._prompt_vectors(texts.tolist()).queries
        found = self._pairs(squares, rows, queries, text_of, maps=False, peaks=True)
        return evidence_of(found.peaks, found.images[rows], queries[text_of], read)

    # Parts

    def _verify(self) -> None:
        """Raises UserError if weights or tokenizer are not those that were sealed. Called before results are returned.

        Hashing takes longer than loading, and the first call compiles meanwhile.
        """
        if self._verification:
            self._verification.finish()

    def _squares(
        self, images: Sequence[ImageInput], framing: Framing = "pad", compatible: bool = False
    ) -> tuple[UInt8[np.ndarray, "B S S"], list[Geometry]]:
        square = functools.partial(self.square_of, framing=framing, compatible=compatible)
        pairs = in_threads(square, images)
        return np.stack([square for square, _ in pairs]), [geometry for _, geometry in pairs]

    def _prompt_vectors(self, texts: Sequence[str]) -> PromptVectors:
        """The vectors of cleaned prompts. Only those that are not known yet are encoded."""
        level = self.heatmap_settings.prompt_level
        known = {text: self._known_prompts[level, text] for text in texts if (level, text) in self._known_prompts}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            levels = self._embed_clean_texts(new)
            known.update(zip(new, zip(np.asarray(levels.report), self._queries(levels), strict=True), strict=True))
            if len(self._known_prompts) + len(new) > _REMEMBERED_PROMPTS:
                self._known_prompts = {}
            self._known_prompts.update(((level, text), known[text]) for text in new)
        reports, queries = zip(*(known[text] for text in texts), strict=True)
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
    ) -> Pairs:
        how, side = self.heatmap_settings if maps else None, self.config.architecture.image.input_size
        parts = self._network, self.variables, squares, image_of, queries, text_of
        found = compute_pairs(*parts, how, side, self.batch_size, peaks)
        self._verify()
        found.check()
        return found


def load(folder: str | os.PathLike[str], *, batch_size: int = 32) -> Model:
    """Loads a model folder. Its seal is compared meanwhile, and with the first result at the latest.

    Args:
        folder: the folder, or the name of a model on the Hugging Face hub, "owner/model".
        batch_size: images or prompts that are encoded at once.

    Raises:
        ModelFolderError: the folder is unusable, see `afloc_jax.weights.folder.load_model`.
        UserError: there is no such folder and no such model on the hub.
    """
    folder = model_folder_of(folder)
    (config, variables, tokenizer), verification = model_folder.begin_loading(folder)
    # A memory map stays that of the loaded file when another one replaces it, and is read only if the hash is needed.
    weights_file = np.memmap(fetched(folder) / model_folder.WEIGHTS, np.uint8, mode="r")
    parts, calibration = (config, variables, tokenizer, verification), read_calibration(fetched(folder))
    return Model(*parts, batch_size=batch_size, weights_file=weights_file, calibration=calibration)


def initial_variables(architecture: ModelSettings, seed: int) -> model_folder.Variables:
    """Random variables of an architecture, the same for the same seed."""
    # jit removes the forward pass, which Flax traces for shapes only; the random values remain.
    return jax.jit(models.initial_variables, static_argnums=0)(build(architecture), jax.random.key(seed))
