"""DICOM files: how they are told, decoded and shown as grey values, and what their headers say of pixels.

Which transfer syntaxes are read depends on what is installed. On a plain install they are the uncompressed ones,
JPEG Baseline, JPEG 2000 and RLE, and with the packages of `EXTRA` also JPEG Extended, JPEG Lossless, JPEG-LS and
High-Throughput JPEG 2000. Files of video, and files whose pixels lie on a server (JPIP), are refused.
"""

import contextlib
import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float64, Real, UInt8

from afloc_jax.extras import install

if TYPE_CHECKING:
    from pydicom import Dataset, FileDataset
    from pydicom.uid import UID

EXTRA = install("dicom")
_BLOCK = 1 << 20  # pixels that are computed in float64 at a time
_CLASS = b"\2\0\2\0UI"  # the element of a file's header that says what kind of object it holds
_VIDEO = ("MPEG", "Fragmentable MPEG", "HEVC", "SMPTE")
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


class Refused(Exception):
    """A DICOM file that is no readable image. The message says why, and does not name the file."""


@dataclass(frozen=True)
class Header:
    """What the header of a DICOM file says of its pixels.

    Attributes:
        sop_instance_uid: the identifier of the image; empty if there is none.
        spacing: millimetres between the centres of neighbouring rows and of neighbouring columns; None if unknown.
            That of the patient's plane where it is given, else of the detector or of the scanned film.
    """

    sop_instance_uid: str = ""
    spacing: tuple[float, float] | None = None


def kind_of(path: str | os.PathLike[str]) -> Literal["image", "other", "none"]:
    """What a file is by its first bytes: a DICOM image, another DICOM object, or no DICOM file, as is one without them.

    Reports, plans, segmentations and the indices of media (DICOMDIR) are others. Kinds of objects that pydicom does not
    know count as images. Raises OSError where the file cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(2048)
    if start[128:132] != b"DICM":
        return "none"
    from pydicom.uid import UID

    place = start.find(_CLASS)
    length = int.from_bytes(start[place + 6 : place + 8], "little") if place > 0 else 0
    kind = UID(start[place + 8 : place + 8 + length].rstrip(b"\0 ").decode("ascii", "replace"))
    return "image" if kind.name == kind or "Image" in kind.name else "other"


def read_header(path: str | os.PathLike[str]) -> Header | None:
    """The header of a regular file that is a DICOM image; None for other files, and for headers that are damaged."""
    with contextlib.suppress(Exception):  # pydicom can raise almost any exception
        if kind_of(path) != "image":
            return None
        import pydicom

        dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID", *_SPACINGS])
        return Header(str(dataset.get("SOPInstanceUID") or ""), _spacing(dataset))
    return None


def spacing_in(data: bytes) -> tuple[float, float] | None:
    """`Header.spacing` of the bytes of a DICOM file, also of one without the usual header; None if it is unknown."""
    with contextlib.suppress(Exception):  # as above
        import pydicom

        file = io.BytesIO(data)
        return _spacing(pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=[*_SPACINGS]))
    return None


def _spacing(dataset: "Dataset") -> tuple[float, float] | None:
    for name in _SPACINGS:
        with contextlib.suppress(TypeError, ValueError):
            rows, columns = (float(value) for value in dataset.get(name))
            if 0 < rows < np.inf and 0 < columns < np.inf:
                return rows, columns
    return None


def decode(data: bytes, most_pixels: int) -> UInt8[np.ndarray, "H W"] | Real[np.ndarray, "H W 3"]:
    """The pixels of a DICOM file of one frame: grey as they are shown (see `as_shown`), or red, green and blue.

    Raises Refused, also for more than `most_pixels`, and MemoryError.
    """
    try:
        import pydicom
    except ImportError:
        raise Refused("reading DICOM needs one more package; run: pip install pydicom") from None
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
        if syntax is not None:
            _check_syntax(syntax)
        if "Rows" not in dataset:
            kind = getattr(dataset.get("SOPClassUID"), "name", "") or "no image"
            raise Refused(f"a DICOM file without an image ({kind})")
        if dataset.Rows * dataset.Columns * int(dataset.get("NumberOfFrames") or 1) > most_pixels:
            raise ValueError(f"more than {most_pixels:,} pixels")
        pixels = _pixels(dataset, syntax)
        interpretation = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
        if interpretation == "PALETTE COLOR" and pixels.ndim == 2:
            pixels = pydicom.pixels.apply_color_lut(pixels, dataset)
        if pixels.ndim == 2:
            return as_shown(pixels, dataset, interpretation)
    except (Refused, MemoryError):
        raise
    except Exception as error:  # pydicom and its decoders can raise almost any exception
        why = " ".join(str(error).split())
        raise Refused(f"not a readable DICOM image ({type(error).__name__}: {why})") from None
    if pixels.ndim == 3 and pixels.shape[-1] == 3 and not interpretation.startswith("MONOCHROME"):
        return pixels
    raise Refused(f"a DICOM image of shape {list(pixels.shape)}; only single frames can be used")


def _check_syntax(syntax: "UID") -> None:
    """Raises Refused for a transfer syntax that cannot be read here, and says what would help."""
    from pydicom.pixels import get_decoder

    if not syntax.is_transfer_syntax or syntax.is_private:
        raise Refused(f"an unknown transfer syntax, {syntax}")
    if syntax.name.startswith(_VIDEO):
        raise Refused(f"a video ({syntax.name}); only still images can be read")
    if syntax.name.startswith("JPIP"):
        raise Refused(f"its pixels lie on a server ({syntax.name}); fetch the image in another transfer syntax")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise Refused(f"compressed as {syntax.name}, for which there is no decoder") from None
    if not decoder.is_available:
        raise Refused(f"compressed as {syntax.name}, which needs more packages; run: {EXTRA}")


def _pixels(dataset: "FileDataset", syntax: "UID | None") -> Real[np.ndarray, "*shape"]:
    """The stored pixels. Pillow is tried first, so that grey values do not depend on which decoders are installed."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGExtended12Bit, JPEGLossless

    plugins = get_decoder(syntax).available_plugins if syntax is not None else ()
    if syntax == JPEGExtended12Bit and dataset.get("BitsStored") != 8:  # Pillow reads 8 bits of these alone
        if "gdcm" not in plugins:
            raise Refused(f"compressed as {syntax.name} with 12 bits, which needs more packages; run: {EXTRA}")
        dataset.file_meta.TransferSyntaxUID = JPEGLossless  # GDCM decodes it, and pydicom does not ask it to
    elif "pillow" in plugins:
        dataset.pixel_array_options(decoding_plugin="pillow")
        try:
            return dataset.pixel_array
        except MemoryError:
            raise
        except Exception:
            dataset.pixel_array_options(decoding_plugin="")
    return dataset.pixel_array


