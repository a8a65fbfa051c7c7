"""A file with a line per image that is done, from which a command that was stopped goes on.

    {"call": {...}}
    {"image": "chests/a.png", "stamp": [81234, 1764284400000000000], "result": {...}}

Lines are appended, so that the results of any number of images take no memory. A line that was cut off is dropped.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO, Any

from afloc_jax.files import Path, write_whole
from afloc_jax.settings import Json

Result = dict[str, Any]  # read and written as JSON


class Journal:
    """The results of a command, by image. Use it in a `with` block, which closes the file."""

    def __init__(self, path: Path, call: Mapping[str, Json], *, anew: bool = False):
        """Opens the journal and reads which images are done.

        Args:
            path: the file, which is made where it is missing.
            call: what results depend on beside the image. A journal of another call is replaced.
            anew: replace the journal in any case.

        Raises OSError.
        """
        self.path = path
        self._places: dict[str, tuple[list[int], int]] = {}  # image -> its stamp, and where its line begins
        first = json.dumps({"call": call}).encode() + b"\n"
        if anew or not self._begins_with(first):
            write_whole(path, first)
        self._file: IO[bytes] = open(path, "r+b")  # noqa: SIM115 (closed by __exit__)
        self._end = len(first)
        self._file.seek(self._end)
        for line in self._file:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else {}
                self._places[entry["image"]] = entry["stamp"], self._end
            except (KeyError, TypeError, ValueError):  # cut off, or damaged
                break
            self._end += len(line)
        self._file.truncate(self._end)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def is_done(self, image: str, stamp: Sequence[int]) -> bool:
        """Whether there is a result of this image, and its file has not changed since."""
        return image in self._places and self._places[image][0] == [*stamp]

    def add(self, image: str, stamp: Sequence[int], result: Result) -> None:
        """Appends the result of an image. It is kept when the process dies, and with `flush` when the machine does."""
        line = json.dumps({"image": image, "stamp": [*stamp], "result": result}).encode() + b"\n"
        self._file.seek(self._end)
        self._file.write(line)
        self._file.flush()
        self._places[image] = [*stamp], self._end
        self._end += len(line)

    def flush(self) -> None:
        """Waits until what was added is on the disk."""
        os.fsync(self._file.fileno())

    def result(self, image: str) -> Result:
        """The result of an image that is done."""
        self._file.seek(self._places[image][1])
        result: Result = json.loads(self._file.readline())["result"]
        return result

    def results(self, images: Sequence[str]) -> Iterator[Result]:
        """The results of those images that have one, in the given order."""
        return (self.result(image) for image in images if image in self._places)

    def _begins_with(self, first: bytes) -> bool:
        try:
            with open(self.path, "rb") as file:
                return file.readline(len(first)) == first
        except FileNotFoundError:
            return False
