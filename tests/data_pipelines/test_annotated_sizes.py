"""Annotations on resized images, boxes outside their image, and publishers' real tables on made-up images."""

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from published import box_mask, build, image_file, json_file, refused, rows_file
from raw_folders import SECRET
from test_annotated_sets import NIH_HEADER

from afloc_jax.cli import main
from data_pipelines.building.decode import Decoding, example
from data_pipelines.building.items import Item
from data_pipelines.images import ImageError
from data_pipelines.prepared import prepare
from data_pipelines.regions import Box, CocoRuns, Polygon, run_lengths

PATH = "files/p10/p10000032/s50414267/{}.jpg"
TABLES = Path(os.environ.get("AFLOC_SHARED", "../shared")) / "data" / "publisher_tables"


def ms_cxr(raw: Path, boxes: dict[str, list[float]], **size: int | str) -> None:
    """Annotations of one box an image, for images of 2,544 x 3,056 pixels unless `size` says otherwise."""
    images = [{"id": k, "path": PATH.format(k), "width": 2544, "height": 3056} | size for k in boxes]
    entries = [{"image_id": k, "category_id": 1, "bbox": box, "label_text": f"phrase {k}"} for k, box in boxes.items()]
    categories = [{"id": 1, "name": "Edema"}]
    json_file(raw / "MS_CXR_Local_Alignment_v1.1.0.json",
              {"categories": categories, "images": images, "annotations": entries})  # fmt: skip


def ms_cxr_images(raw: Path, names, height: int, width: int) -> None:
    for seed, name in enumerate(names):
        image_file(raw / PATH.format(name), seed, height, width)


def test_half_size_copies_give_the_masks_of_the_originals_and_halved_boxes(tmp_path):
    """Finding B9: half-size copies of 20 images gave 20 records with wrong boxes."""
    rng = np.random.default_rng(0)
    boxes = {f"i{k}": [*rng.integers(0, 1200, 2).tolist(), *rng.integers(100, 1300, 2).tolist()] for k in range(4)}
    found = {}
    for name, side in (("whole", (3056, 2544)), ("half", (1528, 1272))):
        ms_cxr(tmp_path / name / "raw", boxes)
        ms_cxr_images(tmp_path / name / "raw", boxes, *side)
        found[name], account = build(tmp_path / name, "ms_cxr")
        assert not account["rejected"] and not account["boxes_outside"] and len(found[name]) == 4
    for key, whole in found["whole"].items():
        half = found["half"][key]
        assert (half.width, half.height) == (1272, 1528)
        np.testing.assert_allclose(np.array(half.findings[0].boxes) * 2, whole.findings[0].boxes)
        np.testing.assert_array_equal(half.findings[0].mask, whole.findings[0].mask)


def test_an_image_of_another_aspect_is_refused_by_name_with_both_sizes(tmp_path):
    raw = tmp_path / "raw"
    ms_cxr(raw, {"i0": [10, 10, 50, 50], "i1": [10, 10, 50, 50]})
    ms_cxr_images(raw, ["i0"], 1528, 1272)
    ms_cxr_images(raw, ["i1"], 512, 512)
    message = refused(tmp_path, "ms_cxr")
    assert (
        "json, annotation 1: its annotations are for an image of 2544 x 3056 pixels; this one has 512 x 512" in message
    )
    records, account = build(tmp_path, "ms_cxr", max_bad_fraction=0.5)
    assert list(records) == [PATH.format("i0")] and [entry["image"] for entry in account["rejected"]] == [
        PATH.format("i1")
    ]


@pytest.mark.parametrize(
    ("size", "image", "plain"),
    [
        ((2544, 3056), (1272, 1528), True),
        ((2544, 3056), (2544, 3056), True),
        ((2544, 3056), (213, 256), True),  # 213.1: rounded down
        ((2544, 3056), (214, 256), True),  # rounded up
        ((2544, 3056), (215, 256), False),
        ((2544, 3056), (3056, 2544), False),  # on its side
        ((1024, 1024), (2048, 2048), True),  # enlarged
        ((1024, 1024), (512, 510), False),
        ((0, 1024), (1024, 1024), False),
        ((1_000_000, 1_000_000), (1024, 1024), False),  # no image is so large; its mask would fill the memory
    ],
)
def test_a_plain_resize_keeps_the_aspect_within_rounding(tmp_path, size, image, plain):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros(image[::-1], np.uint8))
    item = Item("a", tmp_path / "a.png", annotated_size=size)
    item.add("Edema", "edema", Box(2, 2, 20, 20))
    assert isinstance(example(item, Decoding(224)), ImageError) != plain
    assert not isinstance(example(Item("a", tmp_path / "a.png", annotated_size=size), Decoding(224)), ImageError), (
        "without a region nothing has to fit"
    )


