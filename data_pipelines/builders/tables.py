"""Tables and JSON files of data sets, and whether all files that a data set consists of are there.

Everything here is checked before any image is decoded: a wrong folder or a partial download is named file by file.
"""

import csv
import gzip
import hashlib
import json
import sys
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from xml.etree import ElementTree

from afloc_jax.errors import UserError
from data_pipelines.builders.items import LISTED_IN_ERRORS

csv.field_size_limit(sys.maxsize)  # a report or a run-length mask in one cell


SUMS = "SHA256SUMS.txt"  # a line "<sum>  <path>" per file, as PhysioNet ships it beside the files
_IMAGES = (".png", ".jpg", ".tif", ".dcm", ".dicom")


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
        optional: whether the data set can do without.
        rows: how many rows a table has as published (below its header; entries of a JSON list); None: not checked.
        part: whether a part of the data set (`partial`) can do without.
    """

    pattern: str
    purpose: str
    count: int | None = None
    columns: tuple[str, ...] = ()
    optional: bool = False
    rows: int | None = None
    part: bool = False


def check_files(raw: Path, expected: Sequence[Files], partial: bool = False) -> list[str]:
    """What there is too little (or too much) of below `raw`: a line per pattern, none if all is there.

    `partial` accepts any count above 0 and any number of rows, for those who hold a part of a data set.

    Raises IncompleteDataError naming what is missing altogether, tables that lack a column or rows, and tables that
    differ from the publisher's checksums where those lie beside them.
    """
    problems, counts = [], []
    sums = _checksums(raw)
    for files in expected:
        found = sorted(path for path in raw.glob(files.pattern) if path.is_file())
        if not found and not (files.optional or (partial and files.part)):
            problems.append(f"{files.pattern} is missing ({files.purpose})")
        elif found and files.count is not None and len(found) != files.count and not partial:
            counts.append(f"{files.pattern}: {len(found):,} files, the data set has {files.count:,} ({files.purpose})")
        for path in found if not files.pattern.endswith(_IMAGES) else ():
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
    missing = [column for column in files.columns if column not in _header(path)]
    if missing:
        return f"lacks the column{_s(missing)} {', '.join(missing)}"
    if checksum and _sha256(path) != checksum:
        return f"differs from its checksum in {SUMS}; fetch it again, or remove {SUMS} if it was cut on purpose"
    if files.rows is not None and not partial:
        rows = _rows(path)
        if rows is not None and rows != files.rows:
            what = "entries" if path.suffix == ".json" else "rows"
            return f"has {rows:,} {what}, the data set has {files.rows:,}: it was cut short, or is of another release"
    return ""


def _rows(path: Path) -> int | None:
    """Rows of a table below its header, or entries of a JSON list; None where it cannot be read (said elsewhere)."""
    try:
        if path.suffix == ".json":
            return len(read_json(path))
        with _open(path) as file:
            return max(0, sum(1 for row in csv.reader(file) if row) - 1)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error, TypeError, UserError):
        return None


def _checksums(raw: Path) -> dict[Path, str]:
    """SHA-256 by path, of every list of checksums in the raw folder or in the top folders of a release below it."""
    sums = {}
    for path in (*raw.glob(SUMS), *raw.glob(f"*/{SUMS}"), *raw.glob(f"*/*/{SUMS}")):
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            digest, _, name = line.strip().partition(" ")
            if name and not name.endswith(_IMAGES):  # a release lists hundreds of thousands of images
                sums[path.parent / name.strip().removeprefix("*")] = digest.lower()
    return sums


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed(names: Sequence[str], most: int = LISTED_IN_ERRORS) -> str:
    """The first names and how many more there are."""
    more = len(names) - most
    return "; ".join(names[:most]) + (f"; and {more:,} more" if more > 0 else "")


def _s(items: Sequence[Any]) -> str:
    return "s" if len(items) > 1 else ""


def _header(path: Path) -> list[str]:
    try:
        with _open(path) as file:
            return [name.strip() for name in next(csv.reader(file), [])]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error):
        return []


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", newline="", encoding="utf-8-sig")
    return path.open(newline="", encoding="utf-8-sig")


def one_file(raw: Path, pattern: str) -> Path:
    """The file below `raw` that matches; the first by name where several do. Raises UserError when none does."""
    found = sorted(path for path in raw.glob(pattern) if path.is_file())
    if not found:
        raise UserError(f"no file {pattern} in {raw}")
    return found[0]


def index_files(raw: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """File name -> path of every file below `raw` with one of the suffixes (lower case, with the dot)."""
    wanted = set(suffixes)
    return {path.name: path for path in sorted(raw.rglob("*")) if path.suffix.lower() in wanted and path.is_file()}


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises UserError that names the file and the line, never the content."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        line = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path} is not valid JSON{line}; fetch it again") from None


_LABELS = {1.0: 1, 0.0: 0, -1.0: -1}


def cell_label(text: str) -> int | None:
    """A cell of a label table: "1.0" -> 1, "0" -> 0, "-1.0" -> -1, empty -> None (not mentioned). Raises ValueError."""
    if not text:
        return None
    try:
        return _LABELS[float(text)]
    except (KeyError, ValueError):  # without the cell: in a table whose columns moved it may be a report
        raise ValueError("a label is none of 1, 0, -1 and an empty cell") from None


def labels_of(row: dict[str, str], names: Iterable[str], where: str) -> dict[str, int]:
    """Labels of a row under lower-case names; empty cells are left out. Raises UserError naming the table."""
    result = {}
    for name in names:
        try:
            value = cell_label(row.get(name, ""))
        except ValueError as error:
            raise UserError(f"{where}, column {name}: {error}") from None
        if value is not None:
            result[name.lower()] = value
    return result


_REST = "\0"  # cells beyond the header; no column is called that


def read_table(path: Path, required: Sequence[str], purpose: str) -> list[dict[str, str]]:
    """Rows of a CSV file (plain or .gz) with a header, values stripped, missing cells as "".

    Raises UserError when the file is missing, not UTF-8, empty, lacks one of the `required` columns, has two of one
    name, or has a row with more cells than the header: a text with bare commas would move into the next columns.
    """
    if not path.is_file():
        raise UserError(f"no table {path.name} in {path.parent}: {purpose}")
    try:
        with _open(path) as file:
            reader = csv.DictReader(file, restkey=_REST, restval="")
            found = [name.strip() for name in reader.fieldnames or []]
            _check_header(path, found, required, purpose)
            reader.fieldnames = found
            rows = []
            for row in reader:
                if any(row.pop(_REST, ())):
                    raise UserError(
                        f"{path}, line {reader.line_num}: more cells than the header has columns; put texts that hold "
                        "commas into double quotes"
                    )
                rows.append({key: value.strip() for key, value in row.items()})
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as CSV UTF-8") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise UserError(f"{path} is not a readable CSV file ({error})") from None
    if not rows:
        raise UserError(f"{path} has a header but no row")
    return rows


def _check_header(path: Path, found: Sequence[str], required: Sequence[str], purpose: str) -> None:
    """What `read_table` refuses of a header. Without one, its first line is a report: it is never shown."""
    missing = [name for name in required if name not in found]
    if missing:
        names = f"it has {', '.join(found)}" if len(missing) < len(required) else "its first line must name the columns"
        plural = "s" if len(missing) > 1 else ""
        raise UserError(f"{path} lacks the column{plural} {', '.join(missing)}; {names}: {purpose}")
    twice = sorted({name for name in found if name and found.count(name) > 1})
    if twice:
        raise UserError(f"{path} has two columns {', '.join(twice)}; rename or remove one of them")


_SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def read_workbook(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """Rows of the first sheet of an .xlsx file with a header, as text; empty cells as "".

    Raises UserError when the file is not one, or lacks one of the `required` columns.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            shared = []
            if "xl/sharedStrings.xml" in archive.namelist():
                strings = ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))
                shared = ["".join(t.text or "" for t in node.iter(f"{_SHEET}t")) for node in strings]
            sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
            rows = [_cells(row, shared) for row in sheet.iter(f"{_SHEET}row")]
    except (OSError, KeyError, ValueError, IndexError, zipfile.BadZipFile, ElementTree.ParseError):
        raise UserError(f"{path} is not a readable workbook (.xlsx); fetch it again") from None
    header = rows[0] if rows else {}
    missing = [name for name in required if name not in header.values()]
    if missing:
        raise UserError(f"{path} lacks the column{_s(missing)} {', '.join(missing)}")
    return [{name: row.get(column, "") for column, name in header.items()} for row in rows[1:] if row]


def _cells(row: ElementTree.Element, shared: Sequence[str]) -> dict[str, str]:
    """Column letters -> text."""
    cells = {}
    for cell in row.iter(f"{_SHEET}c"):
        value = cell.find(f"{_SHEET}v")
        if cell.get("t") == "inlineStr":
            text = "".join(node.text or "" for node in cell.iter(f"{_SHEET}t"))
        else:
            text = (value.text or "") if value is not None else ""
            text = shared[int(text)] if cell.get("t") == "s" else text
        cells[cell.get("r", "").rstrip("0123456789")] = text.strip()
    return cells
