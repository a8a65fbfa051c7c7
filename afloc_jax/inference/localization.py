"""The localisation of a prompt in an image: its map and boxes, in the square and at the image's original size."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Float, Int

from afloc_jax import heatmaps
from afloc_jax.errors import UsageError
from afloc_jax.inference.prompt_reading import PromptReading
from afloc_jax.weights.calibration import PRESENT
from data_pipelines.images import Geometry


@dataclasses.dataclass(frozen=True)
class Localization:
    """The localisation of one prompt in one image.

    The map at original size takes 30 MB of a full-size film, and longer than its part of the network. So `heatmap` and
    `boxes` are computed when they are first read.

    Attributes:
        square: [S, S] float32, the un-normalised map of the zero-padded square, which the published release scores.
        similarity: the cosine of the global image embedding and the prompt's embedding, in [-1, 1].
        prompt: the prompt after cleaning.
        geometry: where the image lies in the square.
        threshold: `boxes` enclose the values above it on the map scaled to [-1, 1].
        unknown_words: words of the prompt that the model does not know, see `inference.prompt_reading`.
        truncated: whether the end of the prompt does not fit into the model's token slots and was not read.
        present: the calibrated probability that the image shows what the prompt names; None where that is not
            calibrated, see `inference.presence`.
    """

    square: Float[np.ndarray, "S S"]
    similarity: float
    prompt: str
    geometry: Geometry
    threshold: float
    unknown_words: tuple[str, ...] = ()
    truncated: bool = False
    present: float | None = None

    @property
    def is_absent(self) -> bool:
        """Whether the prompt is judged absent; never without a calibration."""
        return self.present is not None and self.present < PRESENT

    @functools.cached_property
    def heatmap(self) -> Float[np.ndarray, "H W"]:
        """The map [H, W] float32 at the image's original size, finite.

        Values are un-normalised similarities (in [0, 1] for a model whose `localization.similarity` is "presence"), so
        that two prompts on one image can be compared.
        """
        return np.asarray(self.geometry.map_to_original(self.square), np.float32)

    @property
    def boxes(self) -> Int[np.ndarray, "K 4"]:
        """[K, 4] int: x, y, width, height in original pixels.

        There is one box per connected region in which the map, scaled to [-1, 1] by its own minimum and maximum,
        exceeds the threshold; the largest region comes first.
        """
        return self._found[0]

    @property
    def scores(self) -> Float[np.ndarray, " K"]:
        """[K] float32: the largest value of `heatmap` in each box."""
        return self._found[1]

    @property
    def cut(self) -> float:
        """The value of `heatmap` above which regions have boxes: the threshold on the scale of the map."""
        return self._found[2]

    @property
    def highest(self) -> float:
        """The largest value of `heatmap`."""
        return self._found[3]

    def of_square(self) -> "Localization":
        """The localisation in the padded square itself, whose boxes are in its pixels."""
        side = self.geometry.side
        return dataclasses.replace(self, geometry=Geometry(side, side, side))

    @functools.cached_property
    def _found(self) -> tuple[Int[np.ndarray, "K 4"], Float[np.ndarray, " K"], float, float]:
        # The map is not kept for boxes alone.
        heatmap = self.__dict__["heatmap"] if "heatmap" in self.__dict__ else self.geometry.map_to_original(self.square)
        lowest, highest = cv2.minMaxLoc(heatmap)[:2]
        # The threshold is scaled instead of the map, which would need three more arrays of its size.
        cut = lowest + (self.threshold + 1) / 2 * (highest - lowest)
        boxes = heatmaps.boxes_from_map(heatmap, cut)
        scores = [heatmap[y : y + height, x : x + width].max() for x, y, width, height in boxes]
        return boxes, np.array(scores, np.float32), cut, highest


def localizations(
    maps: Float[np.ndarray, "IP S S"],
    images: Float[np.ndarray, "I D"],
    prompts: Float[np.ndarray, "P D"],
    geometries: Sequence[Geometry],
    readings: Sequence[PromptReading],
    threshold: float,
    present: Sequence[Sequence[float | None]],
) -> Iterator[list[Localization]]:
    """For each image its localisations of P prompts.

    Args:
        maps: the maps of all prompts in the first image, then in the second.
        images: global embeddings of the images.
        prompts: embeddings of the prompts.
        geometries: where each image lies in its square.
        readings: how the model reads each prompt.
        threshold: see `Localization`.
        present: for each image the presence of each prompt.
    """
    for i, geometry in enumerate(geometries):
        yield [
            Localization(
                maps[i * len(readings) + k],
                _cosine(images[i], prompts[k]),
                reading.text,
                geometry,
                threshold,
                reading.unknown_words,
                reading.truncated,
                present[i][k],
            )
            for k, reading in enumerate(readings)
        ]


def check_call(images: Sequence[object], texts: Sequence[str], threshold: float) -> None:
    """Raises UsageError for a call without images or texts, or with a threshold that no map has."""
    for what, given in (("images", images), ("prompts or classes", texts)):
        if isinstance(given, str | os.PathLike):
            raise UsageError(f"{what} must be a list, not one {type(given).__name__}")
        if len(given) == 0:
            raise UsageError(f"no {what} given; give at least one")
    if not -1 < threshold < 1:
        raise UsageError(f"threshold {threshold}: must lie between -1 and 1, the scale of a normalised map")


def _cosine(a: Float[np.ndarray, " D"], b: Float[np.ndarray, " D"]) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0
