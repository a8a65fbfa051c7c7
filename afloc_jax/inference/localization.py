"""The localisation of a prompt in an image: its map and boxes, in the square and at the image's original size."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from afloc_jax.errors import UsageError
from afloc_jax.inference.figures import MOST_SIDE, Caption, Placed, figure, marked, short, smaller
from afloc_jax.inference.notebook import SIDE, Gallery, figure_html
from afloc_jax.inference.pixels import ImageInput, pixels_of
from afloc_jax.inference.prompt_reading import PromptReading
from afloc_jax.inference.regions import Regions, regions_of
from afloc_jax.settings import Json
from afloc_jax.weights.calibration import PRESENT
from data_pipelines.images import Geometry

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Localization:
    """The localisation of one prompt in one image. Notebooks show it as a picture with its caption.

    The map at original size takes 30 MB of a full-size film, and longer than its part of the network. So `heatmap` and
    `boxes` are computed when they are first read.

    Attributes:
        square: [S, S] float32, the un-normalised map of the zero-padded square, which the published release scores.
        similarity: the cosine of the global image embedding and the prompt's embedding, in [-1, 1].
        prompt: the prompt after cleaning.
        geometry: where the image lies in the square; its `height` and `width` are those of the image.
        threshold: `boxes` enclose the values above it on the map scaled to [-1, 1].
        unknown_words: words of the prompt that the model does not know, see `inference.prompt_reading`.
        truncated: whether the end of the prompt does not fit into the model's token slots and was not read.
        present: the calibrated probability that the image shows what the prompt names; None where that is not
            calibrated, see `inference.presence`.
        given: the prompt as it was given.
        warning: why the model does not fit the image, such as a model that has seen drawings alone; empty if it may.
        picture: [h, w] uint8, the image to draw on, with sides of at most 1,024 pixels; None where the model was given
            squares instead of images.

    >>> found = model.localize(["chest.png"], ["Small left effusion"])[0][0]
    >>> found.prompt, found.geometry.height, found.geometry.width
    ('small left effusion', 97, 131)
    """

    square: Float[np.ndarray, "S S"]
    similarity: float
    prompt: str
    geometry: Geometry
    threshold: float
    unknown_words: tuple[str, ...] = ()
    truncated: bool = False
    present: float | None = None
    given: str = ""
    warning: str = ""
    picture: UInt8[np.ndarray, "h w"] | None = None

    def __repr__(self) -> str:
        present = "" if self.present is None else f", present {self.present:.2f}"
        size = f"{self.geometry.height} x {self.geometry.width} pixels"
        return f"Localization({self.prompt!r}, {size}, similarity {self.similarity:.3f}{present})"

    @property
    def is_absent(self) -> bool:
        """Whether the prompt is judged absent; never without a calibration.

        >>> found.is_absent
        False
        """
        return self.present is not None and self.present < PRESENT

    @functools.cached_property
    def heatmap(self) -> Float[np.ndarray, "H W"]:
        """The map [H, W] float32 at the image's original size, finite.

        Values are un-normalised similarities (in [0, 1] for a model whose `localization.similarity` is "presence"), so
        that two prompts on one image can be compared.

        >>> found.heatmap.shape
        (97, 131)
        """
        return np.asarray(self.geometry.map_to_original(self.square), np.float32)

    @property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        """[H, W] bool: where `heatmap` exceeds `cut`, so where boxes are.

        >>> x, y, width, height = found.boxes[0]
        >>> bool(found.mask[y : y + height, x : x + width].any())
        True
        """
        return self.heatmap > self.cut

    @property
    def boxes(self) -> Int[np.ndarray, "K 4"]:
        """[K, 4] int: x, y, width, height in original pixels.

        There is one box per connected region in which the map, scaled to [-1, 1] by its own minimum and maximum,
        exceeds the threshold; the largest region comes first.

        >>> found.boxes.shape[1]
        4
        >>> corners = found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]  # left top, right bottom
        """
        return self._found.boxes

    @property
    def scores(self) -> Float[np.ndarray, " K"]:
        """[K] float32: the largest value of `heatmap` in each box.

        >>> len(found.scores) == len(found.boxes)
        True
        """
        return self._found.scores

    @property
    def cut(self) -> float:
        """The value of `heatmap` above which regions have boxes: the threshold on the scale of the map.

        >>> bool(found.heatmap.min() < found.cut < found.highest)
        True
        """
        return self._found.cut

    @property
    def highest(self) -> float:
        """The largest value of `heatmap`.

        >>> bool(found.highest == found.heatmap.max())
        True
        """
        return self._found.highest

    @property
    def caption(self) -> Caption:
        """What is written below the picture: the prompt, what was found, warnings, and the ends of the colour bar.

        >>> found.caption.title, found.caption.facts[0]
        ('Small left effusion', 'presence not calibrated')
        """
        boxes = len(self.boxes)
        facts = ["presence not calibrated"] if self.present is None else [f"present: {self.present:.2f}"]
        if self.is_absent:
            facts.append("judged absent")
        facts.append(f"score {short(float(self.scores.max()))}" if boxes else "nothing above the threshold")
        if boxes and not self.is_absent:
            facts.append(f"{boxes} box{'es' * (boxes != 1)}")
        warnings = []
        if self.unknown_words:
            warnings.append(f"The model does not know: {', '.join(self.unknown_words)}.")
        if self.truncated:
            warnings.append("The end of the prompt was not read.")
        if self.warning:
            warnings.append(f"{self.warning[0].upper()}{self.warning[1:]}.")
        return Caption(self.given or self.prompt, facts, warnings, self.cut, self.highest)

    @property
    def placed(self) -> Placed:
        """The map, and the boxes unless the prompt is judged absent, as they are drawn.

        >>> len(found.placed.boxes) == len(found.boxes)
        True
        """
        return Placed(self.square, self.geometry, self.boxes[:0] if self.is_absent else self.boxes)

    def as_dict(self) -> dict[str, Json]:
        """All numbers but those of the map, as JSON has them; a row of a table: `pandas.DataFrame([...])`.

        >>> sorted(found.as_dict())
        ['absent', 'boxes', 'present', 'prompt', 'scores', 'similarity', 'threshold', 'truncated', 'unknown_words']
        """
        return {
            "prompt": self.prompt,
            "similarity": self.similarity,
            "present": self.present,
            "absent": self.is_absent,
            "boxes": self.boxes.tolist(),
            "scores": [float(f"{score:.6g}") for score in self.scores],
            "threshold": self.threshold,
            "unknown_words": [*self.unknown_words],
            "truncated": self.truncated,
        }

    def of_square(self) -> "Localization":
        """The localisation in the padded square itself, whose boxes are in its pixels. It has no picture.

        >>> found.of_square().heatmap.shape
        (224, 224)
        """
        side = self.geometry.side
        return dataclasses.replace(self, geometry=Geometry(side, side, side), picture=None)

    def plot(self, image: ImageInput | None = None) -> Image.Image:
        """The picture of `afloc localize`: the image, the map where it exceeds the threshold, boxes, and a caption.

        A PIL image, which a notebook shows and `.save("a.png")` writes.

        Args:
            image: the image, to draw on at its own size (see `pixels_of` for its forms). By default `picture` is
                drawn on, and the sides have at most 1,024 pixels.

        Raises:
            UsageError: there is no picture, or the image has not the size of the one that was localised.

        >>> found.plot().save("map.png")
        >>> found.plot("chest.png").mode  # at its own size
        'RGB'
        """
        most = MOST_SIDE if image is None else None
        return Image.fromarray(figure(self._drawn_on(image), self.placed, self.caption, most))

    def plot_on(self, axes: "Axes", image: ImageInput | None = None) -> None:
        """Draws the picture into axes of matplotlib, whose coordinates are then pixels of the original image.

        The title is the prompt with what was found. matplotlib is not installed by this package.

        Args:
            axes: such as those of `plt.subplots()`.
            image: see `plot`.

        Raises UsageError as `plot` does.

        >>> import matplotlib.pyplot as plt
        >>> found.plot_on(plt.axes())
        >>> plt.gca().get_xlim()
        (np.float64(0.0), np.float64(131.0))
        >>> plt.close()
        """
        caption, size = self.caption, self.geometry
        axes.imshow(marked(self._drawn_on(image), self.placed, caption), extent=(0, size.width, size.height, 0))
        axes.set_title("\n".join([caption.title, " \u00b7 ".join(caption.facts), *caption.warnings]), fontsize="small")
        axes.set_axis_off()

    def _repr_html_(self) -> str | None:
        if self.picture is None:
            return None
        picture = marked(smaller(self.picture, SIDE), self.placed, self.caption)
        return figure_html(picture, self.caption, self._described())

    def _described(self) -> str:
        """The picture in words."""
        size = f"an image of {self.geometry.width} x {self.geometry.height} pixels"
        if self.is_absent:
            return (
                f"{size[0].upper()}{size[1:]} without boxes: \u201c{self.given or self.prompt}\u201d is judged absent."
            )
        boxes = [f"{w} x {h} at x {x}, y {y}" for x, y, w, h in self.boxes.tolist()]
        named = f"{', '.join(boxes[:3])}{' and others' * (len(boxes) > 3)}" if boxes else "none"
        return f"Map of \u201c{self.given or self.prompt}\u201d on {size}. Boxes, the largest region first: {named}."

    def _drawn_on(self, image: ImageInput | None) -> UInt8[np.ndarray, "h w"]:
        if image is None:
            if self.picture is None:
                raise UsageError("no picture was kept, for the model was given squares; give the image: plot(image)")
            return self.picture
        pixels = pixels_of(image)
        if pixels.shape != (self.geometry.height, self.geometry.width):
            raise UsageError(
                f"the image has {pixels.shape[0]} x {pixels.shape[1]} pixels, and the one that was localised "
                f"{self.geometry.height} x {self.geometry.width}; give that one"
            )
        return pixels

    @functools.cached_property
    def _found(self) -> Regions:
        return regions_of(self.square, self.geometry, self.threshold)


def localizations(
    maps: Float[np.ndarray, "IP S S"],
    images: Float[np.ndarray, "I D"],
    prompts: Float[np.ndarray, "P D"],
    geometries: Sequence[Geometry],
    readings: Sequence[PromptReading],
    threshold: float,
    present: Sequence[Sequence[float | None]],
    warnings: Sequence[str],
    pictures: Sequence[UInt8[np.ndarray, "_ _"] | None],
) -> Iterator[Gallery[Localization]]:
    """For each image its localisations of P prompts.

    Args:
        maps: the maps of all prompts in the first image, then in the second.
        images: global embeddings of the images.
        prompts: embeddings of the prompts.
        geometries: where each image lies in its square.
        readings: how the model reads each prompt.
        threshold: see `Localization`.
        present: for each image the presence of each prompt.
        warnings: see `Localization`, of each image.
        pictures: likewise.
    """
    for i, geometry in enumerate(geometries):
        yield Gallery(
            Localization(
                maps[i * len(readings) + k],
                _cosine(images[i], prompts[k]),
                reading.text,
                geometry,
                threshold,
                reading.unknown_words,
                reading.truncated,
                present[i][k],
                reading.given,
                warnings[i],
                pictures[i],
            )
            for k, reading in enumerate(readings)
        )


def _cosine(a: Float[np.ndarray, " D"], b: Float[np.ndarray, " D"]) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0
