"""Tables are read strictly: what is doubtful stops with the number of a row, and no cell is shown."""

import csv
import gzip
import json
import os

import numpy as np
import pytest

from afloc_jax.errors import UserError
from afloc_jax.files import read_json, read_regular
from afloc_jax.tables import fault_of_name, read_table, shape_of

CANARY = "Jane Roe"
HEADER = "image,text,patient\n"
QUOTED = [f'ok{number:02d}.png,"text number {number} {CANARY}",p{number}\n' for number in range(20)]


@pytest.fixture
def table(tmp_path):
    """Writes a table and reads it."""

    def read(content, **how):
        path = tmp_path / "pairs.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(path, ("image", "text"), names=("image",), **how)

    return read


def test_a_table_is_read_as_the_csv_module_reads_it(table, tmp_path):
    text = HEADER + 'a.png,"with ""quotes"", a comma\nand a line",p1\r\n\r\n b.png , plain ,p2\n'
    found = table("\ufeff" + text)
    rows = [{key: value.strip() for key, value in row.items()} for row in csv.DictReader(text.splitlines(True))]
    assert [dict(row) for row in found.rows] == rows and not found.faults
    assert [row.number for row in found.rows] == [2, 4], "blank rows count, as in a spreadsheet"
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert [dict(row) for row in read_table(tmp_path / "packed.csv.gz").rows] == rows
    assert shape_of(tmp_path / "packed.csv.gz") == (["image", "text", "patient"], 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # A quote that is never closed swallowed the 15 rows below it without a word.
        (HEADER + "".join([*QUOTED[:4], QUOTED[4].replace('",', ","), *QUOTED[5:]]), "row 6, column text: the quote"),
        (HEADER + f'a.png,"cut in the middle of {CANARY}', "row 2, column text: the quote of a cell is unbalanced"),
        (f"{HEADER}a.png,x,p1\nb.png,{CANARY}", "row 3: the file ends within this row, it was cut; copy it again"),
        (HEADER + f'a.png,"{CANARY}"s,p1\n', "row 2, column text: the quote of a cell is unbalanced"),
        (HEADER + f'a.png,5" {CANARY},p1\n', "row 2, column text: the quote of a cell is unbalanced"),
        (HEADER + f'a.png,x,"{CANARY}\n', "row 2, column 3: the quote of a cell is unbalanced"),
        # Two stray quotes that balance each other are one cell by the rules of CSV, with a row inside.
        (HEADER + f'a.png,"first {CANARY},p1\nb.png,second {CANARY}",p2\n', "row 2: a quoted cell seems to contain"),
        (f"a.png,{CANARY}\nb.png,x\n", "row 1: lacks the columns image, text; its first row must name the columns"),
        ("", "row 1: lacks the columns image, text"),
        (f"image,text,{CANARY},{CANARY}\n", "row 1, column 4: comes twice"),
        ("image,text,text\n", "row 1, column text: comes twice"),
        ((HEADER + "a.png,\u00e9\n").encode("latin-1"), "is not UTF-8 text (byte 25)"),
        ((HEADER + "a.png,x,p\n").encode("utf-16"), "is not UTF-8 text (byte 0)"),
    ],
)
def test_what_makes_the_other_rows_doubtful_stops_with_its_row_and_no_cell(table, content, message):
    with pytest.raises(UserError) as caught:
        table(content)
    assert f"pairs.csv, {message}" in str(caught.value) or f"pairs.csv {message}" in str(caught.value)
    assert "Roe" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (f"b.png,{CANARY}", "column text: the row has 2 cells and the header 3"),
        (f"b.png,{CANARY}, no effusion,p2", "column 3: the row has 4 cells and the header 3"),
        (f"../{CANARY}.png,x,p2", "column image: a file outside its folder"),
        (f"in/../../{CANARY}.png,x,p2", "column image: a file outside its folder"),
        ("/dev/zero,x,p2", "column image: a file outside its folder"),
        (f"{CANARY}\0.png,x,p2", "column image: a control character in a file name"),
        (f"{'x' * 300}.png,x,p2", "column image: a file name that is too long"),
        ("a/" * 600 + ".png,x,p2", "column image: a file name that is too long"),
        (f"a.png,{CANARY},p2", "column image: the same as in row 2"),
    ],
)
def test_what_one_row_says_is_a_fault_of_that_row(table, row, fault):
    found = table(f"{HEADER}a.png,x,p1\n{row}\nc.png,x,p3,,\n", unique=("image",))
    assert [line["image"] for line in found.rows] == ["a.png", "c.png"]
    assert [str(one) for one in found.faults] == [f"pairs.csv, row 3, {fault}"]
    with pytest.raises(UserError, match=r"pairs\.csv, row 3, column") as caught:
        found.whole()
    assert "Roe" not in str(caught.value)


