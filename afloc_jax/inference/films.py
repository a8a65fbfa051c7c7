"""Images of commands, read a few at a time: each becomes the square that the model reads, and what results need."""

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from afloc_jax.files import Path
from afloc_jax.inference.batching import THREADS, chunks
from afloc_jax.inference.figures import smaller
from afloc_jax.inference.model import Model
from data_pipelines.constants import Framing
from data_pipelines.dicom import Header, read_header
from data_pipelines.images import Geometry, ImageError, read_image

Stamp: TypeAlias = tuple[int, int]
"""The size of a file in bytes and the time of its last change in nanoseconds, by which a changed file is noticed."""


_LARGE_AT_ONCE = 8  # pictures at original size, 8 MB each and in two batches


@dataclass(frozen=True)
class Film:
    """An image as commands need it.

    Attributes:
        path: the file.
        stamp: that of the file before it was read.
        square: [S, S] uint8, what the model reads.
        geometry: where the image lies in the square.
        picture: [h, w] uint8, the image to draw on, at original size or smaller; None if nothing is drawn.
        header: that of a DICOM file; None for others.
    """

    path: Path
    stamp: Stamp
    square: UInt8[np.ndarray, "S S"]
    geometry: Geometry
    picture: UInt8[np.ndarray, "h w"] | None
    header: Header | None


@dataclass(frozen=True)
class Reading:
    """How images are read. `most_side` bounds the sides of pictures; 0 keeps none, None keeps the original size."""

    framing: Framing = "pad"
    compatible: bool = False
    most_side: int | None = 0


def films(model: Model, wanted: Sequence[tuple[Path, Reading]], failed: list[str]) -> Iterator[list[Film]]:
    """Batches of images, at most `model.batch_size` of them, in the given order.

    The next batch is read while the caller works on one. A film takes memory at its original size only while it is
    decoded, and while it is drawn on at that size. The error of an unreadable image is printed on stderr and appended
    to `failed`. Progress is shown on a terminal.
    """
    read = functools.partial(_read_or_say, model)
    with (
        tqdm(total=len(wanted), unit="image", disable=None) as progress,
        ThreadPoolExecutor(THREADS, "films") as threads,
    ):

        def finished(batch: list[Future[Film | ImageError]]) -> list[Film]:
            found = []
            for result in (future.result() for future in batch):
                if isinstance(result, ImageError):
                    failed.append(str(result))
                    progress.write(f"afloc: {result}", file=sys.stderr)
                else:
                    found.append(result)
            return found

        large = any(how.most_side is None for _, how in wanted)
        size = min(model.batch_size, _LARGE_AT_ONCE) if large else model.batch_size
        ahead: list[Future[Film | ImageError]] = []
        for rows in [*(rows for rows, _, _ in chunks(len(wanted), size)), slice(0)]:
            reading = [threads.submit(read, *one) for one in wanted[rows]]
            if some := finished(ahead):
                yield some
            progress.update(len(ahead))
            ahead = reading


def read_film(model: Model, path: Path, how: Reading) -> Film:
    """Reads one image. Raises ImageError."""
    stamp = stamp_of(path)
    pixels = read_image(path, model.grey_rule(how.compatible))
    square, geometry = model.square_of(pixels, how.framing, how.compatible)
    picture = pixels if how.most_side is None else smaller(pixels, how.most_side) if how.most_side else None
    return Film(path, stamp, square, geometry, picture, read_header(path))


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file; zeros where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _read_or_say(model: Model, path: Path, how: Reading) -> Film | ImageError:
    try:
        return read_film(model, path, how)
    except ImageError as error:
        return error
