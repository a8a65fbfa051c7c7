"""Hostile images: bombs, files with fewer rows than they state, NaN, scans without end, headers that lie."""

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hostile import valid_files as valid
from benchmarks.hostile.changes import cut, flipped, replaced
from benchmarks.hostile.models import heat_map_of, model_folder
from benchmarks.hostile.running import Group, Input
from benchmarks.hostile.valid_files import picture, png_chunk, radiograph


def png(
    height: int, width: int, rows: int, depth: int = 8, colour: int = 0, interlaced: int = 0, content: bytes = b"\xc8"
) -> bytes:
    """A PNG whose header states `height` rows, with that many `rows` of one byte in it."""
    pixels = zlib.compressobj(9)
    if interlaced:  # seven passes, of pixels at distances of 8, 4, 2 and 1
        wide = [len(range(x, width, step)) for x, step in ((0, 8), (4, 8), (0, 4), (2, 4), (0, 2), (1, 2), (0, 1))]
        high = [len(range(y, height, step)) for y, step in ((0, 8), (0, 8), (4, 8), (0, 4), (2, 4), (0, 2), (1, 2))]
        lines = [b"\0" + content * columns for columns, lines in zip(wide, high, strict=True) for _ in range(lines)]
    else:
        lines = [b"\0" + content * (width * depth // 8 * {0: 1, 2: 3}[colour])] * rows
    packed = b"".join(pixels.compress(line) for line in lines[:rows]) + pixels.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _with_one(value: float) -> np.ndarray:
    pixels = radiograph(1).astype(np.float32)
    pixels[3, 4] = value
    return pixels


def scans(count: int) -> bytes:
    """A progressive JPEG with further scans, which cost time and no bytes."""
    data = picture(radiograph(2, 64, 64), "JPEG", progressive=True)
    return data[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" * count + data[-2:]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
BAD_IMAGES = {
    "bomb.png": png(20_000, 20_000, 1),
    "short.png": png(40, 30, 20),
    "interlaced.png": png(40, 30, 50, interlaced=1),
    "nan.tif": picture(_with_one(np.nan), "TIFF"),
    "inf.tif": picture(_with_one(-np.inf), "TIFF"),
    "scans.jpg": scans(65),
    "eps.png": EPS,
    "gif.png": picture(radiograph(3), "GIF"),
    "empty.png": b"",
}


# Images, which are localised on


def _pictures(folder: Path) -> None:
    model_folder(folder / "model")
    for name, content in valid.pictures().items():
        (folder / name).write_bytes(content)


def _images() -> Iterator[Input]:
    def changed(file: str, name: str, content: bytes) -> Input:
        return Input(f"{file}: {name}", replaced(file, content), (f"IN/{file}",))

    for name, content in BAD_IMAGES.items():
        yield Input(name, replaced(name, content), (f"IN/{name}",), compared=False)
    for name in ("none.png", "model", "x" * 300 + ".png"):
        yield Input(f"image {name[:20]!r}", words=(f"IN/{name}",), compared=False)
    yield Input("an empty path", words=("",), compared=False)
    for name, make in SPECIAL.items():
        yield Input(name, make, ("IN/special.png",), compared=False)
    for file, content in valid.pictures().items():
        for share in (0.02, 0.2, 0.5, 0.8, 0.97):
            yield Input(f"{file}: cut after {share:.0%}", cut(file, share), (f"IN/{file}",))
        if file.endswith(".png"):
            for share in (0.01, 0.1, 0.3, 0.6, 0.9):
                yield Input(f"{file}: a byte at {share:.0%} inverted", flipped(file, share), (f"IN/{file}",))
        yield changed(file, "bytes behind it", content + b"more")
    header = struct.Struct(">IIBBBBB")
    for name, values in HEADERS.items():
        chunk = valid.png_chunk(b"IHDR", header.pack(*values))
        yield changed("grey.png", name, valid.pictures()["grey.png"][:8] + chunk + valid.pictures()["grey.png"][33:])
    for name, elements in DICOM.items():
        yield changed("grey.dcm", name, valid.dicom(**elements))


HEADERS = {  # of a PNG: width, height, depth, colour, compression, filter, passes
    "no pixels": (0, 0, 8, 0, 0, 0, 0),
    "2^31 columns": (2**31, 24, 8, 0, 0, 0, 0),
    "2^32 - 1 pixels a side": (2**32 - 1, 2**32 - 1, 8, 0, 0, 0, 0),
    "more rows than there are": (20, 25, 8, 0, 0, 0, 0),
    "a depth of 3 bits": (20, 24, 3, 0, 0, 0, 0),
    "colour type 5": (20, 24, 8, 5, 0, 0, 0),
    "a palette that is missing": (20, 24, 8, 3, 0, 0, 0),
    "compression 1": (20, 24, 8, 0, 1, 0, 0),
    "passes that it has not": (20, 24, 8, 0, 0, 0, 1),
    "colours that it has not": (20, 24, 8, 2, 0, 0, 0),
    "7 x 7 pixels": (7, 7, 8, 0, 0, 0, 0),
}
DICOM: dict[str, dict[str, Any]] = {
    "no rows": {"Rows": 0},
    "60,000 rows": {"Rows": 60_000, "Columns": 60_000},
    "a row too many": {"Rows": valid.HEIGHT + 1},
    "no columns": {"Columns": 0},
    "99 bits": {"BitsAllocated": 99},
    "no pixels": {"PixelData": b""},
    "a million frames": {"NumberOfFrames": 1_000_000},
    "three channels that it has not": {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"},
    "a window of NaN": {"WindowCenter": "NaN", "WindowWidth": "NaN"},
    "a slope of infinity": {"RescaleSlope": "inf", "RescaleIntercept": 0},
}


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "special.png")


def _sparse(folder: Path) -> None:
    with (folder / "special.png").open("wb") as file:
        file.truncate(2 << 30)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "a pipe": _pipe,
    "/dev/zero": lambda folder: (folder / "special.png").symlink_to("/dev/zero"),
    "a link to itself": lambda folder: (folder / "special.png").symlink_to("special.png"),
    "a sparse file of 2 GiB": _sparse,
    "169 million pixels that are cut": lambda folder: replaced("special.png", png(13_000, 13_000, 12_999))(folder),
    "texts of 128 MB": lambda folder: replaced("special.png", _exploding_text())(folder),
}


def _exploding_text() -> bytes:
    """A PNG with 128 texts of 1 MiB, packed to a thousandth."""
    text = valid.png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * (1 << 20), 9))
    whole = valid.picture(valid.radiograph())
    return whole[:33] + text * 128 + whole[33:]


def groups() -> list[Group]:
    """The group of this module."""
    localize = ("localize", "IN/model", "--prompt", "small left effusion", "--out", "OUT")
    return [Group("images", _pictures, localize, [*_images()], heat_map_of)]
