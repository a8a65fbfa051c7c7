"""The files that a data set consists of: whether they are all there, and where they lie.

Everything here is checked before any image is decoded: a wrong folder or a partial download is named file by file.
"""

import csv
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from afloc_jax.errors import UserError
from afloc_jax.files import read_json, sha256_of
from data_pipelines.building.items import LISTED_IN_ERRORS, listed
from data_pipelines.building.tables import open_table
from data_pipelines.images import IMAGE_SUFFIXES

SUMS = "SHA256SUMS.txt"  # a line "<sum>  <path>" per file, as PhysioNet ships it beside the files


class IncompleteDataError(UserError):
    """A download that lacks something. `lacking` names all of it, a line each; the message shows the first few."""

    def __init__(self, message: str, lacking: Sequence[str]):
        super().__init__(message)
        self.lacking = list(lacking)


@dataclass(frozen=True)
class Files:
    """Files of a data set, all that match a pattern.

    Attributes:
        pattern: relative to the raw folder, as Path.glob reads it; "" is not allowed.
        purpose: what they are, for the message that misses them.
        count: how many the publisher ships; None: at least one.
        columns: what a table must have in its header.
        optional: whether the data set can do without them.
        rows: how many rows a table has as published (below its header; entries of a JSON list); None: not checked.
        part: whether they may be missing with `partial`.
    """

    pattern: str
    purpose: str
    count: int | None = None
    columns: tuple[str, ...] = ()
    optional: bool = False
    rows: int | None = None
    part: bool = False


def check_files(raw: Path, expected: Sequence[Files], partial: bool = False) -> list[str]:
    """Numbers of files below `raw` that differ from the publisher's: a line per pattern.

    With `partial`, any count above 0 and any number of rows will do: the raw folder holds a part of the data set.

    Raises IncompleteDataError naming what is missing altogether, tables that lack a column or rows, and tables that
    differ from the publisher's checksums where those lie beside them.
    """
    problems, counts = [], []
    sums = _checksums(raw)
    for files in expected:
        paths = sorted(path for path in raw.glob(files.pattern) if path.is_file())
        if not paths and not (files.optional or (partial and files.part)):
            problems.append(f"{files.pattern} is missing ({files.purpose})")
        elif paths and files.count is not None and len(paths) != files.count and not partial:
            counts.append(f"{files.pattern}: {len(paths):,} files, the data set has {files.count:,} ({files.purpose})")
        for path in paths if not files.pattern.endswith(IMAGE_SUFFIXES) else ():
            problem = _problem_of_table(path, files, partial, sums.get(path, ""))
            problems += [f"{path.relative_to(raw)} {problem}"] if problem else []
    if problems:
        raise incomplete(raw, [*problems, *counts])
    return counts


def incomplete(raw: Path, problems: Sequence[str]) -> IncompleteDataError:
    """The error that names what is wrong with the files of a raw folder."""
    hint = ""
    if any("the data set has" in problem for problem in problems):
        hint = "; with a part of the data set on purpose, pass --builder partial=true"
    shown = listed(problems, LISTED_IN_ERRORS * 2)
    return IncompleteDataError(f"{raw} is not complete: {shown}{hint}", problems)


def _problem_of_table(path: Path, files: Files, partial: bool, checksum: str) -> str:
    try:
        with open_table(path) as file:
            header = [name.strip() for name in next(csv.reader(file), [])] if files.columns else []
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error):
        header = []
    missing = [column for column in files.columns if column not in header]
    if missing:
        return f"lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
    if checksum and sha256_of(path) != checksum:
        return f"differs from its checksum in {SUMS}; fetch it again, or remove {SUMS} if it was cut on purpose"
    if files.rows is not None and not partial:
        rows = _rows(path)
        if rows is not None and rows != files.rows:
            what = "entries" if path.suffix == ".json" else "rows"
            return f"has {rows:,} {what}, the data set has {files.rows:,}: it was cut short, or is of another release"
    return ""


def _rows(path: Path) -> int | None:
    """Rows of a table below its header, or entries of a JSON list; None where `read_table` will refuse it."""
    try:
        if path.suffix == ".json":
            return len(read_json(path))
        with open_table(path) as file:
            return max(0, sum(1 for row in csv.reader(file) if row) - 1)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, TypeError, UserError):
        return None


def _checksums(raw: Path) -> dict[Path, str]:
    """Path -> SHA-256, from every list of checksums in the raw folder or in the top folders of a release below it."""
    sums = {}
    for path in (*raw.glob(SUMS), *raw.glob(f"*/{SUMS}"), *raw.glob(f"*/*/{SUMS}")):
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            digest, _, name = line.strip().partition(" ")
            if name and not name.endswith(IMAGE_SUFFIXES):  # a release lists hundreds of thousands of images
                sums[path.parent / name.strip().removeprefix("*")] = digest.lower()
    return sums


def one_file(raw: Path, pattern: str) -> Path:
    """The file below `raw` that matches; the first by name where several do. Raises UserError when none does."""
    paths = sorted(path for path in raw.glob(pattern) if path.is_file())
    if not paths:
        raise UserError(f"no file {pattern} in {raw}")
    return paths[0]


def index_files(raw: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """File name -> path of every file below `raw` with one of the suffixes (lower case, with the dot)."""
    wanted = set(suffixes)
    return {path.name: path for path in sorted(raw.rglob("*")) if path.suffix.lower() in wanted and path.is_file()}