def test_run_lengths_of_a_resized_image_are_kept_in_its_own_pixels(tmp_path):
    mask = box_mask(80, 60, (20, 8, 30, 40))
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 30), np.uint8))
    region = CocoRuns({"size": [80, 60], "counts": run_lengths(mask)})
    item = Item("a", tmp_path / "a.png", annotated_size=region.size)
    item.add("Edema", "edema", region)
    (finding,) = example(item, Decoding(80)).findings
    kept = CocoRuns({"size": [40, 30], "counts": finding.runs}).mask(40, 30)
    np.testing.assert_array_equal(kept, box_mask(40, 30, (10, 4, 15, 20)))
    np.testing.assert_array_equal(finding.mask, box_mask(80, 80, (30, 8, 30, 40)))


def test_polygons_of_a_resized_image_cover_the_same_part_of_the_square(tmp_path):
    masks = []
    for side in (1024, 256):
        cv2.imwrite(str(tmp_path / "a.png"), np.zeros((side, side), np.uint8))
        item = Item("a", tmp_path / "a.png", annotated_size=(1024, 1024))
        item.add("Mass", "mass", Polygon([[128, 256], [448, 256], [448, 768]]))
        masks.append(example(item, Decoding(224)).findings[0].mask)
    np.testing.assert_array_equal(*masks)
    assert masks[0].any()


def test_boxes_that_reach_beyond_their_image_are_counted_by_image(tmp_path, capsys):
    raw = tmp_path / "raw"
    boxes = {
        "inside": [0, 0, 2544, 3056],
        "rounded": [0, 0, 2544.4, 3056],  # less than half a pixel is the rounding of the annotation
        "right": [2500, 10, 50, 50],
        "left": [-3, 10, 50, 50],
        "outside": [2600, 10, 50, 50],
    }
    ms_cxr(raw, boxes)
    ms_cxr_images(raw, boxes, 3056, 2544)
    prepared = prepare("ms_cxr", tmp_path / "out", raw=raw, builder={"partial": True, "max_bad_fraction": 0.2})
    assert prepared.report.boxes_outside == {PATH.format("left"): 1, PATH.format("right"): 1}
    (rejected,) = prepared.report.rejected
    assert rejected.image == PATH.format("outside") and "outside its image of 2544 x 3056" in rejected.reason
    call = ["prepare", "ms_cxr", "--raw", str(raw), "--out", str(tmp_path / "out"), "--no_overview"]
    assert main([*call, "--builder=partial=true", "--builder=max_bad_fraction=0.2"]) == 0
    said = capsys.readouterr().out
    assert "2 boxes of 2 images reach beyond them and were cut, named in build_report.json there" in said
    again = prepare("ms_cxr", tmp_path / "out", raw=raw, builder={"partial": True, "max_bad_fraction": 0.2})
    assert not again.built and again.report == prepared.report


def test_a_bad_annotation_of_ms_cxr_rejects_its_image_and_names_the_key(tmp_path):
    raw = tmp_path / "raw"
    ms_cxr_images(raw, ["i0", "i1"], 40, 30)
    ms_cxr(raw, {"i0": [1, 1, 5, 5], "i1": [1, 1, 5, SECRET]}, width=30, height=40)
    records, account = build(tmp_path, "ms_cxr", max_bad_fraction=0.5)
    place = "MS_CXR_Local_Alignment_v1.1.0.json, annotation 1"
    rejected = {"image": PATH.format("i1"), "reason": f"{place}, bbox: missing or malformed", "place": place}
    assert account["rejected"] == [rejected] and len(records) == 1
    ms_cxr(raw, {"i0": [1, 1, 5, 5]}, width=SECRET)
    assert "annotation 0, width and height: missing or malformed" in refused(tmp_path, "ms_cxr", partial=True)
    ms_cxr(raw, {"i0": [1, 1, 5, 5]}, path=SECRET)
    assert "annotation 0, image_id: not an image of the file" in refused(tmp_path, "ms_cxr", partial=True)


