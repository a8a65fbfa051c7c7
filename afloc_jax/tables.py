"""Tables: the strict reader of all CSV files, and the check of cells that name files.

What makes the rest of a file doubtful stops the reading with the number of a row: an unbalanced quote, an end inside a
quoted cell or within a row, a header that is not one, two columns of one name. What is wrong with one row is a fault of
that row, and the caller decides whether the row is left out or stops. Neither shows a cell. Rows are numbered as by a
spreadsheet: the header is row 1, and blank rows count.
"""

import csv
import gzip
import io
import itertools
import re
import sys
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from afloc_jax.errors import UserError
from afloc_jax.files import AnyPath, Path, read_regular

csv.field_size_limit(sys.maxsize)  # a cell may hold a report or a run-length mask

LARGEST_TABLE = 1 << 29  # bytes of a table, unpacked
MOST_CELLS = 20_000_000  # of a table; the largest published ones have 6 million
LONGEST_NAME, LONGEST_PATH = 255, 1024  # letters of a file name and of its path below a folder
_CELL = re.compile(r'(?:"[^"]*+(?:""[^"]*+)*+"|[^",]*)(?=,|\Z)')  # in double quotes, or without any
_CONTROL = re.compile(r"[\0-\x1f\ud800-\udfff]")  # also halves of surrogate pairs, which JSON can write
_SWALLOWED = re.compile(r"[\r\n][^\r\n,]*\.[A-Za-z]{3,5},")  # a line of a cell that begins like a row: name.png,...


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row: its place, such as "pairs.csv, row 5", and the reason, which names a column."""

    place: str
    reason: str
    row: "Row | None" = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.place}, {self.reason}"


class Row(Mapping[str, str]):
    """The cells of a row by column, stripped of spaces, and its number in the file."""

    __slots__ = ("_cells", "number", "table")

    def __init__(self, table: str, number: int, cells: Mapping[str, str]) -> None:
        self.table, self.number, self._cells = table, number, cells

    def __getitem__(self, column: str) -> str:
        return self._cells[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def place(self) -> str:
        """The table and the number of the row, which an error may show."""
        return f"{self.table}, row {self.number}"

    def fault(self, column: str, what: str) -> Fault:
        """The fault of a cell."""
        return Fault(self.place, f"column {column}: {what}", self)


@dataclass(frozen=True)
class Table:
    """The columns of a table, its usable rows, and the faults of the others."""

    path: Path
    columns: Sequence[str]
    rows: Sequence[Row]
    faults: Sequence[Fault]

    def whole(self, remedy: str = "") -> Sequence[Row]:
        """The rows of a table of which none may be missing. Raises UserError, with its first fault."""
        if self.faults:
            raise UserError(f"{self.path.parent / str(self.faults[0])}{remedy}")
        return self.rows


def read_table(
    path: AnyPath,
    required: Sequence[str] = (),
    purpose: str = "",
    *,
    unique: Collection[str] = (),
    names: Collection[str] = (),
    known: Collection[str] = (),
    one_line: bool = False,
) -> Table:
    """A CSV file (plain or .gz, UTF-8) with a header.

    A row has a fault if it has too many or too few cells, if a cell in `names` is no file name below a folder, or if
    the cells in `unique` are together those of an earlier row. Empty cells beyond the last named column are no fault.

    Args:
        path: the file.
        required: columns that the header must have.
        purpose: the end of the error about a missing column, which says what the table is for.
        unique: columns whose cells together occur once.
        names: columns that name files.
        known: further names of columns, which errors may show.
        one_line: whether a cell may not contain a line break.

    Raises:
        UserError: the file cannot be read, or what is wrong with it makes its other rows doubtful.
    """
    known = {*required, *unique, *names, *known}
    file = Path(path)
    records = _records(file, known, one_line)
    header = next(records, _NONE).cells
    columns = [name.strip() for name in header]
    _check_header(file, columns, required, purpose, known)
    width = max(number for number, name in enumerate(columns, 1) if name)
    columns = columns[:width]
    rows, faults, first = list[Row](), list[Fault](), dict[tuple[str, ...], int]()
    for number, text, cells, is_whole in records:
        if names and text and any(_SWALLOWED.search(cell) for cell in cells):
            raise UserError(f"{file}, row {number}: a quoted cell seems to contain other rows; {_QUOTING}")
        if _is_blank(cells):
            continue
        row = Row(file.name, number, dict(zip(columns, map(str.strip, cells), strict=False)))
        key = tuple(row.get(name, "") for name in unique)
        wrong = next((row.fault(name, what) for name in names if (what := fault_of_name(row.get(name, "")))), None)
        if len(cells) < width and not is_whole:
            raise UserError(f"{file}, row {number}: the file ends within this row, it was cut; copy it again")
        if len(cells) < width or any(cells[width:]):
            last = _shown(columns, min(len(cells), width) - 1, known)
            wrong = row.fault(last, f"the row has {len(cells)} cells and the header {width}")
        elif wrong is None and any(key) and first.setdefault(key, number) != number:
            wrong = row.fault(" and ".join(unique), f"the same as in row {first[key]}")
        if wrong is None:
            rows.append(row)
        else:
            faults.append(wrong)
    return Table(file, columns, rows, faults)


def shape_of(path: AnyPath) -> tuple[list[str], int]:
    """The names of the columns, and the number of rows below them that are not blank. Raises as `read_table`."""
    records = _records(Path(path), (), one_line=False)
    columns = [name.strip() for name in next(records, _NONE).cells]
    return columns, sum(1 for record in records if not _is_blank(record.cells))


def _is_blank(cells: Sequence[str]) -> bool:
    """Whether a row is a blank line. A row of empty cells is none: what it lacks is said by who needs it."""
    return len(cells) < 2 and not "".join(cells).strip()


def fault_of_name(name: str) -> str:
    """What is wrong with a text that should name a file below a folder; empty if it does."""
    if _CONTROL.search(name):
        return "a control character in a file name"
    parts = name.split("/")
    if ".." in parts or name.startswith("/"):
        return "a file outside its folder"
    return "a file name that is too long" if len(max(parts, key=len)) > LONGEST_NAME or len(name) > LONGEST_PATH else ""


_QUOTING = 'write a cell with a comma, a quote or a line break as "...", and each quote inside it twice'
_QUOTING_ONE_LINE = 'write a cell with a comma or a quote as "...", each quote inside it twice, and no line break'


def read_text(path: AnyPath, most: int = LARGEST_TABLE) -> str:
    """The text of a UTF-8 file, which may be packed (.gz), without its byte order mark.

    Raises UserError if it cannot be read, is not UTF-8, or has more than `most` bytes.
    """
    try:
        data = read_regular(path, most)
        if Path(path).suffix == ".gz":
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(most + 1)
            if len(data) > most:
                raise UserError(f"{path}: more than {most:,} bytes when unpacked")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as CSV UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "damaged archive"
        raise UserError(f"{path}: cannot be read ({reason})") from None


class _Record(NamedTuple):
    number: int
    text: str  # empty for a row without quotes
    cells: list[str]
    is_whole: bool  # ends with a line break


_NONE = _Record(1, "", [], True)


def _records(path: Path, known: Collection[str], one_line: bool) -> Iterator[_Record]:
    """The rows.

    Raises UserError for a quote that is unbalanced or misplaced, and for more than MOST_CELLS cells.
    """
    taken, count, columns = list[str](), 0, list[str]()  # the lines of the row at hand

    def lines() -> Iterator[str]:
        for line in io.StringIO(read_text(path), newline=""):
            taken.append(line)
            yield line

    reader = csv.reader(lines(), strict=True)
    for number in itertools.count(1):
        taken.clear()
        text, failed = "", False
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            cells, failed = [], True
        count += len(cells) + 1
        if count > MOST_CELLS:
            raise UserError(f"{path}, row {number}: more than {MOST_CELLS:,} cells in the table; divide it")
        if failed or '"' in taken[0]:
            text = (taken[0] if one_line else "".join(taken)).rstrip("\r\n")
            column = _wrong_quote(text)
            if failed or column >= 0:
                remedy = _QUOTING_ONE_LINE if one_line else _QUOTING
                where = f"{path}, row {number}, column {_shown(columns, max(column, 0), known)}"
                raise UserError(f"{where}: the quote of a cell is unbalanced; {remedy}")
        columns = columns or [name.strip() for name in cells]
        yield _Record(number, text, cells, taken[-1].endswith(("\n", "\r")))


def _wrong_quote(text: str) -> int:
    """The index of the first cell of a row with an unbalanced or misplaced quote; -1 if there is none."""
    column, end = 0, 0
    while end <= len(text):
        found = _CELL.match(text, end)
        if found is None:
            return column
        column, end = column + 1, found.end() + 1
    return -1


def _check_header(
    path: Path, columns: Sequence[str], required: Sequence[str], purpose: str, known: Collection[str]
) -> None:
    """Refuses an unusable header. The first row of a table without one may be a report, which is never shown."""
    end = f": {purpose}" if purpose else ""
    missing = [name for name in required if name not in columns]
    if missing or not any(columns):
        what = f"lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}" if missing else "has no header"
        raise UserError(f"{path}, row 1: {what}; its first row must name the columns{end}")
    first: dict[str, int] = {}
    for number, name in enumerate(columns):
        if name and first.setdefault(name, number) != number:
            where = f"{path}, row 1, column {_shown(columns, number, known)}"
            raise UserError(f"{where}: comes twice; rename or remove one")


def _shown(columns: Sequence[str], index: int, known: Collection[str]) -> str:
    """The name of a column that the program knows, else its number: other headers may be no headers."""
    return columns[index] if 0 <= index < len(columns) and columns[index] in known else str(index + 1)
