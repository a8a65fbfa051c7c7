"""No text of a patient's file gets into what failing commands write: screen, logs, outputs, temporary folders."""

import json
import logging
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest

import launch
from afloc_jax.cli import main
from afloc_jax.files import sha256_of

CANARY = "qzxcanary"  # stands for what a report, a name or a header could say
PAIRS = "pairs.csv"
HEADER = "image,text,patient,split\n"
ROW = f"a.png,{CANARY} has edema,{CANARY},train\n"
SYSTEMS = "system,id,category,metric,value\n"

# Name -> the files of the raw folder (beside its images), and the command line, in which RAW and OUT are folders.
PREPARE = "prepare pairs --raw RAW --out OUT --no_overview"
SCORE = "score --truth RAW/truth{} --heatmaps RAW/maps.npz --out OUT"
BROKEN_COCO = {"images": [], "annotations": [], "categories": []}
IMAGE = {"id": 1, "path": "a.png", "height": 20, "width": 20}
ANNOTATION = {"id": 1, "image_id": 1, "category_id": 1, "label_text": CANARY, "bbox": [1, 1, 5, 5]}
COCO = {"images": [IMAGE], "annotations": [ANNOTATION], "categories": [{"id": 1, "name": CANARY}]}

FAILURES: dict[str, tuple[dict[str, str], str]] = {
    "a table without a header": ({PAIRS: f"a.png,{CANARY}\nb.png,{CANARY}\n"}, PREPARE),
    "a header of one cell": ({PAIRS: f"{CANARY}\n"}, PREPARE),
    "a column twice": ({PAIRS: f"image,text,{CANARY},{CANARY}\n{ROW}"}, PREPARE),
    "too many cells": ({PAIRS: f"{HEADER}a.png,{CANARY}, fine,{CANARY},train\n"}, PREPARE),
    "too few cells": ({PAIRS: f"{HEADER}a.png,{CANARY}\n"}, PREPARE),
    "an unbalanced quote": ({PAIRS: f'{HEADER}a.png,"{CANARY},p,train\n{ROW}'}, PREPARE),
    "a quote inside": ({PAIRS: f'{HEADER}a.png,the {CANARY} "x" y,p,train\n'}, PREPARE),
    "a swallowed row": ({PAIRS: f'{HEADER}a.png,"{CANARY}\nb.png,{CANARY}",p,train\n'}, PREPARE),
    "an unknown split": ({PAIRS: f"{HEADER}a.png,fine,p,{CANARY}\n"}, PREPARE),
    "a path that leaves": ({PAIRS: f"{HEADER}../{CANARY}.png,fine,p,train\n"}, PREPARE),
    "a missing image": ({PAIRS: f"{HEADER}{CANARY}.png,fine,p,train\n"}, PREPARE),
    "an image that is text": ({PAIRS: f"{HEADER}c.png,{CANARY},p,train\n", "images/c.png": CANARY * 9}, PREPARE),
    "a DICOM file that is none": (
        {PAIRS: f"{HEADER}c.dcm,{CANARY},p,train\n", "images/c.dcm": "\0" * 128 + "DICM" + CANARY},
        PREPARE,
    ),
    "a patient in two splits": ({PAIRS: f"{HEADER}{ROW}b.png,{CANARY},{CANARY},test\n"}, PREPARE),
    "an image in two splits": ({PAIRS: f"{HEADER}{ROW}a.png,{CANARY},x,test\n"}, PREPARE),
    "no sentence": ({PAIRS: f"{HEADER}a.png,.,{CANARY},train\n"}, PREPARE),
    "no UTF-8": ({PAIRS: f"{HEADER}{ROW}b.png,\udcff {CANARY},p,train\n"}, PREPARE),
    "a list of patients without a column": (
        {PAIRS: HEADER + ROW, "out.csv": f"{CANARY}\n{CANARY}\n"},
        f"{PREPARE} --exclude RAW/out.csv",
    ),
    "a list of patients with an empty row": (
        {PAIRS: HEADER + ROW, "out.csv": f"patient,x\n{CANARY},1\n,{CANARY}\n"},
        f"{PREPARE} --exclude RAW/out.csv",
    ),
    "a short key": ({PAIRS: HEADER + ROW, "key": CANARY}, f"{PREPARE} --pseudonym_key RAW/key"),
    "a truth that is no JSON": ({"truth.json": f'{{"images": [{{"{CANARY}": {CANARY}'}, SCORE.format(".json")),
    "a truth with a key twice": ({"truth.json": f'{{"{CANARY}": 1, "{CANARY}": 2}}'}, SCORE.format(".json")),
    "a truth without boxes": (
        {"truth.json": json.dumps({**COCO, **BROKEN_COCO, CANARY: CANARY})},
        SCORE.format(".json"),
    ),
    "a box that is none": (
        {"truth.json": json.dumps({**COCO, "annotations": [{**ANNOTATION, "bbox": [CANARY]}]})},
        SCORE.format(".json"),
    ),
    "samples without a map": ({"truth.json": json.dumps(COCO)}, SCORE.format(".json")),
    "a truth table without a header": ({"truth.csv": f"a.png,{CANARY}\n"}, SCORE.format(".csv")),
    "a truth table without a mask": (
        {"truth.csv": f"image,mask,finding\na.png,{CANARY}.png,{CANARY}\n"},
        SCORE.format(".csv"),
    ),
    "systems without a header": ({"s.csv": f"{CANARY},1\n"}, "compare RAW/s.csv --out OUT"),
    "a value that is none": ({"s.csv": f"{SYSTEMS}a,1,{CANARY},iou,{CANARY}\n"}, "compare RAW/s.csv --out OUT"),
    "a score twice": ({"s.csv": f"{SYSTEMS}a,1,{CANARY},iou,1\na,1,{CANARY},iou,0\n"}, "compare RAW/s.csv --out OUT"),
    "training on a bad table": ({PAIRS: f"{HEADER}a.png,{CANARY}, fine,{CANARY},train\n"}, "launch"),
    "no word of five reports": ({PAIRS: f"{HEADER}{ROW}b.png,{CANARY},p,validation\n"}, "launch"),
    "excluded words that are no text": (
        {PAIRS: f"{HEADER}{ROW}b.png,{CANARY},p,validation\n", "words": f"\udcff{CANARY}"},
        "launch --exclude_words=RAW/words",
    ),
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The temporary folder and the outputs of a command, apart from what it reads."""
    for name in ("tmp", "out", "raw/images"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "out")
    for name in ("a.png", "b.png"):
        noise = np.random.default_rng(ord(name[0])).integers(0, 256, (20, 20), np.uint8)
        cv2.imwrite(str(tmp_path / "raw" / "images" / name), noise)
    np.savez(tmp_path / "raw" / "maps.npz", other=np.zeros((4, 4), np.float32))
    return tmp_path


def launched(flags, raw, out):
    config = f"--config={Path(launch.__file__).parent}/configs/pairs.py"
    data = [f"--config.data.raw={raw}", f"--config.data.directory={out}/data"]
    return launch.main(["launch.py", config, f"--workdir={out}/run", *data, *flags])


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_command_writes_nothing_that_it_read(name, written, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    raw, out = written / "raw", written / "out"
    files, line = FAILURES[name]
    for path, content in files.items():
        (raw / path).write_bytes(os.fsencode(content))
    before = {path: sha256_of(path) for path in raw.rglob("*") if path.is_file()}
    command, *flags = (word.replace("RAW", str(raw)).replace("OUT", str(out)) for word in line.split())
    status = launched(flags, raw, out) if command == "launch" else main([command, *flags])
    said = "".join(capfd.readouterr())
    assert status in (1, 2) and said.strip(), said
    assert "Traceback" not in said and "internal error" not in said
    assert CANARY not in (said + caplog.text).lower()
    # Records hold reports. Names of files stand in the lists that are local by design; the cells of the table do not.
    found = [path for path in (*out.rglob("*"), *(written / "tmp").rglob("*")) if path.is_file()]
    found = [path for path in found if ".array_record" not in path.name]
    local = {"pairs.rejected.txt", "pairs.missing.txt"} if "image" in name or "DICOM" in name else set()
    assert [path for path in found if CANARY.encode() in path.read_bytes().lower() and path.name not in local] == []
    assert {path: sha256_of(path) for path in raw.rglob("*") if path.is_file()} == before
