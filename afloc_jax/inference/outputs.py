"""What `afloc localize` writes of an image: maps, overlays, and its entries in localize.json and boxes.csv."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import cv2
import numpy as np
from jaxtyping import Float, UInt8, UInt16

from afloc_jax.errors import UsageError
from afloc_jax.files import Path, write_whole
from afloc_jax.inference import dicom_out
from afloc_jax.inference.batching import in_threads
from afloc_jax.inference.figures import MOST_SIDE, figure
from afloc_jax.inference.films import Film, Reading
from afloc_jax.inference.inputs import CAPTURE, OVERLAY, PNG_MAP, SEGMENTATION
from afloc_jax.inference.journal import Result
from afloc_jax.inference.localization import Localization
from afloc_jax.inference.prompt_reading import PromptReading
from data_pipelines.images import encode_png

Maps: TypeAlias = Literal["npy", "npz", "png16", "none"]
Overlays: TypeAlias = Literal["original", "small", "none"]
Dicom: TypeAlias = Literal["segmentation", "capture", "both"]
BOX_COLUMNS = ("image", "prompt", "present", "x", "y", "width", "height", "score", "mm_per_pixel_x", "mm_per_pixel_y")
UID_COLUMN = "sop_instance_uid"


@dataclass(frozen=True)
class Outputs:
    """What is written for each image and prompt. None stands for the rule of `for_image`.

    Attributes:
        maps: the form of map files: "npy" and "npz" hold float32, "png16" 16 bits between two values that localize.json
            names.
        overlays: at the image's original size, with sides of at most `MOST_SIDE` pixels, or none.
        square: maps and overlays are those of the padded square.
        uids: the SOP instance UIDs of DICOM files are written to boxes.csv and localize.json.
        dicom: of DICOM files, write a segmentation, a secondary capture of each overlay, or both.
        identity: these carry the modules of patient and study.
    """

    maps: Maps | None = None
    overlays: Overlays | None = None
    square: bool = False
    uids: bool = False
    dicom: Dicom | None = None
    identity: bool = True

    def __post_init__(self) -> None:
        if self.dicom:
            dicom_out.check_installed()
        if self.dicom and self.square:
            raise UsageError("--dicom shows images as they are; leave out --map square")

    def for_image(self, singly: bool) -> tuple[Maps, Overlays]:
        """The maps and overlays of an image that was named singly, or found in a folder or by a pattern."""
        usual: tuple[Maps, Overlays] = ("npy", "original") if singly else ("none", "small")
        return self.maps or usual[0], self.overlays or usual[1]

    def reading(self, singly: bool, compatible: bool) -> Reading:
        """How such an image is read."""
        sides = {"original": None, "small": MOST_SIDE, "none": MOST_SIDE if self.captures else 0}
        return Reading("pad", compatible, 0 if self.square else sides[self.for_image(singly)[1]])

    @property
    def captures(self) -> bool:
        """Whether secondary captures are written."""
        return self.dicom in ("capture", "both")


def write_image(
    folder: Path,
    stem: str,
    film: Film,
    singly: bool,
    how: Outputs,
    readings: Sequence[PromptReading],
    found: Sequence[Localization],
) -> Result:
    """Writes the files of an image and returns its entry in localize.json.

    Args:
        folder: the output folder.
        stem: the start of the names of its files.
        film: the image.
        singly: whether the user named it singly.
        how: what is written.
        readings: how the model reads each prompt. Those that are empty have no localisation and no files.
        found: the localisations of the other prompts, of which there is one at least.

    Raises:
        UserError: the header of the image does not suffice for the DICOM objects that are wanted.
        OSError: a file cannot be written.
    """
    maps, overlays = how.for_image(singly)
    asked = [k for k, reading in enumerate(readings) if reading.text]
    source = dicom_out.read_source(film.path, how.identity) if how.dicom and film.header else None

    def write(numbered: tuple[int, Localization]) -> Result:
        k, one = numbered
        entry: Result = one.as_dict()
        if maps != "none":
            entry |= _write_map(folder, f"{stem}.{k}", one.square if how.square else one.heatmap, maps)
        if overlays != "none" or (source is not None and how.captures):
            drawn = _overlay(film, one, overlays, how.square)
            if overlays != "none":
                entry["overlay"] = f"{stem}.{k}{OVERLAY}"
                write_whole(folder / entry["overlay"], encode_png(drawn[:, :, ::-1]))
            if source is not None and how.captures:
                entry["capture"] = f"{stem}.{k}{CAPTURE}"
                dicom_out.write_capture(folder / entry["capture"], source, drawn, k + 1)
        one.__dict__.pop("heatmap", None)  # 30 MB of a film
        return entry

    files = dict(zip(asked, in_threads(write, list(zip(asked, found, strict=True))), strict=True))
    prompts = [
        {"prompt": "", **files.get(k, {}), "given": reading.given, **reading.plain}
        for k, reading in enumerate(readings)
    ]
    geometry, header = film.geometry, film.header
    entry: Result = {"height": geometry.height, "width": geometry.width}
    if header and header.spacing:
        entry["mm_per_pixel"] = [header.spacing[1], header.spacing[0]]
    if header and how.uids:
        entry[UID_COLUMN] = header.sop_instance_uid
    if source is not None and how.dicom != "capture":
        name = f"{stem}{SEGMENTATION}"
        if dicom_out.write_segmentation(folder / name, source, found, [readings[k].given for k in asked]):
            entry["segmentation"] = name
    entry["prompts"] = prompts
    return {**entry, "warning": found[0].warning} if found[0].warning else entry


def box_rows(entry: Result, uids: bool) -> Iterator[list[str | float | None]]:
    """The rows of boxes.csv (`BOX_COLUMNS`, and `UID_COLUMN` if `uids`) of an image's entry in localize.json.

    Prompts that are judged absent have none.
    """
    spacing = entry.get("mm_per_pixel") or [None, None]
    for prompt in (one for one in entry["prompts"] if not one.get("absent")):
        for box, score in zip(prompt.get("boxes", ()), prompt.get("scores", ()), strict=True):
            row = [entry["image"], prompt["given"], prompt["present"], *box, score, *spacing]
            yield [*row, entry.get(UID_COLUMN)] if uids else row


def _write_map(folder: Path, name: str, heatmap: Float[np.ndarray, "H W"], form: Maps) -> Result:
    buffer = io.BytesIO()
    if form == "png16":
        lowest, highest = float(heatmap.min()), float(heatmap.max())
        write_whole(folder / f"{name}{PNG_MAP}", cv2.imencode(".png", sixteen_bits(heatmap))[1].tobytes())
        return {"heatmap": f"{name}{PNG_MAP}", "heatmap_range": [lowest, highest]}
    if form == "npz":
        np.savez_compressed(buffer, heatmap=heatmap)
    else:
        np.save(buffer, heatmap)
    write_whole(folder / f"{name}.heatmap.{form}", buffer.getvalue())
    return {"heatmap": f"{name}.heatmap.{form}"}


def sixteen_bits(heatmap: Float[np.ndarray, "H W"]) -> UInt16[np.ndarray, "H W"]:
    """The map scaled to 0..65535 by its own minimum and maximum. A constant map becomes zeros."""
    lowest, highest = float(heatmap.min()), float(heatmap.max())
    factor = 65535 / (highest - lowest) if highest > lowest else 0.0
    return np.asarray(np.rint((heatmap - lowest) * factor), np.uint16)


def _overlay(film: Film, found: Localization, overlays: Overlays, square: bool) -> UInt8[np.ndarray, "H W 3"]:
    picture = film.picture
    if square:
        picture, found = film.square, found.of_square()
    if picture is None:
        raise ValueError(f"{film.path.name} was read without a picture to draw on")
    return figure(picture, found.placed, found.caption, None if overlays == "original" else MOST_SIDE)
