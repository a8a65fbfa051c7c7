"""Folders, patterns and files as inputs of `localize`, `classify` and `retrieve`; what is written; going on."""

import csv
import json
import os
import shutil

import cv2
import numpy as np
import pytest

import afloc_jax
from afloc_jax.cli import main
from afloc_jax.errors import UsageError
from afloc_jax.inference import films as reading
from afloc_jax.inference.figures import Caption, figure, tinted
from afloc_jax.inference.inputs import list_images, output_names
from afloc_jax.inference.journal import Journal
from afloc_jax.inference.localization import Localization
from afloc_jax.inference.outputs import BOX_COLUMNS
from data_pipelines.images import Geometry

PROMPT = "--prompt=small left effusion"


def dicom(path, pixels, **tags):
    pydicom = pytest.importorskip("pydicom")
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("MR_small.dcm"))
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path)
    return dataset


@pytest.fixture
def chests(tmp_path):
    """Five images, among them a DICOM file without a suffix, and what is none."""
    rng = np.random.default_rng(0)
    root = tmp_path / "chests"
    (root / "deep" / ".hidden").mkdir(parents=True)
    for name, shape in (("b.png", (90, 121)), ("a.jpg", (131, 77)), ("deep/a.png", (64, 64)), ("deep/z.dcm", (70, 80))):
        picture = cv2.GaussianBlur(rng.integers(0, 256, shape, dtype=np.uint8), (0, 0), 3)
        (dicom if name.endswith("dcm") else lambda p, x: cv2.imwrite(str(p), x))(root / name, picture)
    dicom(root / "1.2.840.5.7", rng.integers(0, 999, (90, 60)))
    shutil.copy(root / "b.png", root / "deep/.hidden/b.png")
    (root / "._b.png").write_bytes(b"of another system")
    (root / "notes.txt").write_text("no image")
    os.mkfifo(root / "pipe")
    return root


IMAGES = ["1.2.840.5.7", "a.jpg", "b.png", "deep/a.png", "deep/z.dcm"]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_one_listing_of_inputs(chests, tmp_path, monkeypatch):
    pydicom = pytest.importorskip("pydicom")
    report = pydicom.data.get_testdata_file("reportsi.dcm")
    shutil.copy(report, chests / "report.dcm")
    shutil.copy(pydicom.data.get_testdata_file("DICOMDIR"), chests / "DICOMDIR")
    found = list_images([chests])
    assert [str(one.path.relative_to(chests)) for one in found] == IMAGES and not any(one.singly for one in found)
    deep = list_images([chests / "**" / "*.*", chests / "b.png", chests / "notes.txt"])
    assert [(one.path.name, one.singly) for one in deep[-2:]] == [("z.dcm", False), ("notes.txt", True)]
    assert {one.path.name: one.singly for one in deep}["b.png"], "named singly as well"
    (chests / "[1].png").write_bytes((chests / "b.png").read_bytes())
    assert list_images([chests / "[1].png"])[0].singly, "a file of that name is no pattern"
    (chests / "b.0.overlay.png").write_bytes((chests / "b.png").read_bytes())
    assert len(list_images([chests])) == 7 and len(list_images([chests], out=chests)) == 6
    for wrong in (chests / "*.tif", chests / "deep" / ".hidden" / "none*", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=r"(holds|matches) no image"):
            list_images([wrong])
    uids = [chests / "1.2.3.4", chests / "1.2.3.5"]
    assert list(output_names(uids).values()) == ["1.2.3.4", "1.2.3.5"], "a UID has no suffix"


