"""The files of a data set: checks that all of them are there, and their paths.

The checks run before any image is decoded. The error for a wrong folder or a partial download names the files.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from afloc_jax.errors import UserError
from afloc_jax.files import read_json, sha256_of
from afloc_jax.tables import read_text, shape_of
from data_pipelines.building.items import LISTED_IN_ERRORS, listed
from data_pipelines.images import IMAGE_SUFFIXES

SUMS = "SHA256SUMS.txt"  # a line "<sum>  <path>" per file, shipped by PhysioNet


class IncompleteDataError(UserError):
    """An incomplete download. `lacking` lists all that is missing, a line each; the message shows the first few."""

    def __init__(self, message: str, lacking: Sequence[str]):
        super().__init__(message)
        self.lacking = list(lacking)


@dataclass(frozen=True)
class Files:
    """All files of a data set that match a pattern.

    Attributes:
        pattern: a pattern of Path.glob relative to the raw folder; not empty.
        purpose: the kind of files, for error messages.
        count: the published number of files; None for at least one.
        columns: columns that the header of a table must have.
        optional: whether the files may be missing.
        rows: the published number of rows of a table (without its header), or of entries of a JSON list; None if not
            checked.
        part: whether the files may be missing with `partial`.
    """

    pattern: str
    purpose: str
    count: int | None = None
    columns: tuple[str, ...] = ()
    optional: bool = False
    rows: int | None = None
    part: bool = False


def check_files(raw: Path, expected: Sequence[Files], partial: bool = False) -> list[str]:
    """The patterns whose number of files below `raw` differs from the published number, a line each.

    With `partial` the raw folder may hold a part of the data set: any count above 0 and any number of rows is accepted.

    Raises IncompleteDataError that names patterns without a file, tables that lack a column or rows, and tables that
    differ from the published checksums, if those are in the folder.
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
    """The error for these problems of a raw folder."""
    hint = ""
    if any("the data set has" in problem for problem in problems):
        hint = "; with a part of the data set on purpose, pass --builder partial=true"
    shown = listed(problems, LISTED_IN_ERRORS * 2)
    return IncompleteDataError(f"{raw} is not complete: {shown}{hint}", problems)


def _problem_of_table(path: Path, files: Files, partial: bool, checksum: str) -> str:
    header, rows = _shape(path, files)
    missing = [column for column in files.columns if column not in header]
    if missing:
        return f"lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
    if checksum and sha256_of(path) != checksum:
        return f"differs from its checksum in {SUMS}; fetch it again, or remove {SUMS} if it was cut on purpose"
    if files.rows is not None and not partial and rows is not None and rows != files.rows:
        what = "entries" if path.suffix == ".json" else "rows"
        return f"has {rows:,} {what}, the data set has {files.rows:,}: it was cut short, or is of another release"
    return ""


def _shape(path: Path, files: Files) -> tuple[list[str], int | None]:
    """The columns of a table and the number of its rows, or of the entries of a JSON list, where they are checked.

    A file that its builder will refuse has none.
    """
    try:
        if path.suffix == ".json" and files.rows is not None:
            return [], len(read_json(path))
        return shape_of(path) if files.columns or files.rows is not None else ([], None)
    except (TypeError, UserError):
        return [], None


def _checksums(raw: Path) -> dict[Path, str]:
    """Path -> SHA-256, from all lists of checksums in the raw folder and in the two levels of folders below it."""
    sums = {}
    for path in (*raw.glob(SUMS), *raw.glob(f"*/{SUMS}"), *raw.glob(f"*/*/{SUMS}")):
        for line in read_text(path).split("\n"):
            digest, _, name = line.strip().partition(" ")
            if name and not name.endswith(IMAGE_SUFFIXES):  # hundreds of thousands of images are not checked
                sums[path.parent / name.strip().removeprefix("*")] = digest.lower()
    return sums


def one_file(raw: Path, pattern: str) -> Path:
    """The file below `raw` that matches a pattern, the first by name if several do. Raises UserError if none does."""
    paths = sorted(path for path in raw.glob(pattern) if path.is_file())
    if not paths:
        raise UserError(f"no file {pattern} in {raw}")
    return paths[0]


def index_files(raw: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """File name -> path of every file below `raw` with one of the suffixes (lower case, with the dot)."""
    wanted = set(suffixes)
    return {path.name: path for path in sorted(raw.rglob("*")) if path.suffix.lower() in wanted and path.is_file()}
