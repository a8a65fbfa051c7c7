"""The images that a truth file names, for the report of `afloc score`."""

import numpy as np
from jaxtyping import UInt8

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.truth.sample import Truth
from afloc_jax.files import Path
from afloc_jax.tables import fault_of_name
from data_pipelines.constants import GreyRule
from data_pipelines.images import IMAGE_SUFFIXES, Geometry, read_image

SUFFIXES = ("", *IMAGE_SUFFIXES)


class Pictures:
    """A folder of images, found by the names of a truth file.

    A name is a path below the folder, with or without its suffix, or in the form of CheXlocalize: patient, study and
    view joined by "_" instead of "/".
    """

    def __init__(self, folder: str | Path, rule: GreyRule = "luma") -> None:
        """The folder, whose files become grey by `rule`. Raises UsageError if there is no such folder."""
        self.folder, self._rule = Path(folder), rule
        if not self.folder.is_dir():
            raise UsageError(f"--images {folder}: no such folder")

    def square(self, truth: Truth) -> UInt8[np.ndarray, "S S"]:
        """The padded square of a sample's image. Raises UserError if it is missing, or not of the truth's size."""
        path = self._find(truth.image)
        if path is None:
            raise UserError(
                f"--images {self.folder}: no image {truth.image} (with or without a suffix such as .png) is in it"
            )
        pixels = read_image(path, self._rule)
        if truth.height and pixels.shape != (truth.height, truth.width):
            raise UserError(
                f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels, the truth file says {truth.width} x "
                f"{truth.height}; give the folder of the original images, or leave --images out"
            )
        return Geometry(pixels.shape[0], pixels.shape[1], truth.mask.shape[0]).to_square(pixels)

    def size(self, name: str) -> tuple[int, int]:
        """The height and width of an image in pixels, 0 if it is not in the folder. Raises ImageError if unreadable."""
        path = self._find(name)
        if path is None:
            return 0, 0
        height, width = read_image(path, self._rule).shape
        return height, width

    def _find(self, name: str) -> Path | None:
        if fault_of_name(name):
            return None
        for stem in (name, name.replace("_", "/", 2)):
            for suffix in SUFFIXES:
                path = self.folder / f"{stem}{suffix}"
                if path.is_file():
                    return path
        return None
