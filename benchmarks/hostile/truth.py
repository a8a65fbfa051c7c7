"""Hostile truth files, boxes, run lengths, polygons and heat maps, which are scored."""

import copy
import io
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hostile import valid_files as valid
from benchmarks.hostile.changes import NAN, cut, flipped, in_json, replaced, spoken
from benchmarks.hostile.running import Group, Input

FAR = 10**30
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    FAR,
    NAN,
    "",
    [],
    {"a": 1},
)  # for fields that hold a positive whole number


def _coco(folder: Path) -> None:
    (folder / "truth.json").write_text(json.dumps(valid.COCO))
    (folder / "maps.npz").write_bytes(valid.heat_maps(*valid.COCO_KEYS))


def scores(out: Path, _: str) -> object:
    metrics = json.loads((out / "summary.json").read_text())["metrics"]
    return json.dumps(metrics), (out / "per_sample.csv").read_text()


SCORE = ("score", "--truth", "IN/truth.json", "--heatmaps", "IN/maps.npz", "--out", "OUT", "--bootstrap", "20")


def _truth_files() -> Iterator[Input]:
    def changed(name: str, text: str | bytes) -> Input:
        return Input(name, replaced("truth.json", text))

    whole = json.dumps(valid.COCO)
    yield changed("a byte order mark", "\ufeff" + whole)
    yield changed("indented", json.dumps(valid.COCO, indent=2))
    yield changed("unknown keys", in_json(valid.COCO, "info", value={"version": 2}))
    yield changed("in utf-16", whole.encode("utf-16"))
    yield changed("empty", "")
    yield changed("text behind it", whole + "x")
    yield changed("a key twice", whole.replace('{"id": 1,', '{"id": 7, "id": 1,', 1))
    yield changed("half a surrogate pair", whole.replace("Effusion", "\\ud800"))
    yield changed("nested", '{"images": ' + "[" * 100_000 + "]" * 100_000 + "}")
    yield changed("a number of 5,000 digits", whole.replace(f'"height": {valid.HEIGHT}', '"height": ' + "9" * 5000))
    yield changed("a list", "[]")
    for share in range(1, 12):
        yield Input(f"cut after {share}/12", cut("truth.json", share / 12))
    parts: tuple[Any, ...] = (..., None, {}, "x", [], [None], [[]], [{}])
    texts: tuple[Any, ...] = (5, True, ["x"], {"a": 1})
    for part in ("images", "annotations", "categories"):
        for value in parts:
            yield changed(f"{part}: {spoken(value)}", in_json(valid.COCO, part, value=value))
        again = [*valid.COCO[part], valid.COCO[part][0]]
        yield changed(f"{part}: one twice", in_json(valid.COCO, part, value=again))
    fields = {"images": ("id", "height", "width"), "annotations": ("image_id", "category_id"), "categories": ("id",)}
    for part, names in fields.items():
        for name in names:
            for value in (..., *WRONG):
                yield changed(f"{part}, {name}: {spoken(value)}", in_json(valid.COCO, part, 0, name, value=value))
    for part, name in (("images", "path"), ("categories", "name"), ("annotations", "label_text")):
        for value in texts:
            yield changed(f"{part}, {name}: {spoken(value)}", in_json(valid.COCO, part, 0, name, value=value))


def _boxes() -> Iterator[Input]:
    def changed(box: Any) -> Input:
        text = in_json(valid.COCO, "annotations", 0, "bbox", value=box)
        return Input(spoken(box), replaced("truth.json", text))

    right = valid.COCO["annotations"][0]["bbox"]
    sides: tuple[Any, ...] = (None, True, "3", NAN, float("inf"), -float("inf"), FAR, 1e300, [], {})
    for position in range(4):
        for value in sides:
            yield changed([*right[:position], value, *right[position + 1 :]])
    for position in (2, 3):
        for value in (0, -1, -1e-9):
            yield changed([*right[:position], value, *right[position + 1 :]])
    for box in (..., None, [], [1, 2, 3], [1, 2, 3, 4, 5], {"x": 1}, "1 2 3 4", [[1, 2, 3, 4]]):
        yield changed(box)
    for box in ([900, 2, 3, 3], [2, 900, 3, 3], [-9, 2, 9, 3], [2, -9, 3, 9]):
        yield changed(box)
    crowd = [{**valid.COCO["annotations"][0], "id": 10 + number} for number in range(256)]
    yield Input("256 on one pixel", replaced("truth.json", in_json(valid.COCO, "annotations", value=crowd)))