def as_shown(pixels: Real[np.ndarray, "H W"], dataset: "Dataset", interpretation: str) -> UInt8[np.ndarray, "H W"]:
    """The stored pixels of a grey DICOM image as they are shown, scaled from their minimum and maximum to 0..255.

    Windows and modality tables are applied, MONOCHROME1 is inverted, and pixels of padding become black. This happens
    in blocks of rows, once for the range and once for the pixels: a mammogram in float64 would take a gigabyte.

    Raises ValueError, and whatever pydicom raises, for a data set that cannot be shown.
    """
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    padding = dataset.get("PixelPaddingValue")
    shown = np.ones(pixels.shape, bool) if padding is None else pixels != padding
    if not shown.any():
        shown[:] = True
    step = max(1, _BLOCK // pixels.shape[1])
    blocks = [slice(start, start + step) for start in range(0, len(pixels), step)]

    def values(rows: slice) -> Float64[np.ndarray, "rows W"]:
        block = pixels[rows]
        if interpretation.startswith("MONOCHROME"):
            block = apply_voi_lut(apply_modality_lut(block, dataset), dataset)
        return np.asarray(block * -1.0 if interpretation == "MONOCHROME1" else block, np.float64)

    ranges = [(part.min(), part.max()) for rows in blocks if (part := values(rows)[shown[rows]]).size]
    low, high = float(np.min(ranges)), float(np.max(ranges))
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels that are no finite numbers")
    scaled = np.zeros(pixels.shape, np.uint8)
    for rows in blocks if high > low else ():
        part = np.where(shown[rows], values(rows), low)  # outside the collimator: black, and not part of the range
        scaled[rows] = np.rint((part - low) * (255.0 / (high - low)))
    return scaled