def test_a_folder_gives_a_table_and_small_overlays(folder, chests, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["localize", str(folder), str(chests), PROMPT, "--prompt=nodule", "--out", str(out), "--uids"]) == 0
    assert "5 images done, results in" in capsys.readouterr().out
    content = json.loads((out / "localize.json").read_text())
    assert [image["image"] for image in content["images"]] == [str(chests / name) for name in IMAGES]
    assert content["failed"] == [] and content["calibrated"] is False
    overlays = {prompt["overlay"] for image in content["images"] for prompt in image["prompts"]}
    assert {path.name for path in out.iterdir()} == {*overlays, "boxes.csv", "localize.json", "localize.jsonl"}
    for name in overlays:
        assert max(cv2.imread(str(out / name)).shape) <= 1024
    rows = rows_of(out / "boxes.csv")
    assert list(rows[0]) == [*BOX_COLUMNS, "sop_instance_uid"]
    found = afloc_jax.load(folder).localize([chests / name for name in IMAGES], ["small left effusion", "nodule"])
    expected = [(i, one, k) for i, of_image in enumerate(found) for one in of_image for k in range(len(one.boxes))]
    assert len(rows) == len(expected)
    for row, (i, one, k) in zip(rows, expected, strict=True):
        assert row["image"] == str(chests / IMAGES[i]) and row["present"] == ""
        assert [int(row[key]) for key in ("x", "y", "width", "height")] == one.boxes[k].tolist()
        x, y, width, height = one.boxes[k]
        assert float(row["score"]) == pytest.approx(one.heatmap[y : y + height, x : x + width].max(), rel=1e-4)
        is_dicom = i in (0, 4)
        assert (row["mm_per_pixel_x"], row["mm_per_pixel_y"]) == (("0.3125", "0.3125") if is_dicom else ("", ""))
        assert row["sop_instance_uid"].startswith("1.2.826") if is_dicom else not row["sop_instance_uid"]


