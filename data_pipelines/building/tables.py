"""Cells of tables, and workbooks. CSV files are read by `afloc_jax.tables`."""

import io
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from afloc_jax.errors import UserError
from afloc_jax.files import read_regular
from afloc_jax.tables import Row
from data_pipelines.images import ImageError
from data_pipelines.regions import Box


def labels_of(row: Row, names: Iterable[str]) -> dict[str, int]:
    """The labels of a row by lower-case name: "1.0" -> 1, "0" -> 0, "-1.0" -> -1. Empty cells are left out.

    Raises ImageError that names row and column but not the cell, which may be a report if columns are shifted.
    """
    labels = {}
    for name in names:
        if text := row.get(name, ""):
            try:
                labels[name.lower()] = {1.0: 1, 0.0: 0, -1.0: -1}[float(text)]
            except (KeyError, ValueError):
                raise ImageError(str(row.fault(name, "a label is none of 1, 0, -1 and an empty cell"))) from None
    return labels


def box_of(row: Row, columns: Sequence[str]) -> Box:
    """The box in four columns: x, y, width, height. Raises ImageError that names row and column, no cell."""
    numbers = []
    for column in columns:
        try:
            numbers.append(float(row[column]))
        except ValueError:
            raise ImageError(str(row.fault(column, "not a number"))) from None
    if len(numbers) != 4:
        raise ImageError(f"{row.place}: a box needs four numbers")
    return Box(*numbers)


LARGEST_SHEET = 1 << 26  # bytes of a part of a workbook, unpacked
_SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def read_workbook(path: Path, required: Sequence[str]) -> list[Row]:
    """The rows of the first sheet of an .xlsx file with a header, as text; empty cells are "".

    The standard library suffices: openpyxl would be a new dependency for two tables of one data set (SICAPv2).

    Raises UserError if the file is not a workbook, lacks a `required` column, has two columns of one name, or has a
    part of more than `LARGEST_SHEET` bytes.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_regular(path, LARGEST_SHEET))) as archive:
            shared = []
            if any(part.file_size > LARGEST_SHEET for part in archive.infolist()):  # zipfile unpacks no more than that
                raise UserError(f"{path}: a part of it has more than {LARGEST_SHEET:,} bytes")
            if "xl/sharedStrings.xml" in archive.namelist():
                strings = ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))
                shared = ["".join(t.text or "" for t in node.iter(f"{_SHEET}t")) for node in strings]
            sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
            rows = [_cells(row, shared) for row in sheet.iter(f"{_SHEET}row")]
    except (OSError, KeyError, ValueError, IndexError, zipfile.BadZipFile, zlib.error, ElementTree.ParseError):
        raise UserError(f"{path} is not a readable workbook (.xlsx); fetch it again") from None
    header = rows[0] if rows else {}
    missing = [name for name in required if name not in header.values()]
    if missing:
        raise UserError(f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}")
    if len(set(header.values())) < len(header):
        raise UserError(f"{path}, row 1: two columns have the same name; rename or remove one")
    found = [{name: row.get(column, "") for column, name in header.items()} for row in rows[1:]]
    return [Row(path.name, number, cells) for number, cells in enumerate(found, start=2) if any(cells.values())]


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
