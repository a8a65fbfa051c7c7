"""The `Model` class: a trained model that embeds, localises and classifies."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from afloc_jax.errors import UsageError
from afloc_jax.files import fetched
from afloc_jax.inference.calls import check_threshold, listed
from afloc_jax.inference.class_prompts import PromptSet
from afloc_jax.inference.classification import Probabilities, Prompts, prompt_set_of
from afloc_jax.inference.localization import Localization, localizations
from afloc_jax.inference.notebook import Gallery
from afloc_jax.inference.pairs import grid
from afloc_jax.inference.pixels import ImageInput
from afloc_jax.inference.presence import evidence_of, presence, presence_of_all
from afloc_jax.inference.pruning import pruned
from afloc_jax.inference.towers import Towers
from afloc_jax.inference.zero_shot import class_probabilities, class_scores, contrast_probabilities
from afloc_jax.weights import folder as model_folder
from afloc_jax.weights.calibration import read_calibration
from afloc_jax.weights.hub import model_folder_of
from data_pipelines.constants import Framing
from data_pipelines.images import Geometry
from data_pipelines.what_images import warning_on_drawings


class Model(Towers):
    """A trained model in use. `afloc_jax.load` makes one from a model folder.

    Programs are compiled at the first call, once per batch size. The vectors of prompts are kept, and the deep maps of
    the images that were asked about last, so that a further question about them is fast. Several threads may use a
    model at once.

    >>> import afloc_jax
    >>> model = afloc_jax.load(folder)
    >>> maps = model.localize(["chest.png"], ["small left effusion", "nodule"])
    >>> [found.prompt for found in maps[0]]
    ['small left effusion', 'nodule']
    """

    def __repr__(self) -> str:
        image, text = self.config.architecture.image, self.config.architecture.text.structure
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))
        bert = f"{text.num_hidden_layers} layers of {text.hidden_size}, {self.config.prompts.max_tokens} tokens"
        fitted = self.calibration
        rows = {
            "image tower": f"{image.backbone}, {image.input_size} pixels (images are framed to {self.image_size})",
            "text tower": f"BERT, {bert}",
            "trained on": ", ".join(self.config.trained_on) or "not known",
            "licence": _short(str(self.config.card.get("licence", "not stated"))),
            "presence": f"calibrated on {fitted.dataset or 'given labels'}" if fitted else "not calibrated",
        }
        head = f"Model {self.config.name!r}, {parameters:,} parameters"
        return "\n".join([head, *(f"  {name:12} {value}" for name, value in rows.items())])

    # Localisation

    def localize(
        self,
        images: Iterable[ImageInput],
        prompts: Iterable[str],
        threshold: float = 0.3,
        compatible: bool = False,
        *,
        sharpen: bool | None = None,
        prune: bool | None = None,
        windows: int | None = None,
    ) -> list[list[Localization]]:
        """Localises each prompt in each image. A notebook shows the result as pictures.

        Args:
            images: files (PNG, JPEG, TIFF, BMP, DICOM), PIL images, or arrays: uint8, or floats with black at 0 and
                white at 1, grey [H, W] or colour [H, W, 3] (`afloc_jax.inference.pixels.pixels_of` has all forms).
            prompts: phrases, such as "small left pleural effusion".
            threshold: boxes enclose the values above it on the map scaled to [-1, 1]; within (-1, 1).
            compatible: clean prompts, and read grey values of files, as the published release does.
            sharpen, prune, windows: sharpen maps, leave out words of prompts that do not localise, join the maps of
                windows; see `with_maps`.

        Returns:
            One list per image with one `Localization` per prompt.

        Raises:
            UsageError: there is no image or no prompt, the threshold is outside (-1, 1), or an array is of another
                form; the message says which.
            UserError: an image is unreadable, or a prompt is empty.

        >>> maps = model.localize(["chest.png", chest], ["small left effusion"], threshold=0.4)
        >>> maps[0][0].heatmap.shape, maps[1][0].boxes.dtype
        ((97, 131), dtype('int64'))
        """
        model = self.with_maps(sharpen=sharpen, prune=prune, windows=windows)
        return Gallery(model.localize_each(listed(images, "images"), prompts, threshold, compatible))

    def localize_each(
        self, images: Iterable[ImageInput], prompts: Iterable[str], threshold: float = 0.3, compatible: bool = False
    ) -> Iterator[list[Localization]]:
        """`localize`, one image at a time, for maps at original size that do not all fit into memory.

        `images` may be an iterator, such as `Path("films").glob("*.png")`. A batch of them is read at a time.

        >>> for row in model.localize_each(["chest.png", chest], ["nodule"]):
        ...     print(row[0].heatmap.shape)
        (97, 131)
        (97, 131)
        """
        asked = listed(prompts, "prompts")
        check_threshold(threshold)
        waiting = iter(images if isinstance(images, Iterator) else listed(images, "images"))
        done = 0
        while batch := list(itertools.islice(waiting, self.batch_size)):
            framed = self._framed(batch, compatible=compatible, first=done, pictures=True)
            squares, geometries = np.stack([one.square for one in framed]), [one.geometry for one in framed]
            pictures = [one.picture for one in framed]
            yield from self._localized(squares, geometries, asked, threshold, compatible, pictures)
            done += len(batch)
        listed(range(done), "images")

    def localize_squares(
        self,
        squares: UInt8[np.ndarray, "B S S"],
        geometries: Sequence[Geometry],
        prompts: Iterable[str],
        threshold: float = 0.3,
        compatible: bool = False,
    ) -> Iterator[list[Localization]]:
        """`localize_each` for images that were framed already, see `square_of`. The results have no picture.

        >>> square, geometry = model.square_of("chest.png")
        >>> next(model.localize_squares(square[None], [geometry], ["nodule"]))[0].prompt
        'nodule'
        """
        asked = listed(prompts, "prompts")
        check_threshold(threshold)
        yield from self._localized(squares, listed(geometries, "geometries"), asked, threshold, compatible)

    def _localized(
        self,
        squares: UInt8[np.ndarray, "B S S"],
        geometries: Sequence[Geometry],
        prompts: Sequence[str],
        threshold: float,
        compatible: bool,
        pictures: Sequence[np.ndarray | None] = (),
    ) -> Iterator[Gallery[Localization]]:
        self.read_prompts(prompts, compatible=compatible)  # an empty prompt is an error here
        readings = self.examine(prompts, compatible=compatible, prune=self.prune)
        read = [reading.text for reading in readings]
        reports, queries = self._prompt_vectors(read)
        image_of, text_of = grid(len(squares), len(read))
        calibrated = self.calibration is not None
        found = self._pairs(squares, image_of, queries, text_of, peaks=calibrated, keep=bool(pictures))
        present = presence_of_all(self.calibration, found, queries, read)
        warnings = [self._warning(geometry) for geometry in geometries]
        of_images = found.images, reports, geometries, readings, threshold, present, warnings
        yield from localizations(found.maps, *of_images, pictures or [None] * len(squares))

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

        >>> square, geometry = model.square_of("chest.png")
        >>> model.heatmaps_of_squares(square[None], ["nodule"]).shape
        (1, 224, 224)
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

        >>> square, geometry = model.square_of("chest.png")
        >>> model.heatmaps_of_pairs(square[None], np.array([0, 0]), ["nodule", "small effusion"]).shape
        (2, 224, 224)
        """
        read = self._asked(prompts, compatible)
        distinct = sorted(set(read))
        position = {text: i for i, text in enumerate(distinct)}
        queries = self._prompt_vectors(distinct).queries
        return self._pairs(images, np.asarray(rows), queries, np.array([position[text] for text in read])).maps

    def maps_and_presence(
        self, images: UInt8[np.ndarray, "B S S"], rows: Int[np.ndarray, " P"], prompts: Sequence[str]
    ) -> tuple[Float[np.ndarray, "P S S"], list[float | None]]:
        """`heatmaps_of_pairs`, and the calibrated probability that each prompt is present, as `localize` gives it.

        The latter is None for all prompts of a model that is not calibrated.

        >>> square, geometry = model.square_of("chest.png")
        >>> maps, present = model.maps_and_presence(square[None], np.array([0, 0]), ["nodule", "edema"])
        >>> maps.shape, present
        ((2, 224, 224), [None, None])
        """
        read = self._asked(prompts)
        texts, text_of = np.unique(read, return_inverse=True)
        queries = self._prompt_vectors(texts.tolist()).queries
        found = self._pairs(images, np.asarray(rows), queries, text_of, peaks=self.calibration is not None)
        if self.calibration is None:
            return found.maps, [None] * len(read)
        evidence = evidence_of(found.peaks, found.images[rows], queries[text_of], read)
        return found.maps, presence(self.calibration, evidence, read)

    def _asked(self, prompts: Sequence[str], compatible: bool = False) -> list[str]:
        """The prompts of maps: cleaned, and pruned if this model prunes."""
        cleaned = self.read_prompts(prompts, compatible=compatible)
        return [pruned(text)[0] for text in cleaned] if self.prune else cleaned

    # Classification

    def classify(
        self,
        images: Iterable[ImageInput],
        classes: Iterable[str],
        prompts: Prompts = None,
        compatible: bool = False,
        *,
        framing: Framing = "pad",
        aggregation: str = "mean",
    ) -> Probabilities:
        """The zero-shot probability of each class in each image, with the rules of the published release.

        The score of a set of prompts aggregates their dot products with the global image embedding. Each class has one
        score of its positive prompts and one of its negative prompts ("no <class>."). The probability is the softmax of
        the two. With a multi-class prompt set it is the softmax of the positive scores over the classes.

        Args:
            images: files, PIL images or arrays, as for `localize`.
            classes: names of classes, such as "pneumonia".
            prompts: a prompt set, the name or the file of one, or its classes (see
                `afloc_jax.inference.class_prompts`).
            compatible: clean prompts as the published release does. (Its classification reads files with Pillow.)
            framing: "pad" fits the image into the square, padded by zeros; "crop" scales the short side to the
                square and cuts out the middle.
            aggregation: "mean" or "max" of the scores of the prompts of a class, see `zero_shot`.

        Returns:
            [images, classes] float32, an array with `classes`, `warnings`, and in `present` the calibrated probability
            that each class is present.

        Raises:
            UsageError: there is no image or no class, an image is an array of another form, or the prompt set, the
                framing or the aggregation is unusable.
            UserError: an image is unreadable.

        >>> found = model.classify(["chest.png", chest], ["edema", "nodule"], prompts="chest")
        >>> found.shape, found.classes
        ((2, 2), ('edema', 'nodule'))
        """
        names, prompt_set = listed(classes, "classes"), prompt_set_of(prompts)
        framed = self._framed(listed(images, "images"), framing)
        squares = np.stack([one.square for one in framed])
        found = self._classified(squares, names, prompt_set, compatible, framing, aggregation, keep=True)
        warnings = [self._warning(one.geometry) for one in framed]
        warned = [f"Image {i}: {warning}." for i, warning in enumerate(warnings) if warning]
        phrases = [phrase for name in names for side in prompt_set.prompts(name) for phrase in side]
        unknown = [word for one in self.examine(phrases, compatible=compatible) for word in one.unknown_words]
        said = [f"The model does not know: {', '.join(dict.fromkeys(unknown))}."] if unknown else []
        return Probabilities.of(found[0], names, found[1], [*said, *warned[:1]])

    def classify_squares(
        self,
        squares: UInt8[np.ndarray, "I S S"],
        classes: Sequence[str],
        prompts: Prompts = None,
        compatible: bool = False,
        framing: Framing = "pad",
        aggregation: str = "mean",
    ) -> tuple[Float[np.ndarray, "I C"], list[list[float | None]]]:
        """`classify` of framed images, and the calibrated probability that each class is present, asked by its name.

        The latter is None for a model that is not calibrated, for cropped images, and for "No finding".

        >>> square, geometry = model.square_of("chest.png")
        >>> probabilities, present = model.classify_squares(square[None], ["edema"])
        >>> probabilities.shape, present
        ((1, 1), [[None]])
        """
        return self._classified(squares, classes, prompt_set_of(prompts), compatible, framing, aggregation)

    def classify_embedded(
        self,
        embeddings: Float[np.ndarray, "B D"],
        classes: Sequence[str],
        prompt_set: PromptSet,
        compatible: bool = False,
        aggregation: str = "mean",
    ) -> Float[np.ndarray, "B C"]:
        """`classify` for global image embeddings [B, D]. Returns [B, classes] float32.

        >>> whole = model.embed_images(["chest.png"]).whole
        >>> model.classify_embedded(whole, ["edema", "nodule"], PromptSet()).shape
        (1, 2)
        """
        sides = [side for name in classes for side in prompt_set.prompts(name)]
        read = self.read_prompts([text for side in sides for text in side], compatible=compatible)
        parts = np.split(self._prompt_vectors(read).reports, np.cumsum([len(side) for side in sides])[:-1])
        positive, negative = (class_scores(embeddings, parts[side::2], aggregation) for side in (0, 1))
        found = class_probabilities(positive) if prompt_set.multiclass else contrast_probabilities(positive, negative)
        return found.astype(np.float32)

    def _classified(
        self,
        squares: UInt8[np.ndarray, "I S S"],
        classes: Sequence[str],
        prompt_set: PromptSet,
        compatible: bool,
        framing: Framing,
        aggregation: str,
        keep: bool = False,
    ) -> tuple[Float[np.ndarray, "I C"], list[list[float | None]]]:
        calibrated = self.calibration is not None and framing == "pad"
        names = self.read_prompts([name.replace("_", " ") for name in classes]) if calibrated else []
        queries = self._prompt_vectors(names).queries if calibrated else np.zeros((0, 0), np.float32)
        image_of, text_of = grid(len(squares), len(names)) if calibrated else (np.zeros(0, int), np.zeros(0, int))
        found = self._pairs(squares, image_of, queries, text_of, maps=False, peaks=calibrated, keep=keep)
        probabilities = self.classify_embedded(found.images, classes, prompt_set, compatible, aggregation)
        if not calibrated:
            return probabilities, [[None] * len(classes) for _ in squares]
        return probabilities, presence_of_all(self.calibration, found, queries, names)

    def evidence(
        self, squares: UInt8[np.ndarray, "B S S"], rows: Int[np.ndarray, " P"], prompts: Sequence[str]
    ) -> Float[np.ndarray, "P E"]:
        """The evidence of presence of P prompts, prompt p in image `rows[p]`, see `afloc_jax.inference.presence`.

        >>> square, geometry = model.square_of("chest.png")
        >>> model.evidence(square[None], np.array([0, 0]), ["nodule", "edema"]).shape  # peak, whole, words
        (2, 3)
        """
        read = self.read_prompts(prompts)
        texts, text_of = np.unique(read, return_inverse=True)
        queries = self._prompt_vectors(texts.tolist()).queries
        found = self._pairs(squares, rows, queries, text_of, maps=False, peaks=True)
        return evidence_of(found.peaks, found.images[rows], queries[text_of], read)

    def _warning(self, geometry: Geometry) -> str:
        return warning_on_drawings(self.config.trained_on, geometry.height, geometry.width)


def load(folder: str | os.PathLike[str], *, batch_size: int = 32) -> Model:
    """Loads a model folder. Its seal is compared meanwhile, and with the first result at the latest.

    Args:
        folder: the folder, or the name of a model on the Hugging Face hub, "owner/model".
        batch_size: images or prompts that are encoded at once.

    Raises:
        ModelFolderError: the folder is unusable, see `afloc_jax.weights.folder.load_model`.
        UserError: there is no such folder and no such model on the hub.

    >>> import afloc_jax
    >>> model = afloc_jax.load(folder)  # such as "runs/demo/model"
    >>> model.image_size
    224
    """
    folder = model_folder_of(folder)
    (config, variables, tokenizer), verification = model_folder.begin_loading(folder)
    # A memory map stays that of the loaded file when another one replaces it, and is read only if the hash is needed.
    weights_file = np.memmap(fetched(folder) / model_folder.WEIGHTS, np.uint8, mode="r")
    parts, calibration = (config, variables, tokenizer, verification), read_calibration(fetched(folder))
    return Model(*parts, batch_size=batch_size, weights_file=weights_file, calibration=calibration)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