RLE_SAMPLE = ("p1_study1_view1", "Effusion")


def _rle(folder: Path) -> None:
    (folder / "truth.json").write_text(json.dumps(valid.rle_truth()))
    keys = [f"{image}\t{name.lower()}" for image, classes in valid.rle_truth().items() for name in classes]
    (folder / "maps.npz").write_bytes(valid.heat_maps(*keys))


def _run_lengths() -> Iterator[Input]:
    truth = valid.rle_truth()
    text = truth[RLE_SAMPLE[0]][RLE_SAMPLE[1]]["counts"]
    size, pixels = [valid.HEIGHT, valid.WIDTH], valid.HEIGHT * valid.WIDTH

    def changed(name: str, counts: Any, size: Any = size) -> Input:
        rle = {"size": size, "counts": counts}
        return Input(name, replaced("truth.json", in_json(truth, *RLE_SAMPLE, value=rle)))

    for end in range(0, len(text), 2):
        yield changed(f"text cut after {end}", text[:end])
    for position in range(0, len(text), 3):
        for letter in (" ", "\x7f", "\u00e9"):
            yield changed(f"{letter!r} at {position}", text[:position] + letter + text[position + 1 :])
    yield changed("a run of 90 digits", "o" * 90 + "0")
    others: tuple[Any, ...] = (
        None,
        True,
        7,
        1.5,
        {},
        [],
        [None],
        ["5"],
        [True, pixels - 1],
        [1.0, pixels - 1],
        [[pixels]],
    )
    for value in others:
        yield changed(spoken(value), value)
    sums = {
        "one pixel short": [pixels - 1],
        "one pixel too many": [pixels + 1],
        "negative": [pixels + 5, -5],
        "beyond 64 bits": [2**64 - 5, pixels - (2**64 - 5)],
        "a wrapping sum": [2**63, 2**63, pixels],
        "NaN": [NAN, pixels],
    }
    for name, runs in sums.items():
        yield changed(name, runs)
    for other in (None, [], [valid.HEIGHT], [0, 0], [-24, -20], ["24", 20], [24.0, 20]):
        yield changed(f"size {spoken(other)}", text, other)
    yield changed("size of 10^18 pixels", [10**18], [10**9, 10**9])
    for name, polygons in POLYGONS.items():
        annotation = {**valid.COCO["annotations"][1], "segmentation": polygons}
        whole = in_json(valid.COCO, "annotations", 1, value=annotation)

        def change(folder: Path, whole: str = whole) -> None:
            _coco(folder)
            (folder / "truth.json").write_text(whole)

        yield Input(f"polygon: {name}", change)

    wide = copy.deepcopy(valid.COCO)
    wide["images"][1].update(height=1, width=1_000_000)
    wide["annotations"] = [
        wide["annotations"][0],
        {**wide["annotations"][1], "segmentation": [[0, 0, 999_999, 0] * 50]},
    ]
    large = copy.deepcopy(valid.COCO)
    large["images"][1].update(height=5000, width=5000)
    large["annotations"][1].update(segmentation=[[2, 2, 11, 2, 11, 7]] * 30_000)
    for name, content in (("a zigzag of 10^8 pixels", wide), ("30,000 of an image of 25 million pixels", large)):

        def change(folder: Path, whole: str = json.dumps(content)) -> None:
            _coco(folder)
            (folder / "truth.json").write_text(whole)

        yield Input(f"polygons: {name}", change)


POLYGONS: dict[str, Any] = {
    "two corners": [[1, 1, 5, 5]],
    "an odd number": [[1, 1, 5, 5, 9]],
    "NaN": [[1, 1, NAN, 5, 9, 9]],
    "texts": [["1", "1", "x", "5", "9", "9"]],
    "a number of 400 digits": [[1, 1, 10**400, 5, 9, 9]],
    "nested": [[[1, 1], [5, 5], [[9, 9]]]],
    "a number": 5,
    "a text": "1 1 5 5 9 9",
    "empty": [[]],
}


