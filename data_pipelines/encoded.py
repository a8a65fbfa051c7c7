"""Checks of encoded images beside those of their decoders: bytes that end early, and bytes that become far too many."""

import math
import struct
import zlib
from collections.abc import Iterator

_PART = 1 << 16  # bytes that are unpacked at a time
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour types
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # the transfer syntax of a DICOM file that is packed as a whole


def is_short_png(data: bytes) -> bool:
    """Whether the pixels of a PNG end before its last row. Decoders fill the rest with black without a word."""
    header = next((content for kind, content, _ in _chunks(data) if kind == b"IHDR"), b"")
    if len(header) != 13:
        return False
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS.get(colour, 1)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(math.ceil((width - x) / across), math.ceil((height - y) / down)) for x, y, across, down in passes]
    wanted = sum(rows * (1 + math.ceil(columns * bits / 8)) for columns, rows in sizes if columns > 0 and rows > 0)
    return _unpacked(b"".join(content for kind, content, _ in _chunks(data) if kind == b"IDAT"), wanted) < wanted


def lacks_palette(png: bytes) -> bool:
    """Whether the pixels of a PNG are numbers of colours that it lacks. Decoders invent grey values for them."""
    return png[25:26] == b"\3" and all(kind != b"PLTE" for kind, _, _ in _chunks(png))


def is_cut_png(data: bytes) -> bool:
    """Whether a chunk of a PNG claims more bytes than follow it. OpenCV would take memory for 4 GiB of them."""
    return any(len(content) < length for _, content, length in _chunks(data))


def is_interlaced_png(data: bytes) -> bool:
    """Whether the rows of a PNG are stored in seven passes."""
    return data[28:29] == b"\1"


def unpacks_beyond(dicom: bytes, most: int) -> bool:
    """Whether a DICOM file is packed as a whole and has more than `most` bytes when it is unpacked."""
    if len(dicom) < 144 or _DEFLATED not in dicom[:2048]:
        return False
    start = 144 + struct.unpack("<I", dicom[140:144])[0]  # the length of the group in front, which is not packed
    return _unpacked(dicom[start:], most + 1, -zlib.MAX_WBITS) > most


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """The kind, the content and the claimed length of each chunk of a PNG, until its end."""
    position, kind = 8, b""
    while position + 8 <= len(data) and kind != b"IEND":
        (length,), kind = struct.unpack(">I", data[position : position + 4]), data[position + 4 : position + 8]
        yield kind, data[position + 8 : position + 8 + length], length
        position += 12 + length


def _unpacked(data: bytes, most: int, bits: int = zlib.MAX_WBITS) -> int:
    """The number of bytes that packed data has, counted up to `most` in little memory."""
    unpacker, count = zlib.decompressobj(bits), 0
    while count < most and not unpacker.eof:
        try:
            part = unpacker.decompress(data, _PART)
        except zlib.error:
            break
        if not part:
            break
        count, data = count + len(part), unpacker.unconsumed_tail
    return count
