"""Reading of tables: CSV files and workbooks."""

import csv
import gzip
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TextIO
from xml.etree import ElementTree

from afloc_jax.errors import UserError
from data_pipelines.images import ImageError
from data_pipelines.regions import Box

csv.field_size_limit(sys.maxsize)  # a cell may hold a report or a run-length mask


def open_table(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", newline="", encoding="utf-8-sig")
    return path.open(newline="", encoding="utf-8-sig")


def labels_of(row: dict[str, str], names: Iterable[str], where: str) -> dict[str, int]:
    """The labels of a row by lower-case name: "1.0" -> 1, "0" -> 0, "-1.0" -> -1. Empty cells are left out.

    Raises UserError that names the table `where` but not the cell, which may be a report if columns are shifted.
    """
    labels = {}
    for name in names:
        if text := row.get(name, ""):
            try:
                labels[name.lower()] = {1.0: 1, 0.0: 0, -1.0: -1}[float(text)]
            except (KeyError, ValueError):
                raise UserError(f"{where}, column {name}: a label is none of 1, 0, -1 and an empty cell") from None
    return labels


def box_of(row: Mapping[str, str], columns: Sequence[str], where: str) -> Box:
    """The box in four columns: x, y, width, height. Raises ImageError that names `where` and the column, no cell."""
    numbers = []
    for column in columns:
        try:
            numbers.append(float(row[column]))
        except ValueError:
            raise ImageError(f"{where}, column {column}: not a number") from None
    if len(numbers) != 4:
        raise ImageError(f"{where}: a box needs four numbers")
    return Box(*numbers)


_REST = "\0"  # key of the cells beyond the header; no column has this name


def read_table(path: Path, required: Sequence[str], purpose: str) -> list[dict[str, str]]:
    """The rows of a CSV file (plain or .gz) with a header. Values are stripped; missing cells are "".

    Raises UserError if the file is missing, not UTF-8 or empty, lacks a `required` column, has two columns of one name,
    or has a row with more cells than the header (a text with unquoted commas would move into other columns).
    """
    if not path.is_file():
        raise UserError(f"no table {path.name} in {path.parent}: {purpose}")
    try:
        with open_table(path) as file:
            reader = csv.DictReader(file, restkey=_REST, restval="")
            columns = [name.strip() for name in reader.fieldnames or []]
            _check_header(path, columns, required, purpose)
            reader.fieldnames = columns
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


def _check_header(path: Path, columns: Sequence[str], required: Sequence[str], purpose: str) -> None:
    """Refuses an unusable header. The first line of a table without one may be a report, which is never shown."""
    missing = [name for name in required if name not in columns]
    if missing:
        names = (
            f"it has {', '.join(columns)}" if len(missing) < len(required) else "its first line must name the columns"
        )
        plural = "s" if len(missing) > 1 else ""
        raise UserError(f"{path} lacks the column{plural} {', '.join(missing)}; {names}: {purpose}")
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        raise UserError(f"{path} has two columns {', '.join(twice)}; rename or remove one of them")


_SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def read_workbook(path: Path, required: Sequence[str]) -> list[dict[str, str]]:
    """The rows of the first sheet of an .xlsx file with a header, as text; empty cells are "".

    The standard library suffices: openpyxl would be a new dependency for two tables of one data set (SICAPv2).

    Raises UserError if the file is not a workbook, or lacks a `required` column.
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
        raise UserError(f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}")
    return [{name: row.get(column, "") for column, name in header.items()} for row in rows[1:] if row]


def _cells(row: ElementTree.Element, shared: Sequence[str]) -> dict[str, str]:
    """The text of each cell of a row, by the letters of its column."""
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
