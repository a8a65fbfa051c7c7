"""The images that a command is given: files, folders and patterns become one list of files."""

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from afloc_jax.errors import UsageError
from afloc_jax.files import AnyPath, Path, user_path
from data_pipelines.dicom import kind_of
from data_pipelines.images import DICOM_SUFFIXES, IMAGE_SUFFIXES

# The ends of the names of results, which are no images to look at although they may lie in a folder of them.
OVERLAY, PNG_MAP, SEGMENTATION, CAPTURE = ".overlay.png", ".heatmap.png", ".seg.dcm", ".capture.dcm"
_RESULTS = (OVERLAY, PNG_MAP, SEGMENTATION, CAPTURE)


@dataclass(frozen=True)
class Given:
    """An image file. `singly` says that the user named it, and neither its folder nor a pattern."""

    path: Path
    singly: bool


def list_images(given: Sequence[AnyPath], flag: str = "", out: Path | None = None) -> list[Given]:
    """The image files among the given files, folders (with their subfolders) and patterns, each once.

    In folders and patterns, images are files with a suffix of `IMAGE_SUFFIXES`, and DICOM files of any name whose
    header says that they are images. Hidden files and folders, and earlier results below `out` are passed over. Those
    of a folder or pattern are sorted. A file that is named singly is kept whatever it is, and is read or reported
    later.

    Args:
        given: paths; in patterns "*" and "?" stand for letters of a name, "**" for folders of any depth.
        flag: the name of the flag in errors, if any.
        out: the folder that results are written to.

    Raises:
        UsageError: a path is on remote storage, or a folder or pattern has no image.
    """
    found: dict[Path, bool] = {}
    for text in given:
        path = user_path(text, flag)
        if path.is_dir():
            some = _below(path)
        elif _is_pattern(path):
            some = _matching(path)
        else:
            found[path] = True
            continue
        images = sorted(file for file in some if _is_image(file) and not _is_result(file, out))
        if not images:
            what = "holds no image" if path.is_dir() else "matches no image"
            kinds = ", ".join(IMAGE_SUFFIXES)
            raise UsageError(f"{f'{flag} ' if flag else ''}{path}: {what} ({kinds}, or DICOM of any name)")
        for image in images:
            found.setdefault(image, False)
    return [Given(path, singly) for path, singly in found.items()]


def printable(path: Path) -> str:
    """The path as results show it. Bytes of a name that are no UTF-8 are spelled out."""
    return os.fspath(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def output_names(paths: Collection[Path]) -> dict[Path, str]:
    """The start of the file names of each image's results. All differ, also on file systems that ignore case.

    It is the name without the suffix of an image, with as many names of folders in front as make it distinct.

    Raises:
        UsageError: on some file systems two names would be one.
    """
    names: dict[Path, str] = {}
    by_stem: dict[str, list[tuple[Path, list[str]]]] = {}
    for path in dict.fromkeys(paths):
        parts = [*path.absolute().parent.parts[1:], _stem(path)]
        by_stem.setdefault(parts[-1].lower(), []).append((path, parts))
    for same in by_stem.values():
        _name(same, 1, names)
    if len({name.lower() for name in names.values()}) < len(names):
        raise UsageError("some images would write to the same file names; localise them into separate folders")
    return {path: names[path] for path in dict.fromkeys(paths)}


def _name(same: list[tuple[Path, list[str]]], length: int, names: dict[Path, str]) -> None:
    """Names images whose last `length` parts are equal: by these parts, or by more of them."""
    if len(same) == 1:
        path, parts = same[0]
        names[path] = "_".join(parts[-length:])
        return
    if all(length >= len(parts) for _, parts in same):
        names.update((path, path.name) for path, _ in same)  # a.png and a.jpg of one folder
        return
    groups: dict[str, list[tuple[Path, list[str]]]] = {}
    for path, parts in same:
        groups.setdefault("_".join(parts[-length - 1 :]).lower(), []).append((path, parts))
    for group in groups.values():
        _name(group, length + 1, names)


def _stem(path: Path) -> str:
    """The name without the suffix of an image. That of a DICOM file may be a UID, which has no suffix."""
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def _is_pattern(path: Path) -> bool:
    return glob.has_magic(os.fspath(path)) and not path.exists()


def _matching(pattern: Path) -> Iterator[Path]:
    for name in glob.iglob(os.fspath(pattern), recursive=True):
        path = Path(name)
        yield from _below(path) if path.is_dir() else [path]


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place) / name for name in names if not name.startswith("."))


def _is_image(path: Path) -> bool:
    if not os.path.isfile(path):  # a pipe, which would be waited for, or a link to nothing
        return False
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES and suffix not in DICOM_SUFFIXES:
        return True
    try:
        kind = kind_of(path)
    except OSError:
        return suffix in DICOM_SUFFIXES  # named as one that cannot be read
    return kind == "image" or (kind == "none" and suffix in DICOM_SUFFIXES)


def _is_result(path: Path, out: Path | None) -> bool:
    if out is None or not path.name.endswith(_RESULTS):
        return False
    return os.path.abspath(path).startswith(os.path.join(os.path.abspath(out), ""))
