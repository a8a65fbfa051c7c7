"""Data sets whose annotations are boxes, polygons and run lengths, each in its publisher's layout."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from published import any_count, box_mask, build, dicom_file, image_file, json_file, listed, refused, rows_file
from raw_folders import SECRET

from data_pipelines.builders.nih import nih_dataset_builder
from data_pipelines.builders.nih.nih_dataset_builder import CLASSES
from data_pipelines.images import Geometry

SQUARE = Geometry(40, 30)  # the images below: a pixel is 5.6 pixels of the square, with 28 columns of padding


def labels(record):
    return [(finding.label, finding.prompt, len(finding.boxes)) for finding in record.findings]


# --- RSNA ---------------------------------------------------------------------------------------------------------


def rsna(raw):
    for seed, name in enumerate(("0004cfab", "00436515", "00704310")):
        dicom_file(raw / "stage_2_train_images" / f"{name}.dcm", seed, 1024, 1024)
    rows = [
        ["0004cfab", "", "", "", "", 0],
        ["00436515", 264.0, 152.0, 213.0, 379.0, 1],
        ["00436515", 562.0, 152.0, 256.0, 453.0, 1],
        ["00704310", "", "", "", "", 0],
    ]
    rows_file(raw / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", rows)
    classes = [["0004cfab", "No Lung Opacity / Not Normal"], ["00436515", "Lung Opacity"], ["00436515", "Lung Opacity"],
               ["00704310", "Normal"]]  # fmt: skip
    rows_file(raw / "stage_2_detailed_class_info.csv", "patientId,class", classes)


def test_rsna_boxes_of_an_image_are_one_finding(tmp_path):
    rsna(tmp_path / "raw")
    records, account = build(tmp_path, "rsna")
    assert set(account["splits"].values()) == {"test"} and len(records) == 3
    record = records["00436515"]
    assert labels(record) == [("Pneumonia", "Findings suggesting pneumonia.", 2)]
    assert record.findings[0].boxes == ((264, 152, 213, 379), (562, 152, 256, 453))
    expected = box_mask(224, 224, (57, 33, 46, 82), (122, 33, 56, 99))  # 224 / 1024 pixels a pixel, floored
    np.testing.assert_array_equal(record.findings[0].mask, expected)
    assert record.labels == {"pneumonia": 1, "lung opacity": 1}
    assert records["0004cfab"].labels == {"pneumonia": 0, "no lung opacity / not normal": 1}
    assert records["00704310"].findings == []


def test_rsna_tables_and_counts_are_checked(tmp_path):
    rsna(tmp_path / "raw")
    assert "3 files, the data set has 26,684" in refused(tmp_path, "rsna")
    table, header = tmp_path / "raw" / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target"
    rows = [["0004cfab", 1, 2, SECRET, 4, 1], ["00436515", 1, 2, 3, 4, SECRET], ["00704310", "", "", "", "", 0]]
    rows_file(table, header, rows)
    assert "row 2, column width" in refused(tmp_path, "rsna", partial=True)
    _, account = build(tmp_path, "rsna", max_bad_fraction=1)
    assert account["records"] == {"test": 1}
    rejected = {entry["image"]: (entry["reason"], entry["place"]) for entry in account["rejected"]}
    table = "stage_2_train_labels.csv"
    assert rejected == {
        "0004cfab": (f"{table}, row 2, column width: not a number", f"{table}, row 2"),
        "00436515": (f"{table}, row 3, column Target: neither 0 nor 1", f"{table}, row 3"),
    }


# --- SIIM ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["train-rle.csv", "stage_2_train.csv"])
def test_siim_run_lengths_go_down_the_columns(tmp_path, table):
    raw = tmp_path / "raw"
    for seed, name in enumerate(("1.2.276.0.1", "1.2.276.0.2")):
        folder = raw / "dicom-images-train" / f"{name}.study" / f"{name}.series"
        dicom_file(folder / f"{name}.dcm", seed)
    # Columns 3 and 4, rows 10 to 19; then column 20, rows 0 to 4: each start counts from the end of the run before.
    first, second = f"{3 * 40 + 10} 10 30 10", f"{20 * 40} 5"
    header = "ImageId, EncodedPixels" if table == "train-rle.csv" else "ImageId,EncodedPixels"
    rows_file(raw / table, header, [["1.2.276.0.1", first], ["1.2.276.0.2", " -1"], ["1.2.276.0.1", second]])
    records, _ = build(tmp_path, "siim")
    mask = box_mask(40, 30, (3, 10, 2, 10), (20, 0, 1, 5))
    assert labels(records["1.2.276.0.1"]) == [("Pneumothorax", "Findings suggesting pneumothorax.", 0)]
    np.testing.assert_array_equal(records["1.2.276.0.1"].findings[0].mask, SQUARE.mask_to_square(mask))
    assert records["1.2.276.0.2"].findings == [] and records["1.2.276.0.2"].labels == {"pneumothorax": 0}
    for broken, message in (
        ("5", "pairs of gap and length"),
        ("1 9999", "fit into the image"),
        ("a b", "whole numbers"),
    ):
        rows_file(raw / table, header, [["1.2.276.0.1", broken]])
        assert message in refused(tmp_path, "siim")


# --- NIH ----------------------------------------------------------------------------------------------------------

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def nih(raw):
    names = ["00000001_000.png", "00000001_001.png", "00000002_000.png", "00000013_026.png"]
    for seed, name in enumerate(names):
        image_file(raw / f"images_00{1 + seed % 2}" / "images" / name, seed, *((1024, 1024) if seed == 3 else (40, 30)))
    found = ["Cardiomegaly", "Cardiomegaly|Emphysema", "No Finding", "Infiltration|Pleural_Thickening"]
    rows = [[name, label, 0, int(name[:8]), "058Y", "M", "PA", 2682, 2749, 0.143, 0.143, ""]
            for name, label in zip(names, found, strict=True)]  # fmt: skip
    rows_file(raw / "Data_Entry_2017.csv", NIH_HEADER, rows)
    rows = [[names[3], "Infiltrate", 2.5, 8.25, 10, 12, "", "", ""], [names[3], "Pneumonia", 1, 1, 5, 5, "", "", ""]]
    rows_file(raw / "BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h],,,", rows)
    (raw / "train_val_list.txt").write_text("\n".join(names[:3]) + "\n")
    (raw / "test_list.txt").write_text(names[3])
    return names


def test_nih_labels_boxes_and_official_test_list(tmp_path):
    names = nih(tmp_path / "raw")
    records, account = build(tmp_path, "nih", fractions={"train": 1.0})
    assert [account["splits"][name] for name in names] == ["train", "train", "train", "test"]
    assert records[names[0]].patient == records[names[1]].patient != records[names[2]].patient
    assert sum(records[names[1]].labels.values()) == 2 and records[names[1]].labels["emphysema"] == 1
    assert len(CLASSES) == 14 and set(records[names[2]].labels.values()) == {0}
    assert labels(records[names[3]]) == [
        ("Infiltration", "Findings suggesting infiltration.", 1),
        ("Pneumonia", "Findings suggesting pneumonia.", 1),
    ]
    assert records[names[3]].findings[0].boxes == ((2.5, 8.25, 10, 12),)
    assert records[names[3]].labels["pleural thickening"] == 1 and records[names[3]].view == "PA"


def test_nih_images_that_are_missing_are_named_and_all_of_them_listed(tmp_path, monkeypatch):
    names = nih(tmp_path / "raw")
    assert "Data_Entry_2017.csv has 4 rows, the data set has 112,120" in refused(tmp_path, "nih")
    for name in names[:1] + names[2:]:
        next((tmp_path / "raw").rglob(name)).unlink()
    any_count(monkeypatch, "nih")
    builder = nih_dataset_builder.Builder
    counted = (*builder.FILES[:-1], replace(builder.FILES[-1], count=4))
    monkeypatch.setattr(builder, "FILES", counted)
    message = refused(tmp_path, "nih")
    assert "lacks 3 of 4 images that its tables name; and **/*_*.png: 1 files" in message and names[0] not in message
    assert listed(tmp_path, "nih", "missing") == [
        names[0],
        names[2],
        names[3],
        "**/*_*.png: 1 files, the data set has 4 (images)",
    ]
    (tmp_path / "raw" / "train_val_list.txt").write_text(names[0])
    wrong = "Data_Entry_2017.csv, row 3, column Image Index: in neither train_val_list.txt nor test_list.txt"
    assert f"({wrong})" in refused(tmp_path, "nih") and listed(tmp_path, "nih") == [f"{names[1]}: {wrong}"]
    nih(tmp_path / "raw")
    rows = [[names[1], "Edema", 0, 1, "058Y", "M", "PA", 2682, 2749, 0.143, 0.143, ""]] * 2
    rows_file(tmp_path / "raw" / "Data_Entry_2017.csv", NIH_HEADER, rows)
    wrong = "Data_Entry_2017.csv, row 3, column Image Index: the same as in row 2"
    assert f"1 of 2 images are unusable, more than max_bad_fraction=0.05 allows ({wrong})" in refused(
        tmp_path, "nih", partial=True
    )
    records, account = build(tmp_path, "nih", max_bad_fraction=0.5, fractions={"train": 1.0})
    place, _, reason = wrong.rpartition(", ")
    assert list(records) == [names[1]] and account["rejected"] == [{"image": place, "reason": reason, "place": place}]


def test_nih_refuses_unknown_labels_and_patients_in_both_lists(tmp_path):
    names = nih(tmp_path / "raw")
    (tmp_path / "raw" / "test_list.txt").write_text(f"{names[3]}\n{names[1]}")
    _, account = build(tmp_path, "nih", fractions={"train": 1.0})
    assert account["splits"][names[0]] == "test", "a patient goes as a whole where the official lists name one image"
    row = [names[0], "Cough", 0, 1, "058Y", "M", "PA", 1, 1, 1, 1, ""]
    rows_file(tmp_path / "raw" / "Data_Entry_2017.csv", NIH_HEADER, [row])
    assert "(Data_Entry_2017.csv, row 2, column Finding Labels: an unknown label)" in refused(
        tmp_path, "nih", partial=True
    )


# --- VinDr --------------------------------------------------------------------------------------------------------


def vindr(raw):
    for part, name in (("train", "50a418190bc3"), ("train", "9a5094b2563a"), ("test", "8dc8e54ae1a8")):
        dicom_file(raw / part / f"{name}.dicom", len(name) + len(part))
    corners = "x_min,y_min,x_max,y_max"
    rows = [
        ["50a418190bc3", "R8", "Pleural effusion", 3, 20, 13, 35],
        ["50a418190bc3", "R9", "Pleural effusion", 4, 22, 14, 36],
        ["50a418190bc3", "R9", "Cardiomegaly", 10, 18, 25, 30],
        ["9a5094b2563a", "R1", "No finding", "", "", "", ""],
    ]
    rows_file(raw / "annotations" / "annotations_train.csv", f"image_id,rad_id,class_name,{corners}", rows)
    rows = [["8dc8e54ae1a8", "Nodule/Mass", 5.5, 6.5, 9, 10]]
    rows_file(raw / "annotations" / "annotations_test.csv", f"image_id,class_name,{corners}", rows)
    rows = [["50a418190bc3", reader, 1, int(reader == "R9"), 0, 0] for reader in ("R8", "R9", "R10")]
    rows += [["9a5094b2563a", reader, 0, 0, 1, 0] for reader in ("R1", "R2", "R3")]
    rows_file(
        raw / "annotations" / "image_labels_train.csv",
        "image_id,rad_id,Pleural effusion,Cardiomegaly,No finding,Other diseases",
        rows,
    )
    rows_file(
        raw / "annotations" / "image_labels_test.csv",
        "image_id,Nodule/Mass,No finding,Other disease",
        [["8dc8e54ae1a8", 1.0, 0.0, 1.0]],
    )


def test_vindr_readers_are_united_or_kept_apart_and_labels_are_their_majority(tmp_path):
    vindr(tmp_path / "raw")
    records, account = build(tmp_path, "vindr_cxr")
    assert account["splits"] == {"50a418190bc3": "train", "9a5094b2563a": "train", "8dc8e54ae1a8": "test"}
    first = records["50a418190bc3"]
    assert labels(first) == [("Pleural effusion", "Findings suggesting pleural effusion.", 2),
                             ("Cardiomegaly", "Findings suggesting cardiomegaly.", 1)]  # fmt: skip
    assert first.findings[0].boxes == ((3, 20, 10, 15), (4, 22, 10, 14)) and first.findings[0].annotator == ""
    assert first.labels == {"pleural effusion": 1, "cardiomegaly": 0, "no finding": 0, "other diseases": 0}
    assert records["9a5094b2563a"].findings == [] and records["9a5094b2563a"].labels["no finding"] == 1
    assert records["8dc8e54ae1a8"].labels["other diseases"] == 1, "one name in both parts"
    assert records["8dc8e54ae1a8"].findings[0].boxes == ((5.5, 6.5, 3.5, 3.5),)
    records, _ = build(tmp_path, "vindr_cxr", readers="separate")
    readers = [(f.label, f.annotator) for f in records["50a418190bc3"].findings]
    assert readers == [("Pleural effusion", "R8"), ("Pleural effusion", "R9"), ("Cardiomegaly", "R9")]


# --- ChestX-Det ---------------------------------------------------------------------------------------------------


def test_chestx_det_polygons_or_boxes(tmp_path):
    raw = tmp_path / "raw"
    image_file(raw / "train_data" / "36199.png", 1, 1024, 1024)
    image_file(raw / "test_data" / "36346.png", 2, 1024, 1024)
    square = [[128, 256], [448, 256], [448, 768], [128, 768]]
    entry = {"file_name": "36199.png", "syms": ["Effusion", "Effusion", "Diffuse Nodule"],
             "boxes": [[128, 256, 448, 768], [640, 512, 832, 768], [64, 64, 256, 256]],
             "polygons": [square, [[640, 512], [832, 512], [832, 768]], [[64, 64], [256, 64], [256, 256]]]}  # fmt: skip
    json_file(raw / "ChestX_Det_train.json", [entry])
    json_file(raw / "ChestX_Det_test.json", [{"file_name": "36346.png", "syms": [], "boxes": [], "polygons": []}])
    assert "ChestX_Det_train.json and ChestX_Det_test.json: 2 entries, the data set has 3,578" in refused(
        tmp_path, "chestx_det"
    )
    records, account = build(tmp_path, "chestx_det")
    assert account["splits"] == {"train/36199.png": "train", "test/36346.png": "test"}
    record = records["train/36199.png"]
    assert labels(record) == [("Effusion", "Findings suggesting effusion.", 0),
                              ("Diffuse Nodule", "Findings suggesting diffuse nodule.", 0)]  # fmt: skip
    assert record.labels["effusion"] == 1 and sum(record.labels.values()) == 2 and len(record.labels) == 13
    inside = record.findings[0].mask
    assert inside[56:168, 28:98].all() and inside.sum() < 112 * 70 + 42 * 56 and not inside[100, 110]
    records, _ = build(tmp_path, "chestx_det", regions="boxes")
    assert records["train/36199.png"].findings[0].boxes == ((128, 256, 320, 512), (640, 512, 192, 256))
    json_file(raw / "ChestX_Det_test.json", [{"file_name": "36346.png", "syms": ["Mass"], "boxes": [], "polygons": []}])
    wrong = "ChestX_Det_test.json, entry 0, syms and polygons: not as many regions as classes, or malformed"
    assert f"({wrong})" in refused(tmp_path, "chestx_det", partial=True)
    assert listed(tmp_path, "chestx_det") == [f"test/36346.png: {wrong}"]
    json_file(raw / "ChestX_Det_test.json", [{"name": SECRET}])
    records, account = build(tmp_path, "chestx_det", max_bad_fraction=0.5)
    where = "ChestX_Det_test.json, entry 0"
    rejected = {"image": where, "reason": f"{where}, file_name: missing", "place": where}
    assert account["rejected"] == [rejected] and len(records) == 1
    json_file(raw / "ChestX_Det_test.json", [{"file_name": "36346.png", "syms": ["Mass"], "polygons": [[[1, 2]]]}])
    wrong = "ChestX_Det_test.json, entry 0: a polygon needs three corners or more, each within 1,000,000 pixels"
    assert f"({wrong})" in refused(tmp_path, "chestx_det", partial=True)


# --- COVID Rural --------------------------------------------------------------------------------------------------


def test_covid_rural_masks_hold_0_and_1(tmp_path):
    raw = tmp_path / "raw"
    names = [
        "COVID-19-AR-16406488_01-08-2012-XR",
        "COVID-19-AR-16406488_01-15-2012-XR",
        "COVID-19-AR-16406489_01-26-2012-XR",
    ]
    for seed, name in enumerate(names):
        image_file(raw / "jpgs" / f"{name}.jpg", seed)
    mask = box_mask(40, 30, (5, 10, 10, 15))
    for name in names[:2]:
        (raw / "pngs_masks").mkdir(exist_ok=True)
        cv2.imwrite(str(raw / "pngs_masks" / f"{name}.png"), mask.astype(np.uint8))
    cv2.imwrite(str(raw / "pngs_masks" / "COVID-19-AR-1_01-01-2012-XR.png"), mask.astype(np.uint8))
    message = refused(tmp_path, "covid_rural")
    assert "lacks 1 of 3 images that its tables name; and 1 of the files that belong to its images;" in message
    lost = [str(Path("jpgs", "COVID-19-AR-1_01-01-2012-XR.jpg")), str(Path("pngs_masks", f"{names[2]}.png"))]
    assert listed(tmp_path, "covid_rural", "missing") == lost and names[2] not in message
    records, account = build(tmp_path, "covid_rural")
    assert set(records) == set(names[:2]) and account["dropped"] == {"mask not there": 1, "image not there": 1}
    assert labels(records[names[0]]) == [("Pneumonia", "Findings suggesting pneumonia.", 0)]
    np.testing.assert_array_equal(records[names[0]].findings[0].mask, SQUARE.mask_to_square(mask))
    assert records[names[0]].patient == records[names[1]].patient and set(account["splits"].values()) == {"test"}
