"""Hostile tables: pairs, mask files, systems."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.hostile import valid_files as valid
from benchmarks.hostile.changes import cut, replaced
from benchmarks.hostile.images import BAD_IMAGES
from benchmarks.hostile.running import Group, Input
from benchmarks.hostile.truth import SCORE, scores

# Tables of pairs, which are prepared


def _pairs(folder: Path) -> None:
    (folder / "raw/images").mkdir(parents=True)
    for number in range(6):
        (folder / f"raw/images/{number}.png").write_bytes(valid.picture(valid.radiograph(number)))
    (folder / "raw/pairs.csv").write_text(valid.PAIRS)
    (folder / "key").write_bytes(b"k" * 32)


def _records(out: Path, _: str) -> object:
    """The records of all splits, and how many rows were left out."""
    from data_pipelines.reading import RecordSource

    (folder,) = out.glob("pairs-*")
    report = json.loads((folder / "build_report.json").read_text())
    records = [record for split, count in report["records"].items() if count for record in RecordSource(folder, split)]
    return report["records"], sorted((one.id, *one.sentences, one.patient, one.image.tobytes()) for one in records)


def _tables() -> Iterator[Input]:
    table = "raw/pairs.csv"
    lines = valid.PAIRS.splitlines()
    texts = {
        "CRLF": valid.PAIRS.replace("\n", "\r\n"),
        "a byte order mark": "\ufeff" + valid.PAIRS,
        "blank lines": valid.PAIRS.replace("\n", "\n\n"),
        "no last line end": valid.PAIRS.rstrip("\n"),
        "empty": "",
        "no header": "\n".join(lines[1:]),
        "a header alone": lines[0],
        "a column twice": valid.PAIRS.replace("patient,split", "patient,patient"),
        "another delimiter": valid.PAIRS.replace(",", ";"),
        "a patient in two splits": valid.PAIRS.replace(",p1,train", ",p0,test"),
        "an image in two splits": valid.PAIRS + '0.png,"Edema.",p9,test\n',
        "two rows swallowed": valid.PAIRS.replace("again. Heart is normal.", 'again\n3.png,"x",p', 1),
        "NUL": valid.PAIRS.replace("effusion 3", "effusion\0 3"),
        "NUL in a name": valid.PAIRS.replace("3.png", "3\0.png"),
        "many columns": ",".join(f"c{number}" for number in range(9999)) + "\n" + valid.PAIRS,
    }
    for name, text in texts.items():
        yield Input(name, replaced(table, text))
    for encoding in ("utf-16", "utf-32", "latin-1"):
        encoded = valid.PAIRS.replace("effusion 2", "Erg\xfcsse 2").encode(encoding)
        yield Input(f"in {encoding}", replaced(table, encoded))
    for column in ("image", "text"):
        yield Input(f"without the column {column}", replaced(table, valid.PAIRS.replace(column, "other", 1)))
    names = ("", "../0.png", "/etc/hostname", "none.png", "x" * 300 + ".png", "images", "..", "a/../0.png", "\x01.png")
    for name in names:
        yield Input(f"image {name[:20]!r}", replaced(table, valid.PAIRS.replace("2.png", name)))
    for name in ("tain", "0", "train test"):
        yield Input(f"split {name!r}", replaced(table, valid.PAIRS.replace("p2,train", f"p2,{name}")))
    for row in range(1, 7):
        cells = lines[row].rsplit(",", 2)
        changed = {
            "without its last cell": ",".join(cells[:2]),
            "with a cell too many": lines[row] + ",more",
            "without its closing quote": lines[row].replace('.",', ".,"),
            "with a quote inside": lines[row].replace("left", 'le"ft'),
            "with a byte that is no UTF-8": lines[row].replace("left", "le\udcff"),
            "cut in a quoted cell": lines[row].split(",")[0] + ',"Small',
        }
        for what, line in changed.items():
            rest = lines[row + 1 :] if "cut" not in what else []
            yield Input(f"row {row + 1} {what}", replaced(table, "\n".join([*lines[:row], line, *rest]) + "\n"))


# Tables of mask files, which are scored


def _masks(folder: Path) -> None:
    (folder / "truth.csv").write_text(valid.TRUTH_TABLE)
    (folder / "a.png").write_bytes(valid.picture(valid.disc()))
    (folder / "maps.npz").write_bytes(valid.heat_maps("a.png\tleft effusion"))


def _mask_tables() -> Iterator[Input]:
    row = "a.png,a.png,effusion,left effusion,p1"
    texts = {
        "CRLF": valid.TRUTH_TABLE.replace("\n", "\r\n"),
        "no header": valid.TRUTH_TABLE.partition("\n")[2],
        "without the column mask": valid.TRUTH_TABLE.replace("mask", "file"),
        "no image": valid.TRUTH_TABLE.replace(row, row.replace("a.png", "", 1)),
        "no finding": valid.TRUTH_TABLE.replace(row, row.replace(",effusion,", ",,")),
        "a cell too many": valid.TRUTH_TABLE.replace(row, f"{row},x"),
        "a cell too few": valid.TRUTH_TABLE.replace(row, row[:-3]),
        "an unbalanced quote": valid.TRUTH_TABLE.replace("left effusion", '"left effusion'),
        "two patients of an image": valid.TRUTH_TABLE + "a.png,a.png,edema,,p3\n",
        "no mask at all": valid.TRUTH_TABLE.replace(row, row.replace("a.png,a.png", "a.png,")),
    }
    for name, text in texts.items():
        yield Input(name, replaced("truth.csv", text))
    for name in ("../a.png", "/etc/hostname", "none.png", "x" * 300, ".", "\x01"):
        yield Input(
            f"mask {name[:20]!r}", replaced("truth.csv", valid.TRUTH_TABLE.replace("a.png,a.png", f"a.png,{name}"))
        )
    for name, content in BAD_IMAGES.items():
        if name.endswith(".png"):
            yield Input(f"the mask is {name}", replaced("a.png", content))
    for share in range(1, 6):
        yield Input(f"the mask is cut after {share}/6", cut("a.png", share / 6))
    yield Input("an empty mask", replaced("a.png", valid.picture(np.zeros((24, 20), np.uint8))))


# Tables of systems, which are compared

SYSTEMS = "system,id,category,metric,value\n" + "".join(
    f"{system},{number},edema,iou,0.{number}{system == 'a':d}\n" for system in "ab" for number in range(1, 9)
)


def _systems(folder: Path) -> None:
    (folder / "systems.csv").write_text(SYSTEMS)


def _comparison(out: Path, _: str) -> object:
    return (out / "comparison.csv").read_text()


def _tables_of_systems() -> Iterator[Input]:
    texts = {
        "CRLF": SYSTEMS.replace("\n", "\r\n"),
        "no header": SYSTEMS.partition("\n")[2],
        "a header alone": SYSTEMS.partition("\n")[0],
        "a row twice": SYSTEMS + "a,1,edema,iou,0.5\n",
        "a cell too many": SYSTEMS.replace("0.11", "0.11,1", 1),
        "a cell too few": SYSTEMS.replace(",0.11", "", 1),
        "an unbalanced quote": SYSTEMS.replace("edema", '"edema', 1),
        "a line break in a cell": SYSTEMS.replace("edema", '"ed\nema"', 1),
        "no UTF-8": SYSTEMS.replace("edema", "ed\udcffema", 1),
        "one system": "".join(line for line in SYSTEMS.splitlines(True) if not line.startswith("b")),
        "both forms": SYSTEMS.replace("value\n", "value,label,probability\n", 1),
    }
    for name, text in texts.items():
        yield Input(name, replaced("systems.csv", text))
    for value in ("", "x", "nan", "inf", "-inf", "1_0", "1e999", "0x1", "1,5", "\u0661"):
        yield Input(f"value {value!r}", replaced("systems.csv", SYSTEMS.replace(",0.11", f",{value}", 1)))
    for column in ("system", "id", "metric"):
        yield Input(f"without the column {column}", replaced("systems.csv", SYSTEMS.replace(column, "other", 1)))
    yield Input("an empty id", replaced("systems.csv", SYSTEMS.replace("a,1,", "a,,", 1)))


def groups() -> list[Group]:
    """The groups of this module."""
    prepare = ("prepare", "pairs", "--raw", "IN/raw", "--out", "OUT", "--no_overview", "--pseudonym_key", "IN/key")
    masks = tuple(word.replace("truth.json", "truth.csv") for word in SCORE)
    compare = ("compare", "IN/systems.csv", "--out", "OUT")
    return [
        Group("tables of pairs", _pairs, prepare, [*_tables()], _records, "rejected|left out|one grey value"),
        Group("tables of masks", _masks, masks, [*_mask_tables()], scores),
        Group("tables of systems", _systems, compare, [*_tables_of_systems()], _comparison),
    ]
