"""Files of heat maps with keys of image and phrase, and their mapping to the scored square or original image."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from afloc_jax.errors import UserError
from afloc_jax.evaluation.truth.sample import Truth, negative
from afloc_jax.files import Path, check_regular
from afloc_jax.heatmaps import sharpened
from data_pipelines.images import LARGEST_PIXELS, Geometry

LARGEST_MAP = 8 * LARGEST_PIXELS + 4096  # bytes of a map of float64, with its header


class HeatmapFile:
    """An .npz of heat maps with the keys of `Truth.key`. Maps are read one at a time.

    With `sharpen` each is sharpened (`heatmaps.sharpened`) in the pixels that the file has.
    """

    def __init__(self, path: str | Path, sharpen: bool = False) -> None:
        self.path, self._sharpen = Path(path), sharpen
        try:
            check_regular(self.path)
            self._file = np.load(self.path, allow_pickle=False)
        except Exception as error:  # NumPy and zipfile raise almost any exception for a bad archive
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "not an .npz archive"
            raise UserError(f"{self.path}: cannot read the heat maps ({reason})") from None
        if not isinstance(self._file, np.lib.npyio.NpzFile):
            raise UserError(f"{self.path}: one bare array; heat maps come as an .npz with a key for each sample")
        members = self._file.zip.infolist() if self._file.zip else []
        self._bytes = {info.filename.removesuffix(".npy"): info.file_size for info in members}
        self._keys = {self._fold(key): key for key in self._file.files}
        if len(self._keys) < len(self._file.files):
            last = {self._fold(key): position for position, key in enumerate(self._file.files)}
            first = next(key for position, key in enumerate(self._file.files) if last[self._fold(key)] != position)
            raise UserError(
                f"{self.path}: {len(self._file.files) - len(self._keys)} keys differ from another in case alone, "
                f"first: image {first.partition(chr(9))[0]}; phrases are compared without case, keep one map of each"
            )

    @staticmethod
    def _fold(key: str) -> str:
        image, tab, text = key.partition("\t")
        return image + tab + text.lower()

    def __len__(self) -> int:
        return len(self._keys)

    def has(self, truth: Truth) -> bool:
        """Whether there is a map of the sample."""
        return truth.key in self._keys

    def check(self, truths: Sequence[Truth], some: bool = False) -> None:
        """Raises UserError unless there is a map for every sample, or with `some` for at least one."""
        missing = [truth for truth in truths if not self.has(truth)]
        if missing and not (some and len(missing) < len(truths)):
            first = ", ".join(truth.id for truth in missing[:3])
            raise UserError(
                f"{self.path}: no heat map for {len(missing)} of {len(truths)} samples, first: {first}; "
                "keys must be the image path, a tab, and the label_text in lower case"
            )

    def _check_size(self, truth: Truth) -> None:
        """Raises UserError for a map that would take far more memory than any image, before it is unpacked."""
        if self._bytes.get(self._keys.get(truth.key, ""), 0) > LARGEST_MAP:
            raise UserError(f"{self.path}: the map of {truth.id} has more than {LARGEST_MAP:,} bytes")

    def negatives(self, truths: Sequence[Truth]) -> list[Truth]:
        """Negative samples of the classes of `truths`: images and classes that have a map and no truth.

        CheXlocalize's truth lists only images with a finding.
        """
        listed = {truth.image_and_class for truth in truths}
        sizes = {truth.image: (truth.height, truth.width) for truth in truths}
        size = truths[0].mask.shape[0]
        classes = {truth.category.lower(): truth.category for truth in truths}
        parts = [(image, text.lower()) for image, _, text in (key.partition("\t") for key in self._keys)]
        return [
            negative(image, classes[text], size, *sizes.get(image, (0, 0)))
            for image, text in parts
            if text in classes and (image, text) not in listed
        ]

    def maps(self, truths: Sequence[Truth], original: bool = False) -> Iterator[Float[np.ndarray, "rows columns"]]:
        """The map of each sample on the square, or on the original image, in order.

        A sample without a map gets zeros, which predict nothing. Raises UserError for a map of another shape.
        """
        place = map_to_original if original else map_to_square
        for truth in truths:
            self._check_size(truth)
            try:
                # A member of an archive that is no array comes as its bytes.
                heatmap = np.asarray(
                    self._file[self._keys[truth.key]] if self.has(truth) else np.zeros(truth.mask.shape)
                )
            except Exception:
                raise UserError(f"{self.path}: the map of {truth.id} is damaged or not an array of numbers") from None
            if self._sharpen:
                heatmap = np.asarray(sharpened(_checked(heatmap, truth, str(self.path))[0]))
            yield place(heatmap, truth, str(self.path))


def map_to_square(heatmap: np.ndarray, truth: Truth, where: str = "heat maps") -> Float[np.ndarray, "S S"]:
    """The map on the square: a map of the square as it is, one of the original size scaled and padded.

    The padding gets the minimum of the map, so that it neither wins the pointing game nor is predicted. Raises
    UserError for a map of another shape or type.
    """
    size = truth.mask.shape[0]
    heatmap, truth = _checked(heatmap, truth, where)
    if heatmap.shape == (size, size):
        return heatmap
    geometry = Geometry(truth.height, truth.width, size)
    heatmap = heatmap.astype(np.float32)
    square = np.full((size, size), heatmap.min(), np.float32)
    geometry.inner(square)[...] = geometry.inner(geometry.to_square(heatmap))
    return square


def map_to_original(heatmap: np.ndarray, truth: Truth, where: str = "heat maps") -> Float[np.ndarray, "H W"]:
    """The map in original pixels: one of the original size as it is, one of the square without padding and enlarged.

    On an image of unknown size the map stays as it is. Raises UserError for a map of another shape or type.
    """
    size = truth.mask.shape[0]
    heatmap, truth = _checked(heatmap, truth, where)
    if not truth.height or heatmap.shape == (truth.height, truth.width):
        return heatmap
    return Geometry(truth.height, truth.width, size).map_to_original(heatmap)


def _checked(heatmap: np.ndarray, truth: Truth, where: str) -> tuple[Float[np.ndarray, "rows columns"], Truth]:
    """The map, whole numbers as floats, and the sample.

    A negative on an image of unknown size gets the size of its map, unless that is the square's.

    Raises UserError unless the map has the shape of the square or of the image, and finite numbers.
    """
    square = truth.mask.shape
    if heatmap.dtype.kind not in "fiub":
        raise UserError(f"{where}: the map of {truth.id} has type {heatmap.dtype}; it must hold real numbers")
    if heatmap.dtype.kind == "f" and not np.isfinite(heatmap).all():  # metrics would leave the sample out
        raise UserError(f"{where}: the map of {truth.id} has values that are NaN or infinite")
    if heatmap.shape != square:
        if not truth.present and not truth.height and heatmap.ndim == 2 and heatmap.size:
            truth = replace(truth, height=heatmap.shape[0], width=heatmap.shape[1])
        elif not truth.height or heatmap.shape != (truth.height, truth.width):
            own = f" or {(truth.height, truth.width)}, the image's own size" if truth.height else ""
            raise UserError(f"{where}: the map of {truth.id} has shape {heatmap.shape}; expected {square}{own}")
    if heatmap.dtype.kind != "f":  # differences of bytes would wrap, and truth values have none
        heatmap = heatmap.astype(np.float32 if heatmap.dtype.itemsize <= 2 else np.float64)
    return heatmap, truth