def test_a_stopped_run_goes_on_with_what_is_left(folder, chests, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    call = ["localize", str(folder), str(chests), PROMPT, "--out", str(out)]
    (chests / "broken.png").write_text("no image")
    read, seen = reading.read_image, []

    def counted(path, rule):
        seen.append(path.name)
        return read(path, rule)

    monkeypatch.setattr(reading, "read_image", counted)
    assert main(call) == 1
    assert "broken.png: not an image" in capsys.readouterr().err
    whole = (out / "localize.json").read_text()
    lines = (out / "localize.jsonl").read_bytes().splitlines(keepends=True)
    (out / "localize.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:20])  # killed while it wrote the third
    (out / "a.0.overlay.png").unlink(missing_ok=True)
    seen.clear()
    assert main(call) == 1
    assert "1 of 6 images failed (2 before)" in capsys.readouterr().err and len(seen) == 4
    assert (out / "localize.json").read_text() == whole
    (chests / "broken.png").unlink()
    seen.clear()
    assert main(call) == 0 and not seen
    assert "5 images done (5 before)" in capsys.readouterr().out
    assert json.loads((out / "localize.json").read_text())["failed"] == []
    os.utime(chests / "b.png", ns=(1, 1))
    next(out.glob("deep_a.0.overlay.png")).unlink()
    assert main(call) == 0 and sorted(seen) == ["a.png", "b.png"], "a changed image, and one whose file is gone"
    seen.clear()
    assert main([*call, "--threshold=0.5"]) == 0 and len(seen) == 5, "another call"
    seen.clear()
    assert main([*call, "--threshold=0.5", "--anew"]) == 0 and len(seen) == 5


def test_files_named_singly_write_the_same_without_a_journal(folder, chests, tmp_path):
    out = tmp_path / "out"
    assert main(["localize", str(folder), str(chests / "b.png"), PROMPT, "--out", str(out)]) == 0
    expected = ["b.0.heatmap.npy", "b.0.overlay.png", "boxes.csv", "localize.json"]
    assert sorted(path.name for path in out.iterdir()) == expected


@pytest.mark.parametrize("form", ["npz", "png16", "none"])
def test_maps_in_other_forms(folder, chests, tmp_path, form):
    out = tmp_path / "out"
    call = ["localize", str(folder), str(chests / "b.png"), str(chests / "deep"), PROMPT, "--out", str(out)]
    assert main([*call, "--maps", form, "--overlays", "none"]) == 0
    content = json.loads((out / "localize.json").read_text())
    assert not list(out.glob("*.overlay.png")) and len(content["images"]) == 3
    found = afloc_jax.load(folder).localize([chests / "b.png"], ["small left effusion"])[0][0].heatmap
    entry = content["images"][0]["prompts"][0]
    if form == "none":
        assert "heatmap" not in entry and not list(out.glob("*heatmap*"))
    elif form == "npz":
        heatmap = np.load(out / entry["heatmap"])["heatmap"]
        np.testing.assert_allclose(heatmap, found, atol=1e-4 * np.abs(found).max())
    else:
        stored = cv2.imread(str(out / entry["heatmap"]), cv2.IMREAD_UNCHANGED)
        lowest, highest = entry["heatmap_range"]
        assert stored.dtype == np.uint16
        heatmap = lowest + stored / 65535 * (highest - lowest)
        np.testing.assert_allclose(heatmap, found, atol=1e-4 * np.abs(found).max())


def test_classify_takes_a_folder_and_goes_on(folder, chests, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    call = ["classify", str(folder), str(chests), "--class=edema", "--out", str(out)]
    assert main(call) == 0
    rows = rows_of(out)
    expected = afloc_jax.load(folder).classify([chests / name for name in IMAGES], ["edema"])[:, 0]
    assert [row["image"] for row in rows] == [str(chests / name) for name in IMAGES]
    np.testing.assert_allclose([float(row["edema"]) for row in rows], expected, atol=1e-5)
    (chests / "new.png").write_bytes((chests / "b.png").read_bytes())
    before = out.read_text().splitlines()
    assert main(call) == 0 and "6 images done (5 before)" in capsys.readouterr().out
    assert out.read_text().splitlines()[: len(before) - 2] == before[:-2]


def test_retrieve_finds_dicom_files_without_a_suffix(folder, chests, capsys):
    assert main(["retrieve", str(folder), "--images", str(chests), "--query", "edema", "--top", "9"]) == 0
    assert str(chests / "1.2.840.5.7") in capsys.readouterr().out


def test_a_damaged_line_and_what_follows_it_are_done_again(tmp_path):
    path = tmp_path / "a.jsonl"
    with Journal(path, {"k": 1}) as journal:
        for k in range(3):
            journal.add(f"{k}.png", [k, k], {"value": k})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + b"[]\n" + lines[3])
    with Journal(path, {"k": 1}) as journal:
        assert [journal.is_done(f"{k}.png", [k, k]) for k in range(3)] == [True, False, False]
        assert not journal.is_done("0.png", [0, 1]), "changed since"
    with Journal(path, {"k": 2}) as journal:
        assert not journal.is_done("0.png", [0, 0])


def test_an_overlay_leaves_the_image_clear_below_the_threshold_and_writes_below_it():
    picture = np.random.default_rng(0).integers(0, 256, (300, 200)).astype(np.uint8)
    square = np.zeros((224, 224), np.float32)
    square[150:180, 100:130] = 1
    found = Localization(cv2.GaussianBlur(square, (0, 0), 4), 0.2, "effusion", Geometry(300, 200), 0.3)
    drawn = figure(picture, found.placed, Caption("effusion", ["score 0.9"], ["A warning."], found.cut, found.highest))
    assert drawn.shape[1] == 420 and drawn.shape[0] > 300, "a caption needs that width"
    shown = drawn[:300, 110:310]
    changed = (shown != picture[..., None]).any(axis=-1)
    x, y, width, height = found.boxes[0]
    near = np.zeros_like(changed)
    near[y - 4 : y + height + 4, x - 4 : x + width + 4] = True
    assert changed.any() and not (changed & ~near).any()
    tint = tinted(picture, found.heatmap, found.cut, found.highest)
    inside = found.heatmap > found.cut
    colour = (tint.max(axis=-1).astype(int) - tint.min(axis=-1) > 0) & inside
    assert colour[inside].mean() > 0.95
    small = figure(np.zeros((3000, 2000), np.uint8), found.placed, Caption("word " * 90, [], [], 0.1, 1), 1024)
    assert max(small.shape) <= 1024 and max(small.shape) > 900


@pytest.mark.parametrize("letter", ["a", "i ", "i"])
def test_a_caption_takes_no_time_for_letters_that_it_does_not_show(letter):
    """A word of 100,000 letters took minutes, as its letters were taken away one by one."""
    found = Localization(np.zeros((224, 224), np.float32), 0.2, "effusion", Geometry(300, 400), 0.3)
    picture, texts = np.zeros((300, 400), np.uint8), (letter * 900, letter * 10**6)
    drawn = [figure(picture, found.placed, Caption(text, [text], [text], 0.1, 1)) for text in texts]
    np.testing.assert_array_equal(*drawn)


def test_the_colours_grow_lighter_evenly():
    """What is read in grey print and by colour-blind readers is lightness."""
    ramp = np.tile(np.linspace(0.01, 1, 256, dtype=np.float32), (40, 1))
    tint = tinted(np.full(ramp.shape, 128, np.uint8), ramp, 0.0, 1.0)[20, 4:-4]
    lightness = tint.astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(cv2.blur(lightness[:, None], (1, 9))[:, 0]) > -0.3).all() and lightness[-1] - lightness[0] > 25