def test_blank_lines_are_no_rows_and_rows_of_empty_cells_are(table):
    found = table(f"{HEADER}\n  \n,,\na.png,x,p1\n\n")
    assert [(row.number, row["image"]) for row in found.rows] == [(4, ""), (5, "a.png")] and not found.faults


def test_columns_without_a_name_behind_the_last_one_may_be_empty_or_missing(table):
    """NIH's table of boxes has a header of nine columns, of which six have names."""
    found = table("image,text,Bbox [x,y,w,h],,,\na.png,x,1,2,3,4,,,\nb.png,x,1,2,3,4\nc.png,x,1,2,3,4,,5,\n")
    assert [[*row.values()][2:] for row in found.rows] == [["1", "2", "3", "4"]] * 2
    assert [str(fault) for fault in found.faults] == [
        "pairs.csv, row 4, column 6: the row has 9 cells and the header 6"
    ]


def test_cells_name_files_below_a_folder_or_none():
    for name in ("a.png", "p10/s1/a b.png", "..a.png", "\u00e9.png", ""):
        assert fault_of_name(name) == ""
    for name in ("..", "a/..", "/a", "a\nb", "\ud800"):
        assert fault_of_name(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": {"x": 1},\n "b": {"x": "}", "\\"x": 2, "x": 3}}', "twice in the object that ends at line 2, column 34"),
        (f'{{"{CANARY}": 1, "{CANARY}": 2}}', "a key comes twice in the object that ends at line 1"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (f'{{"{CANARY}": 1', "not valid JSON at line 1"),
        (b'"\xff"', "not valid JSON"),
        (f'["{CANARY}", "\\uD83D"]', "a text holds half of a surrogate pair"),
    ],
)
def test_doubtful_json_stops_with_its_line_and_no_content(tmp_path, content, message):
    path = tmp_path / "truth.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_json(path, "fetch it again")
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and message in said and said.endswith("; fetch it again") and "Roe" not in said


def test_both_halves_of_a_surrogate_pair_are_a_letter(tmp_path):
    (tmp_path / "a.json").write_text('"\\ud83d\\ude00"')
    assert read_json(tmp_path / "a.json") == "\U0001f600"


def test_what_a_file_holds_makes_no_error_endless():
    said = str(UserError("row 3: " + "x" * 10**6))
    assert said.startswith("row 3: xxx") and said.endswith("x... (998,507 more letters)") and len(said) < 1600


def test_a_number_of_4301_digits_is_a_number_of_its_entry(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"id": 3})[:-1] + f', "x": {"9" * 4301}, "y": {"9" * 30}}}')
    assert read_json(path) == {"id": 3, "x": float("inf"), "y": int("9" * 30)}


def test_only_regular_files_of_a_bounded_size_are_opened(tmp_path):
    """A pipe without a writer would wait for ever, /dev/zero has no end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(11))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    for name, reason in (
        (tmp_path / "pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "large", "more than 10 bytes"),
        (tmp_path / "sparse", "more than 10 bytes"),
        ("a\0b", "not a file name"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(OSError) as caught:
            read_regular(name, most=10)
        assert caught.value.strerror == reason
    for reader in (read_json, read_table):
        with pytest.raises(UserError, match=r"cannot be read \(not a regular file\)"):
            reader(tmp_path / "pipe")
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(bytes((1 << 29) + 1), 1))
    with pytest.raises(UserError, match="more than 536,870,912 bytes when unpacked"):
        read_table(tmp_path / "bomb.csv.gz")


def test_a_table_of_too_many_cells_stops_before_it_takes_memory(table, monkeypatch):
    monkeypatch.setattr("afloc_jax.tables.MOST_CELLS", 11)
    assert len(table(f"{HEADER}a.png,x,p1\n").rows) == 1
    with pytest.raises(UserError, match=r"pairs\.csv, row 3: more than 11 cells in the table"):
        table(f"{HEADER}a.png,x,p1\nb.png,x,p2\n")


def test_tables_of_any_cells_come_back(tmp_path):
    """200 random tables, written by the csv module: the strict reader finds the same cells."""
    random = np.random.default_rng(0)
    letters = np.array(['"', ",", "\n", "\r\n", "a", " ", "\u00e9", "'"])
    for _ in range(200):
        cells = ["".join(random.choice(letters, random.integers(0, 6))) + "x" for _ in range(12)]
        with (tmp_path / "any.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["b", "c", "d"], *(cells[k : k + 3] for k in range(0, 12, 3))])
        found = read_table(tmp_path / "any.csv")
        assert [cell for row in found.rows for cell in row.values()] == [cell.strip() for cell in cells]
