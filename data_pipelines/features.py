"""Features of a frozen image tower beside the records: one file a level, one row a record. `training/frozen.py` makes
them.

The files are plain arrays, which are mapped into memory and read row by row. `features.json` beside them holds their
types and shapes, what they were made from, and how many rows are written.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int

from afloc_jax.files import Path, read_json, write_json
from afloc_jax.settings import Json

LEVELS = ("shallow", "deep", "whole")
MANIFEST = "features.json"
_TYPES: Mapping[str, np.dtype] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}


class FeatureArrays(TypedDict):
    """The features of B images, before their projection."""

    features_shallow: Float[np.ndarray, "B H1 W1 C1"]
    features_deep: Float[np.ndarray, "B H2 W2 C2"]
    features_whole: Float[np.ndarray, "B C3"]


@dataclass(frozen=True)
class Like:
    """The type and shape of the features of one record at one level."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Those of a record."""
        return _TYPES[self.dtype].itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class FeatureFiles:
    """The features of one split. It can be pickled; each process maps the files anew.

    Attributes:
        folder: the folder of the files.
        count: the number of records.
        like: the type and shape of each level.
    """

    folder: Path
    count: int
    like: Mapping[str, Like]

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return self.count * sum(like.bytes for like in self.like.values())

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_mapped"}

    @cached_property
    def _mapped(self) -> dict[str, np.memmap]:
        return {level: self._map(level, "r") for level in LEVELS}

    def _map(self, level: str, mode: str) -> np.memmap:
        like = self.like[level]
        return np.memmap(self._file(level), _TYPES[like.dtype], mode, shape=(self.count, *like.shape))  # type: ignore[call-overload, no-any-return]

    def _file(self, level: str) -> Path:
        return self.folder / f"{level}.bin"

    def rows(self, numbers: Sequence[int] | Int[np.ndarray, " B"]) -> FeatureArrays:
        """The features of records by their number; zeros for -1."""
        numbers = np.asarray(numbers)
        arrays = {}
        for level in LEVELS:
            found = np.array(self._mapped[level][np.maximum(numbers, 0)])
            found[numbers < 0] = 0
            arrays[f"features_{level}"] = found
        return FeatureArrays(**arrays)  # type: ignore[typeddict-item]

    def written(self, made_from: Mapping[str, Json]) -> int:
        """How many rows are written; 0 where they were made from something else, or a file has another size."""
        if not (self.folder / MANIFEST).is_file():
            return 0
        stored = read_json(self.folder / MANIFEST, "remove the folder, and the next run writes it again")
        sizes = {level: self.count * self.like[level].bytes for level in LEVELS}
        whole = all(self._file(level).is_file() and self._file(level).stat().length == sizes[level] for level in LEVELS)
        rows = stored.get("rows")
        return rows if whole and stored.get("made_from") == made_from and isinstance(rows, int) else 0

    def begin(self) -> None:
        """Makes the files in their full size, without content."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for level in LEVELS:
            self._map(level, "w+").flush()

    def write(self, first: int, arrays: Mapping[str, np.ndarray], made_from: Mapping[str, Json]) -> None:
        """Writes the features of the records from `first` on, then how many are written."""
        end = first + len(arrays["whole"])
        for level in LEVELS:
            mapped = self._map(level, "r+")
            mapped[first:end] = arrays[level]
            mapped.flush()
        like = {level: {"type": one.dtype, "shape": list(one.shape)} for level, one in self.like.items()}
        write_json(self.folder / MANIFEST, {"rows": end, "records": self.count, "levels": like, "made_from": made_from})
