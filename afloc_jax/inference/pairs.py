"""Heat maps of pairs of an image and a prompt, and their peaks, in batches."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from afloc_jax.errors import UserError
from afloc_jax.heatmaps import HeatmapSettings
from afloc_jax.inference import programs
from afloc_jax.inference.batching import chunks, pad
from afloc_jax.inference.remembered import Remembered
from afloc_jax.models import AFLoc
from afloc_jax.weights.folder import Variables


class Pairs(NamedTuple):
    """P pairs of one of B images and one of T prompts."""

    maps: Float[np.ndarray, "P S S"]  # heat maps; S is 0 where none were asked for
    peaks: Float[np.ndarray, " P"]  # the largest cosine of a region with the query; 0 where none were asked for
    images: Float[np.ndarray, "B D"]  # global embeddings

    def check(self) -> None:
        """Raises UserError if a map or a peak is not finite."""
        if not (np.isfinite(self.maps).all() and np.isfinite(self.peaks).all()):
            raise UserError("the heat map holds NaN or infinity: the weights are damaged or the training diverged")


class Deep(NamedTuple):
    """What pairs need of a batch of images. It stays on the device."""

    deep: Float[Array, "B h w D"]
    whole: Float[Array, "B D"]

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        return self.deep.nbytes + self.whole.nbytes


def compute_pairs(
    network: AFLoc,
    variables: Variables,
    squares: UInt8[np.ndarray, "B S S"],
    image_of: Int[np.ndarray, " P"],
    queries: Float[np.ndarray, "T D"],
    text_of: Int[np.ndarray, " P"],
    settings: HeatmapSettings | None,
    input_size: int,
    batch_size: int,
    peaks: bool,
    remembered: Remembered[bytes, Deep] | None = None,
) -> Pairs:
    """The pairs of images `image_of` and texts `text_of`. The deep maps stay on the device.

    Args:
        network, variables: the model.
        squares: padded squares.
        image_of, text_of: the image and the text of each pair.
        queries: of the heat maps.
        settings: of the heat maps; None for none.
        input_size: the side of the network's input in pixels.
        batch_size: the largest number of images, and of pairs, computed at once.
        peaks: whether to compute the peaks.
        remembered: batches of images that this model has encoded, by the hashes of their pixels; None to keep none.
    """
    side = squares.shape[1] if settings else 0
    maps, highest = np.empty((len(image_of), side, side), np.float32), np.zeros(len(image_of), np.float32)
    embeddings = []
    for rows, count, size in chunks(len(squares), batch_size):
        levels = _encoded(network, variables, pad(squares[rows], size), remembered)
        embeddings.append(np.asarray(levels.whole)[:count])
        own = np.flatnonzero((image_of >= rows.start) & (image_of < rows.stop))
        for part, many, padded in chunks(len(own), batch_size):
            chosen = own[part]
            images, texts = pad(image_of[chosen] - rows.start, padded), pad(text_of[chosen], padded)
            if peaks:
                highest[chosen] = np.asarray(programs.peaks_of(levels.deep, images, queries[texts]))[:many]
            if settings:
                found = programs.heatmaps_of(levels.deep, images, queries[texts], side, settings, input_size)
                maps[chosen] = np.asarray(found)[:many]
    return Pairs(maps, highest, np.concatenate(embeddings))


def _encoded(
    network: AFLoc,
    variables: Variables,
    batch: UInt8[np.ndarray, "b S S"],
    remembered: Remembered[bytes, Deep] | None,
) -> Deep:
    def encode(_: Sequence[bytes] = ()) -> list[Deep]:
        levels = programs.encode_images(network, variables, batch)
        return [Deep(levels.deep, levels.whole)]

    if remembered is None:
        return encode()[0]
    key = hashlib.blake2b(batch.tobytes() + str(batch.shape).encode(), digest_size=20).digest()
    return remembered.all_of([key], encode)[0]


def grid(images: int, texts: int) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """The image and the text of all pairs, image by image.

    >>> grid(2, 2)
    (array([0, 0, 1, 1]), array([0, 1, 0, 1]))
    """
    image_of, text_of = np.divmod(np.arange(images * texts), texts)
    return image_of, text_of