@pytest.mark.skipif(not TABLES.is_dir(), reason="SKIPPED: set AFLOC_SHARED to the folder of shared data")
def test_nih_real_table_of_boxes_fits_images_of_half_its_size(tmp_path):
    """All 984 boxes of the publisher's table, and its official list, on black images of 512 x 512 pixels."""
    raw = tmp_path / "raw"
    (raw / "images").mkdir(parents=True)
    for name in ("BBox_List_2017.csv", "train_val_list.txt"):
        (raw / name).write_bytes((TABLES / "nih" / name).read_bytes())
    with (raw / "BBox_List_2017.csv").open(newline="") as file:
        boxes = list(csv.reader(file))[1:]
    names = sorted({row[0] for row in boxes})
    official = (raw / "train_val_list.txt").read_text().split()
    (raw / "test_list.txt").write_text("\n".join(names) + "\n")  # the real list is not among the shared tables
    assert (len(boxes), len(names), len(official), len(set(official) & set(names))) == (984, 880, 86524, 0)
    data = cv2.imencode(".png", np.zeros((512, 512), np.uint8))[1].tobytes()
    for name in [*names, official[0]]:
        (raw / "images" / name).write_bytes(data)
    rows = [[name, "No Finding", 0, int(name[:8]), 50, "M", "PA", 2500, 2048, 0.1, 0.1, ""] for name in names]
    rows.append([official[0], "Hernia", 0, int(official[0][:8]), 50, "M", "PA", 2500, 2048, 0.1, 0.1, ""])
    rows_file(raw / "Data_Entry_2017.csv", NIH_HEADER, rows)
    records, account = build(tmp_path, "nih", image_size=64, fractions={"train": 1.0})
    assert account["records"] == {"train": 1, "test": 880}
    assert account["rejected"] == [] and account["boxes_outside"] == {}
    made = sorted(box for record in records.values() for finding in record.findings for box in finding.boxes)
    expected = sorted(tuple(np.float32(float(cell) / 2) for cell in row[2:6]) for row in boxes)
    np.testing.assert_allclose(made, expected, rtol=1e-6)
    labels = {finding.label for record in records.values() for finding in record.findings}
    assert "Infiltration" in labels and "Infiltrate" not in labels and len(labels) == 8


@pytest.mark.skipif(not TABLES.is_dir(), reason="SKIPPED: set AFLOC_SHARED to the folder of shared data")
def test_chestx_det_real_annotations_fit_images_of_a_quarter_of_their_size(tmp_path):
    """The publisher's test part: 553 entries with 1,734 boxes, on black images of 256 x 256 pixels."""
    raw = tmp_path / "raw"
    (raw / "test_data").mkdir(parents=True)
    entries = json.loads((TABLES / "chestx_det" / "ChestX_Det_test.json").read_text())
    json_file(raw / "ChestX_Det_test.json", entries)
    json_file(raw / "ChestX_Det_train.json", [])
    data = cv2.imencode(".png", np.zeros((256, 256), np.uint8))[1].tobytes()
    for entry in entries:
        (raw / "test_data" / entry["file_name"]).write_bytes(data)
    (raw / "train_data").mkdir()
    (raw / "train_data" / "unused.png").write_bytes(data)
    records, account = build(tmp_path, "chestx_det", image_size=64, regions="boxes")
    assert account["records"] == {"test": 553} and account["rejected"] == [] and account["boxes_outside"] == {}
    for entry in entries:
        corners = np.array(entry["boxes"], float).reshape(-1, 4) / 4
        expected = sorted((x, y, right - x, bottom - y) for x, y, right, bottom in corners)
        made = sorted(box for f in records[f"test/{entry['file_name']}"].findings for box in f.boxes)
        np.testing.assert_allclose(np.array(made).reshape(-1, 4), np.array(expected).reshape(-1, 4), rtol=1e-6)
    some = entries[::5]
    json_file(raw / "ChestX_Det_test.json", some)
    polygons, _ = build(tmp_path, "chestx_det", image_size=64)
    assert sum(len(record.findings) for record in polygons.values()) == len(
        {(entry["file_name"], name) for entry in some for name in entry["syms"]}
    )
