"""The localisation of a prompt in an image: its map and boxes, in the square and at the image's original size."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from afloc_jax import heatmaps
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

    @functools.cached_property
    def boxes(self) -> Int[np.ndarray, "K 4"]:
        """[K, 4] int: x, y, width, height in original pixels.

        There is one box per connected region in which the map, scaled to [-1, 1] by its own minimum and maximum,
        exceeds the threshold; the largest region comes first.
        """
        lowest, highest = float(self.heatmap.min()), float(self.heatmap.max())
        # The threshold is scaled instead of the map, which would need three more arrays of its size.
        return heatmaps.boxes_from_map(self.heatmap, lowest + (self.threshold + 1) / 2 * (highest - lowest))


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


def _cosine(a: Float[np.ndarray, " D"], b: Float[np.ndarray, " D"]) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0