# Files of heat maps


def _npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for key, content in members.items():
            archive.writestr(f"{key}.npy", content)
    return file.getvalue()


def _npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header.encode("latin-1") + data


def _heat_maps() -> Iterator[Input]:
    whole = valid.heat_maps(*valid.COCO_KEYS)
    first = valid.COCO_KEYS[0]

    def changed(name: str, content: bytes) -> Input:
        return Input(name, replaced("maps.npz", content))

    def other(heat_map: np.ndarray) -> bytes:
        return valid.heat_maps(*valid.COCO_KEYS[1:], **{first: heat_map})

    arrays = {
        "another shape": np.zeros((9, 9), np.float32),
        "three axes": np.zeros((224, 224, 3), np.float32),
        "no axis": np.float32(1),
        "empty": np.zeros((0, 0), np.float32),
        "complex": np.zeros((224, 224), np.complex64),
        "text": np.full((224, 224), "x"),
        "objects": np.full((224, 224), None),
        "times": np.zeros((224, 224), "datetime64[s]"),
        "records": np.zeros((224, 224), [("a", "f4")]),
        "all NaN": np.full((224, 224), NAN, np.float32),
        "one NaN": np.where(np.arange(224 * 224).reshape(224, 224) == 5, NAN, 1).astype(np.float32),
        "infinity": np.full((224, 224), np.inf, np.float32),
    }
    for name, heat_map in arrays.items():
        yield changed(name, other(np.asarray(heat_map)))
    headers = {
        "a header that calls": "{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,)}",
        "a header that is cut": "{'descr': '<f4', 'fortran",
        "a header that is nested": "(" * 9000,
        "a negative shape": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 224)}",
        "a shape of 10^18": "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000)}",
        "a shape of texts": "{'descr': '<f4', 'fortran_order': False, 'shape': ('a', 'b')}",
        "an unknown type": "{'descr': '<z9', 'fortran_order': False, 'shape': (224, 224)}",
        "a type of many fields": "{'descr': [('', '<f4')] * 9999, 'fortran_order': False, 'shape': (224, 224)}",
        "no header": "",
    }
    rest = {key: _first_member(valid.heat_maps(key)) for key in valid.COCO_KEYS[1:]}
    for name, header in headers.items():
        yield changed(name, _npz(**{first: _npy(header)}, **rest))
    yield changed("a later version", _npz(**{first: _npy("{}", version=9)}, **rest))
    yield changed("a member that is no array", _npz(**{first: b"text"}, **rest))
    yield changed("a map too few", valid.heat_maps(*valid.COCO_KEYS[1:]))
    yield changed("two keys that differ in case", valid.heat_maps(*valid.COCO_KEYS, "a.png\tLEFT effusion"))
    yield changed("an array alone", _first_member(whole))
    yield changed("empty", b"")
    yield changed("text", b"no archive")
    yield changed("no archive behind PK", b"PK\3\4" + b"x" * 99)
    yield changed("an encrypted member", _marked(whole, flags=1))
    yield changed("an unknown compression", _marked(whole, method=97))
    for share in range(1, 10):
        yield Input(f"cut after {share}/10", cut("maps.npz", share / 10))
        yield Input(f"a byte at {share}/10 inverted", flipped("maps.npz", share / 10))


def _first_member(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(archive.namelist()[0])


def _marked(content: bytes, flags: int = 0, method: int = 0) -> bytes:
    """An archive whose first member has other flags, or another method of compression, in both of its headers."""
    data = bytearray(content)
    for sign, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(sign) + place
        data[at : at + 4] = struct.pack("<HH", flags, method)
    return bytes(data)


def groups() -> list[Group]:
    """The groups of this module."""
    return [
        Group("truth files", _coco, SCORE, [*_truth_files()], scores),
        Group("boxes", _coco, SCORE, [*_boxes()], scores),
        Group("run lengths and polygons", _rle, SCORE, [*_run_lengths()], scores),
        Group("heat maps", _coco, SCORE, [*_heat_maps()], scores),
    ]
