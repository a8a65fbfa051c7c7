"""Localisations as DICOM objects: a segmentation of an image, and secondary captures of its overlays.

They are for pictures in an archive, beside the image they came from. So they carry the modules of patient and study of
that image, unless they are written without identity: then these are empty, all identifiers are new, and nothing leads
back to the image. highdicom writes them.
"""

import importlib.util
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import Path, write_whole
from afloc_jax.inference.localization import Localization
from data_pipelines.dicom import EXTRA

if TYPE_CHECKING:
    from pydicom import Dataset

_LONGEST_LABEL = 64  # letters of a text of the kind "long string"
_MAKER = "afloc_jax"
_OF_PATIENT_AND_STUDY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
# What is kept without identity: the size of the image, and where its pixels lie.
_OF_PIXELS = (
    "SOPClassUID",
    "Modality",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SliceThickness",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "PatientOrientation",
)
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def check_installed() -> None:
    """Raises UsageError where the package that writes DICOM objects is missing."""
    if importlib.util.find_spec("highdicom") is None:
        raise UsageError(f"--dicom needs the package highdicom; run: {EXTRA}")


def read_source(path: Path, identity: bool) -> "Dataset":
    """The header of a DICOM image, as results refer to it.

    Args:
        path: the file.
        identity: keep the modules of patient and study, and the identifiers.

    Raises:
        UserError: it lacks an identifier without which nothing can refer to it.
    """
    import pydicom

    try:
        given: Dataset = pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:  # pydicom can raise almost any exception
        raise UserError(f"{path.name}: its header cannot be read ({type(error).__name__})") from None
    if identity:
        source = given
        if missing := [name for name in _UIDS if not given.get(name)]:
            why = f"no DICOM object can refer to it, for it has no {missing[0]}"
            raise UserError(f"{path.name}: {why}; --no_identity refers to none")
    else:
        source = pydicom.Dataset()
        for name in _OF_PIXELS:
            if name in given:
                setattr(source, name, given.get(name))
        for name in (*_UIDS, *(["FrameOfReferenceUID"] if "FrameOfReferenceUID" in given else [])):
            setattr(source, name, pydicom.uid.generate_uid())
    for name in _OF_PATIENT_AND_STUDY:
        if name not in source:
            setattr(source, name, None)
    return source


def write_segmentation(path: Path, source: "Dataset", found: Sequence[Localization], labels: Sequence[str]) -> bool:
    """Writes a segmentation with a segment for each prompt: where its map exceeds the threshold.

    Prompts that are judged absent, and maps without such a region, have no segment.

    Args:
        path: the file.
        source: the image, see `read_source`.
        found: the localisations in it.
        labels: the names of the segments, of which 64 letters are kept.

    Returns:
        Whether there was a segment, and so a file.

    Raises:
        UserError: the header of the image does not suffice.
        OSError: the file cannot be written.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    kept = [(label, one) for label, one in zip(labels, found, strict=True) if len(one.boxes) and not one.is_absent]
    if not kept:
        return False
    algorithm = AlgorithmIdentificationSequence("AFLoc", codes.cid7162.ArtificialIntelligence, _version())
    segments = [
        SegmentDescription(
            number,
            _label(label),
            codes.SCT.MorphologicallyAbnormalStructure,
            codes.SCT.MorphologicallyAbnormalStructure,
            "AUTOMATIC",
            algorithm,
        )
        for number, (label, _) in enumerate(kept, start=1)
    ]
    masks = np.stack([one.mask for _, one in kept], axis=-1)[None].astype(np.uint8)
    _write(
        path,
        lambda uids: Segmentation(
            [source], masks, "BINARY", segments, uids[0], 1, uids[1], 1, _MAKER, _MAKER, _version(), "0",
            content_label="AFLOC",
        ),
    )  # fmt: skip
    return True


def write_capture(path: Path, source: "Dataset", picture: UInt8[np.ndarray, "H W 3"], number: int) -> None:
    """Writes a picture (red, green and blue) as a secondary capture beside an image.

    Args:
        path: the file.
        source: the image, see `read_source`.
        picture: what is shown.
        number: that of the capture among those of the image, from 1.

    Raises:
        UserError: the header of the image does not suffice.
        OSError: the file cannot be written.
    """
    from highdicom.sc import SCImage

    def make(uids: Sequence[str]) -> "Dataset":
        made = SCImage.from_ref_dataset(
            source, picture, "RGB", 8, "PATIENT", uids[0], 1, uids[1], number, _MAKER,
            patient_orientation=("L", "F"), transfer_syntax_uid="1.2.840.10008.1.2.1",
        )  # fmt: skip
        made.PatientOrientation = source.get("PatientOrientation")  # highdicom wants one, and it may be unknown
        if burned := source.get("BurnedInAnnotation"):
            made.BurnedInAnnotation = burned
        return made

    _write(path, make)


def _write(path: Path, make: Callable[[Sequence[str]], "Dataset"]) -> None:
    import pydicom

    buffer = io.BytesIO()
    try:
        made = make([pydicom.uid.generate_uid(), pydicom.uid.generate_uid()])
        made.save_as(buffer)
    except Exception as error:  # highdicom raises what its checks and pydicom raise
        raise UserError(f"{path.name} cannot be made from the header of the image ({type(error).__name__})") from None
    write_whole(path, buffer.getvalue())


def _label(text: str) -> str:
    return " ".join(text.replace("\\", "/").split())[:_LONGEST_LABEL]


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("afloc-jax")
    except metadata.PackageNotFoundError:
        return "clone"
