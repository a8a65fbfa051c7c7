"""CheXlocalize: RLE masks for images of CheXpert."""

import json

import numpy as np
from published import any_count, box_mask, build, image_file, json_file, listed, refused, rows_file
from pycocotools import mask as coco_mask

from afloc_jax.evaluation.truth.read import read_truth
from data_pipelines.images import Geometry

VALIDATION, TEST = "patient64541_study1_view1_frontal", "patient64741_study1_view1_frontal"


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def tree(tmp_path):
    raw = tmp_path / "raw"
    masks = {"effusion": box_mask(40, 30, (3, 20, 9, 12)), "none": np.zeros((40, 30), bool)}
    for folder, split, patient in (("val", "val", "patient64541"), ("test", "test", "patient64741")):
        image_file(raw / "CheXpert" / folder / patient / "study1" / "view1_frontal.jpg", len(split))
        classes = {"Pleural Effusion": rle(masks["effusion"]), "Edema": rle(masks["none"])}
        json_file(raw / "CheXlocalize" / f"gt_segmentations_{split}.json", {f"{patient}_study1_view1_frontal": classes})
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Pleural Effusion"
    row = [
        "CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg",
        "Male",
        73,
        "Frontal",
        "AP",
        "0.0",
        "0.0",
        "1.0",
    ]
    rows_file(raw / "CheXpert" / "val_labels.csv", header, [row])
    return masks


def test_masks_are_findings_and_empty_ones_are_none(tmp_path):
    masks = tree(tmp_path)
    records, account = build(tmp_path, "chexlocalize")
    assert account["splits"] == {
        "patient64541_study1_view1_frontal": "validation",
        "patient64741_study1_view1_frontal": "test",
    }
    first, second = (records[key] for key in account["splits"])
    assert [(f.label, f.prompt) for f in first.findings] == [
        ("Pleural Effusion", "Findings suggesting pleural effusion.")
    ]
    np.testing.assert_array_equal(first.findings[0].mask, Geometry(40, 30).mask_to_square(masks["effusion"]))
    assert first.labels == {"no finding": 0, "edema": 0, "pleural effusion": 1} and second.labels == {}
    assert first.view == "frontal" and first.patient != second.patient and first.study


def test_images_that_the_mask_files_do_not_list_are_records_without_a_finding(tmp_path):
    tree(tmp_path)
    for number, folder in enumerate(("val/patient64555", "test/patient64777", "train/patient00001")):
        image_file(tmp_path / "raw" / "CheXpert" / folder / "study1" / "view2_lateral.jpg", 20 + number)
    records, account = build(tmp_path, "chexlocalize")
    assert account["splits"] == {
        VALIDATION: "validation",
        "patient64555_study1_view2_lateral": "validation",
        TEST: "test",
        "patient64777_study1_view2_lateral": "test",
    }
    healthy = records["patient64555_study1_view2_lateral"]
    assert healthy.findings == [] and healthy.view == "lateral" and healthy.patient and healthy.study


def test_images_of_a_part_without_its_mask_file_are_not_taken_for_healthy(tmp_path):
    tree(tmp_path)
    (tmp_path / "raw" / "CheXlocalize" / "gt_segmentations_test.json").unlink()
    assert build(tmp_path, "chexlocalize")[1]["splits"] == {VALIDATION: "validation"}


def test_records_keep_the_masks_in_original_pixels(tmp_path):
    masks = tree(tmp_path)
    records, _ = build(tmp_path, "chexlocalize")
    (finding,) = records[VALIDATION].findings
    original = coco_mask.decode({"size": [40, 30], "counts": finding.runs})
    np.testing.assert_array_equal(original, masks["effusion"])


def test_masks_that_do_not_fit_are_rejected_by_image(tmp_path):
    tree(tmp_path)
    path = tmp_path / "raw" / "CheXlocalize" / "gt_segmentations_val.json"
    content = json.loads(path.read_text())
    entry = content[VALIDATION]["Pleural Effusion"]
    for broken, message in (
        ({**entry, "size": [30, 40]}, "an RLE is for [30, 40] (height, width), its image is [40, 30]"),
        ({**entry, "counts": "~~"}, "not a valid RLE"),
        ({**entry, "counts": None}, "(gt_segmentations_val.json, image 0: a segmentation is not a valid RLE"),
        ({**entry, "counts": [5]}, "(gt_segmentations_val.json, image 0: the run lengths of an RLE do not add up"),
        ({**entry, "counts": [1.5, 2]}, "do not add up"),
        ("text", "must map classes to masks"),
        ({"size": [40, 30], "counts": [5, 7]}, "do not add up"),
    ):
        content[VALIDATION]["Pleural Effusion"] = broken
        path.write_text(json.dumps(content))
        assert message in refused(tmp_path, "chexlocalize", partial=True)
    path.write_text("{")
    assert "not valid JSON" in refused(tmp_path, "chexlocalize", partial=True)


def test_what_the_publisher_ships_must_be_there(tmp_path, monkeypatch):
    tree(tmp_path)
    message = refused(tmp_path, "chexlocalize")
    assert "1 files, the data set has 234" in message and "1 files, the data set has 668" in message
    (tmp_path / "raw" / "CheXlocalize" / "gt_segmentations_test.json").unlink()
    assert "**/gt_segmentations_test.json is missing" in refused(tmp_path, "chexlocalize")
    assert set(build(tmp_path, "chexlocalize")[1]["splits"].values()) == {"validation"}
    tree(tmp_path)
    any_count(monkeypatch, "chexlocalize")
    image_file(tmp_path / "raw" / "CheXpert" / "test" / "patient1" / "study1" / "view1_frontal.jpg", 9)
    (tmp_path / "raw" / "CheXpert" / "test" / "patient64741" / "study1" / "view1_frontal.jpg").unlink()
    message = refused(tmp_path, "chexlocalize")
    assert "lacks 1 of 2 images" in message and "patient64741" not in message
    (lost,) = listed(tmp_path, "chexlocalize", "missing")
    assert lost.endswith("patient64741/study1/view1_frontal.jpg")


def test_the_published_sample_is_read(tmp_path, shared_data):
    (tmp_path / "raw").symlink_to(shared_data / "chexlocalize_sample")
    records, account = build(tmp_path, "chexlocalize")
    assert set(account["splits"].values()) == {"validation"} and not account["rejected"]
    first, second = records["patient64541_study1_view1_frontal"], records["patient64542_study1_view1_frontal"]
    assert [f.label for f in first.findings] == ["Enlarged Cardiomediastinum", "Cardiomegaly", "Airspace Opacity"]
    assert [f.label for f in second.findings] == ["Support Devices"]
    assert (first.height, first.width) == (2320, 2828) and first.labels["cardiomegaly"] == 1
    scored = read_truth(shared_data / "chexlocalize_sample" / "gt_segmentations_val.json")
    found = [(record.id, f.label, f.mask) for record in records.values() for f in record.findings]
    assert [(t.image, t.category) for t in scored] == [entry[:2] for entry in found]
    for truth, (*_, mask) in zip(scored, found, strict=True):
        np.testing.assert_array_equal(truth.mask > 0, mask)
    truth = json.loads((shared_data / "chexlocalize_sample" / "gt_segmentations_val.json").read_text())
    for record in records.values():
        for finding in record.findings:
            full = coco_mask.decode({**truth[record.id][finding.label]}).astype(bool)
            np.testing.assert_array_equal(finding.mask, record.geometry.mask_to_square(full))
            assert finding.runs == truth[record.id][finding.label]["counts"]
