"""Data sets of reports, captions and labels, each in its publisher's layout."""

import csv

import cv2
import numpy as np
import pytest
from published import box_mask, build, image_file, json_file, listed, refused, rows_file
from raw_folders import SECRET

from data_pipelines.builders.cxr_lt.cxr_lt_dataset_builder import CLASSES as CXR_LT_CLASSES
from data_pipelines.builders.idrid import idrid_dataset_builder
from data_pipelines.builders.mimic_cxr.mimic_cxr_dataset_builder import CLASSES
from data_pipelines.images import Geometry

SQUARE = Geometry(40, 30)


def test_padchest_keeps_spanish_reports_and_their_labels(tmp_path):
    raw = tmp_path / "raw"
    header = ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,Projection,ReportID,Report,Labels"
    rows = [
        [
            0,
            "a.png",
            0,
            20140915,
            "s1",
            "p1",
            "PA",
            1,
            "sin hallazgos . pinzamiento .",
            "['normal', ' pleural effusion']",
        ],
        [1, "b.png", 0, 20140915, "s1", "p1", "L", 1, "sin hallazgos .", "['normal']"],
        [2, "c.png", 14, 20140915, "s2", "p2", "AP_horizontal", 2, "nódulo de 1.5 cm .", "[]"],
        [3, "d.png", 14, 20140915, "s3", "p3", "PA", 3, "", ""],
    ]
    rows_file(raw / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", header, rows)
    for seed, (_, name, folder, *_) in enumerate(rows):
        (raw / str(folder)).mkdir(exist_ok=True)
        cv2.imwrite(
            str(raw / str(folder) / name), np.random.default_rng(seed).integers(0, 4096, (40, 30)).astype(np.uint16)
        )
    records, account = build(tmp_path, "padchest")
    assert set(records) == {"a.png", "c.png"}
    assert account["dropped"] == {"view not wanted": 1, "report without a sentence": 1}
    assert records["a.png"].sentences == ["sin hallazgos", "pinzamiento"]
    assert records["a.png"].labels == {"normal": 1, "pleural effusion": 1} and records["c.png"].labels == {}
    assert records["c.png"].sentences == ["nodulo de 1.5 cm"] and records["c.png"].view == "AP_horizontal"
    assert records["a.png"].image.max() == 255  # 16 bit, scaled by its own range


def test_padchest_gr_boxes_are_shares_of_the_image(tmp_path):
    raw = tmp_path / "raw"
    image_file(raw / "PadChest_GR" / "x.png", 1)
    image_file(raw / "PadChest_GR" / "y.png", 2)
    abnormal = {
        "sentence_en": "Small left effusion.",
        "sentence_es": "Pequeño derrame izquierdo.",
        "abnormal": True,
        "boxes": [[0.1, 0.5, 0.4, 0.75], [0.5, 0.5, 0.6, 0.6]],
        "extra_boxes": [],
        "labels": ["pleural effusion"],
        "locations": ["left"],
        "progression": None,
    }
    normal = {"sentence_en": "Normal heart.", "sentence_es": "Corazón normal.", "abnormal": False}
    json_file(raw / "grounded_reports_20240819.json", [
        {"StudyID": "s1", "ImageID": "x.png", "PreviousStudyID": None, "findings": [abnormal, normal]},
        {"StudyID": "s2", "ImageID": "y.png", "findings": [normal]},
    ])  # fmt: skip
    header = "StudyID,ImageID,label,boxes_count,extra_boxes_count,split,PatientID,label_group"
    rows = [  # a row per study and label
        ["s1", "x.png", "pleural effusion", 2, 0, "test", "p1", "Pleural effusion"],
        ["s1", "x.png", "Normal", 0, 0, "test", "p1", "Normal"],
        ["s2", "y.png", "Normal", 0, 0, "validation", "p2", "Normal"],
    ]
    rows_file(raw / "master_table.csv", header, rows)
    (raw / "master_table.csv.zip").write_bytes(b"PK")  # as downloaded; unpacked it is what is read
    assert "has 2 entries, the data set has 4,555" in refused(tmp_path, "padchest_gr")
    records, account = build(tmp_path, "padchest_gr")
    assert account["splits"] == {"x.png": "test", "y.png": "validation"}
    record = records["x.png"]
    assert record.sentences == ["small left effusion", "normal heart"] and record.labels == {"pleural effusion": 1}
    (finding,) = record.findings
    assert (finding.label, finding.prompt) == ("pleural effusion", "Small left effusion")
    np.testing.assert_allclose(finding.boxes, [(3, 20, 9, 10), (15, 20, 3, 4)], atol=1e-5)
    records, _ = build(tmp_path, "padchest_gr", language="es")
    assert records["x.png"].sentences == ["pequeno derrame izquierdo", "corazon normal"]
    json_file(raw / "grounded_reports_20240819.json", [{"StudyID": "s9", "ImageID": "x.png", "findings": [normal]}])
    assert "entry 0: not an image of a study in master_table.csv" in refused(tmp_path, "padchest_gr", partial=True)
    json_file(raw / "grounded_reports_20240819.json", [
        {"StudyID": "s1", "ImageID": "x.png", "findings": [{**abnormal, "boxes": [[0.1, 0.5, SECRET, 1]]}]},
        {"StudyID": "s2", "ImageID": "y.png", "findings": [{**abnormal, "boxes": [[0.5, 0.5, 1.1, 0.75]]}]},
    ])  # fmt: skip
    records, account = build(tmp_path, "padchest_gr", max_bad_fraction=0.5)
    place = "grounded_reports_20240819.json, entry 0"
    reason = f"{place}, findings: not sentences with boxes of four numbers"
    assert account["rejected"] == [{"image": "x.png", "reason": reason, "place": place}] and set(records) == {"y.png"}
    assert account["boxes_outside"] == {"y.png": 1}, "a share above 1 reaches beyond the image"
    (raw / "master_table.csv").unlink()
    assert "master_table.csv is missing" in refused(tmp_path, "padchest_gr")


def test_roco_captions_are_filtered_by_their_words(tmp_path):
    raw = tmp_path / "raw"
    captions = {
        "train": ["ROCO_00002\t Chest X-ray with effusion. 3 cm.", "ROCO_00003\tCT of the liver."],
        "validation": ["ROCO_00019\t Frontal chest X-Ray."],
        "test": [f"ROCO_00015\t {SECRET} chest x-ray."],
    }
    for part, lines in captions.items():
        for seed, line in enumerate(lines):
            image_file(raw / part / "radiology" / "images" / f"{line[:10]}.jpg", seed + 10 * len(part))
        (raw / part / "radiology" / "captions.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    records, account = build(tmp_path, "roco", partial=False, containing=["chest x-ray"])
    assert account["splits"] == {"ROCO_00002": "train", "ROCO_00019": "validation", "ROCO_00015": "test"}
    assert records["ROCO_00002"].sentences == ["chest x ray with effusion", "3 cm"]
    assert account["dropped"] == {"other caption": 1}
    assert len(build(tmp_path, "roco", partial=False)[0]) == 4
    # Line separators of Unicode inside a caption, and lines that end as on Windows.
    lines = "ROCO_00015\tChest\u2028film.\x0b Edema\x85 is new.\r\n"
    (raw / "test" / "radiology" / "captions.txt").write_bytes(lines.encode())
    records, _ = build(tmp_path, "roco", partial=False)
    assert records["ROCO_00015"].sentences == ["chest film", "edema is new"]
    (raw / "test" / "radiology" / "captions.txt").write_text(f"ROCO_00015 {SECRET}")
    assert "test/radiology/captions.txt, line 1: no tab" in refused(tmp_path, "roco")
    records, account = build(tmp_path, "roco", partial=False, max_bad_fraction=0.5)
    assert len(records) == 3 and [entry["image"] for entry in account["rejected"]] == [
        "test/radiology/captions.txt, line 1"
    ]


def roco_version_2(raw):
    """Tables and images of version 2: the archives of images unpack to train/, or to train_images/train/."""
    captions = {
        "train": [("ROCOv2_2023_train_000001", "Chest X-ray, with\n effusion. 3 cm."), ("", SECRET)],
        "valid": [("ROCOv2_2023_valid_000001", "CT of the liver.")],
        "test": [("ROCOv2_2023_test_000001", "Frontal chest X-ray."), ("ROCOv2_2023_test_000002", "...")],
    }
    for number, (part, rows) in enumerate(captions.items()):
        rows_file(raw / f"{part}_captions.csv", "ID,Caption", rows)
        for name, _ in rows:
            folder = raw / "train_images" / "train" if part == "train" else raw / part
            image_file(folder / f"{name or 'ROCOv2_2023_train_000009'}.jpg", 10 * number + len(name) + len(rows))


def test_roco_version_2_is_read_from_its_tables(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    roco_version_2(raw)
    assert "train_captions.csv has 2 rows, the data set has 59,958" in refused(tmp_path, "roco")
    records, account = build(tmp_path, "roco", max_bad_fraction=0.5)
    splits = {"train_000001": "train", "valid_000001": "validation", "test_000001": "test"}
    assert account["splits"] == {f"ROCOv2_2023_{name}": split for name, split in splits.items()}
    first = records["ROCOv2_2023_train_000001"]
    assert first.sentences == ["chest x ray with effusion", "3 cm"] and first.sections["caption"].startswith("Chest X")
    place = "train_captions.csv, row 3"
    assert account["rejected"] == [{"image": place, "reason": f"{place}, column ID: empty", "place": place}]
    assert account["dropped"] == {"caption without a sentence": 1}
    records, _ = build(tmp_path, "roco", max_bad_fraction=0.5, containing=["chest x-ray"])
    assert {record.split("_")[2] for record in records} == {"train", "test"}
    (raw / "valid_captions.csv").unlink()
    assert "valid_captions.csv is missing" in refused(tmp_path, "roco", partial=True)


def test_leaks_of_an_official_split_stop_the_build_or_cost_training_rows(tmp_path):
    raw = tmp_path / "raw"
    for part, names in {"train": ["ROCO_1", "ROCO_2"], "validation": ["ROCO_3"], "test": ["ROCO_4"]}.items():
        for name in names:
            image_file(
                raw / part / "radiology" / "images" / f"{name}.jpg", seed=int(name[-1]) % 3
            )  # 1 and 4 are one image
        (raw / part / "radiology" / "captions.txt").write_text("".join(f"{name}\tChest film.\n" for name in names))
    assert "1 image content on both sides of a split" in refused(tmp_path, "roco")
    records, account = build(tmp_path, "roco", leaks="drop")
    assert account["splits"] == {"ROCO_2": "train", "ROCO_3": "validation", "ROCO_4": "test"} and len(records) == 3
    assert account["dropped"] == {"also in an evaluation split": 1}
    assert "leaks is 'keep'" in refused(tmp_path, "roco", leaks="keep")
    image_file(raw / "train" / "radiology" / "images" / "ROCO_3.jpg", seed=0)  # by the name of a validation image
    (raw / "train" / "radiology" / "captions.txt").write_text("".join(f"ROCO_{n}\tChest film.\n" for n in (1, 2, 3)))
    assert build(tmp_path, "roco", leaks="drop")[1]["splits"] == account["splits"]
    (raw / "train" / "radiology" / "captions.txt").write_text("".join(f"ROCO_{n}\tChest film.\n" for n in (2, 2)))
    said = refused(tmp_path, "roco", leaks="drop")
    assert "captions.txt, line 2: the same image as train/radiology/captions.txt, line 1)" in said
    assert listed(tmp_path, "roco")[0].startswith("ROCO_2: ") and "ROCO_2" not in said


def test_chexpert_labels_keep_uncertainty_and_paths_may_begin_with_the_release(tmp_path):
    raw = tmp_path / "raw"
    header = ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CLASSES])
    rest, release = [""] * (len(CLASSES) - 3), "CheXpert-v1.0-small"
    rows = [
        [
            f"{release}/train/patient00001/study1/view1_frontal.jpg",
            "Female",
            68,
            "Frontal",
            "AP",
            "1.0",
            "-1.0",
            "0.0",
            *rest,
        ],
        [f"{release}/train/patient00002/study2/view2_lateral.jpg", "Female", 87, "Lateral", "", "", "", "", *rest],
    ]
    rows_file(raw / "train.csv", header, rows)
    valid = [
        f"{release}/valid/patient64541/study1/view1_frontal.jpg",
        "Male",
        73,
        "Frontal",
        "PA",
        "0.0",
        "0.0",
        "0.0",
        *rest,
    ]
    rows_file(raw / "valid.csv", header, [valid])
    for seed, (path, *_) in enumerate([*rows, valid]):
        image_file(raw / path.partition("/")[2], seed)
    message = refused(tmp_path, "chexpert")
    assert "train.csv has 2 rows, the data set has 223,414" in message and "valid.csv has 1 rows" in message
    records, account = build(tmp_path, "chexpert")
    assert account["splits"]["train/patient00001/study1/view1_frontal.jpg"] == "train"
    first = next(record for record in records.values() if record.labels.get("atelectasis") == 1)
    assert first.labels == {"atelectasis": 1, "cardiomegaly": -1, "consolidation": 0} and first.view == "AP"
    assert sorted(account["splits"].values()) == ["train", "validation"] and account["dropped"] == {"not frontal": 1}
    rows[0][5] = "2.0"
    rows_file(raw / "train.csv", header, rows)
    assert "(train.csv, row 2, column Atelectasis: a label is none" in refused(tmp_path, "chexpert", partial=True)
    for name in ("test.csv", "test_labels.csv"):
        rows_file(raw / name, header, [valid])
    assert "test.csv and test_labels.csv, which name the same images" in refused(tmp_path, "chexpert", partial=True)


def test_cxr_lt_reads_the_labelled_test_table_of_a_task(tmp_path):
    raw = tmp_path / "raw"
    folder = raw / "cxr-lt-iccv-workshop-cvamd" / "2.0.0" / "cxr-lt-2024"
    about = "dicom_id,subject_id,study_id,ViewPosition,ViewCodeSequence_CodeMeaning,fpath"
    path = "files/p10/p10000032/s50414267/d1.jpg"
    keys = ["d1", "10000032", "50414267", "PA", "postero-anterior", path]
    rows_file(folder / "test_task3.csv", about, [keys])  # the challenge has it without labels
    rows_file(folder / "development_labeled_task3.csv", f"{about},{','.join(CXR_LT_CLASSES[3])}", [])
    rows_file(folder / "test_labeled_task3.csv", f"{about},{','.join(CXR_LT_CLASSES[3])}", [[*keys, 1, 0, 0, 0, 1]])
    rows_file(folder / "test_labeled_task2.csv", f"{about},{','.join(CXR_LT_CLASSES[2])}", [[*keys, *([0, 1] * 13)]])
    image_file(tmp_path / "jpg" / path, 1)
    records, account = build(tmp_path, "cxr_lt", partial=False, task=3, images=str(tmp_path / "jpg"))
    expected = {"bulla": 1, "cardiomyopathy": 0, "hilum": 0, "osteopenia": 0, "scoliosis": 1}
    assert records["d1"].labels == expected and records["d1"].view == "PA" and account["records"] == {"test": 1}
    records, _ = build(tmp_path, "cxr_lt", partial=False, images=str(tmp_path / "jpg"))
    assert len(records["d1"].labels) == 26 and sum(records["d1"].labels.values()) == 13
    assert records["d1"].labels["normal"] == 0 and records["d1"].labels["nodule"] == 1
    (folder / "test_labeled_task2.csv").rename(folder / "task2.csv")
    assert "**/test_labeled_task2.csv is missing" in refused(tmp_path, "cxr_lt")
    rows_file(folder / "test_labeled_task2.csv", about, [keys])
    assert "lacks the columns Atelectasis, Calcification" in refused(tmp_path, "cxr_lt")
    assert "task is 1" in refused(tmp_path, "cxr_lt", task=1)
    labels = ",".join(CXR_LT_CLASSES[3])
    rows_file(folder / "test_labeled_task3.csv", f"{about},{labels}", [[*keys, 1, 0, SECRET, 0, 1]])
    wrong = "test_labeled_task3.csv, row 2, column Hilum: a label is none of 1, 0, -1 and an empty cell"
    assert f"({wrong})" in refused(tmp_path, "cxr_lt", task=3, images=str(tmp_path / "jpg"))


def idrid(raw, names, source=None):
    folder = raw / "A. Segmentation"
    for number, name in enumerate(names):
        part = "a. Training Set" if number == 0 else "b. Testing Set"
        image_file(folder / "1. Original Images" / part / f"{name}.jpg", number)
        for lesion, ending in (("1. Microaneurysms", "MA"), ("3. Hard Exudates", "EX")):
            path = folder / "2. All Segmentation Groundtruths" / part / lesion / f"{name}_{ending}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), box_mask(40, 30, (5 + number, 5, 6, 6)).astype(np.uint8) * 76)


def test_idrid_lesions_become_masks_labels_and_sentences(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    idrid(raw, ["IDRiD_01", "IDRiD_55"])
    image_file(raw / "A. Segmentation" / "1. Original Images" / "a. Training Set" / "IDRiD_02.jpg", 7)
    message = refused(tmp_path, "idrid")
    assert "2 files, the data set has 54 (images)" in message and "masks of haemorrhages" in message
    monkeypatch.setitem(idrid_dataset_builder.IMAGES, "segmentation", {"train": 2, "test": 1})
    for lesion in idrid_dataset_builder.LESIONS:
        monkeypatch.setitem(idrid_dataset_builder.MASKS, lesion, {"train": 1, "test": 1})
    message = refused(tmp_path, "idrid")
    assert "2. Haemorrhages/IDRiD_*_HE.tif is missing" in message and "Microaneurysms" not in message
    for part, name in (("a. Training Set", "IDRiD_02"), ("b. Testing Set", "IDRiD_55")):
        for folder, ending in (("2. Haemorrhages", "HE"), ("4. Soft Exudates", "SE")):
            path = raw / "A. Segmentation" / "2. All Segmentation Groundtruths" / part / folder / f"{name}_{ending}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), box_mask(40, 30, (9, 9, 6, 6)).astype(np.uint8))
    records, account = build(tmp_path, "idrid", partial=False)
    assert account["splits"] == {"IDRiD_01": "train", "IDRiD_02": "train", "IDRiD_55": "test"}
    first = records["IDRiD_01"]
    assert first.sentences == [
        "there are microaneurysms",
        "no haemorrhages",
        "there are hard exudates",
        "no soft exudates",
    ]
    assert [f.label for f in first.findings] == ["microaneurysm", "hard exudate"]
    np.testing.assert_array_equal(first.findings[0].mask, SQUARE.mask_to_square(box_mask(40, 30, (5, 5, 6, 6))))
    assert first.labels == {"microaneurysm": 1, "haemorrhage": 0, "hard exudate": 1, "soft exudate": 0}
    assert records["IDRiD_02"].sentences[0] == "no microaneurysms"


def test_a_part_of_idrid_says_nothing_of_lesions_whose_masks_are_not_all_there(tmp_path):
    raw = tmp_path / "raw"
    idrid(raw, ["IDRiD_01", "IDRiD_55"])
    image_file(raw / "A. Segmentation" / "1. Original Images" / "a. Training Set" / "IDRiD_02.jpg", 7)
    records, account = build(tmp_path, "idrid")
    assert set(records) == {"IDRiD_01", "IDRiD_55"} and account["dropped"] == {"no lesion known": 1}
    assert records["IDRiD_01"].sentences == ["there are microaneurysms", "there are hard exudates"]
    assert records["IDRiD_01"].labels == {"microaneurysm": 1, "hard exudate": 1}
    for path in raw.rglob("*.tif"):
        path.unlink()
    assert "no usable row" in refused(tmp_path, "idrid", partial=True), "images alone state nothing"


def test_idrid_grades_become_text(tmp_path):
    folder = tmp_path / "raw" / "B. Disease Grading"
    for number, (part, name) in enumerate((("a. Training", "Training"), ("b. Testing", "Testing"))):
        image_file(folder / "1. Original Images" / f"{part} Set" / "IDRiD_001.jpg", number)
        header = "Image name,Retinopathy grade,Risk of macular edema ,,,"
        row = ["IDRiD_001", 3 * (1 - number), 2 * (1 - number), "", "", ""]
        rows_file(folder / "2. Groundtruths" / f"{part[0]}. IDRiD_Disease Grading_{name} Labels.csv", header, [row])
    records, account = build(tmp_path, "idrid", images="grading")
    assert account["splits"] == {"train/IDRiD_001": "train", "test/IDRiD_001": "test"}
    first = records["train/IDRiD_001"]
    assert first.sentences == ["severe non proliferative diabetic retinopathy", "severe risk of macular edema"]
    assert first.impression_count == 1 and first.labels["macular edema"] == 1
    assert records["test/IDRiD_001"].sentences[0] == "no apparent diabetic retinopathy"


def test_real_retinal_images_in_the_layout_of_idrid(tmp_path, shared_data):
    folder = tmp_path / "raw" / "A. Segmentation"
    lesions = {"microaneurysm": ("1. Microaneurysms", "MA"), "haemorrhage": ("2. Haemorrhages", "HE"),
               "hard_exudate": ("3. Hard Exudates", "EX"), "soft_exudate": ("4. Soft Exudates", "SE")}  # fmt: skip
    part = "a. Training Set"
    with (shared_data / "fundus" / "lesions.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = 0
    for row in rows:
        image = folder / "1. Original Images" / part / row["image"]
        image.parent.mkdir(parents=True, exist_ok=True)
        if not image.is_symlink():
            image.symlink_to(shared_data / "fundus" / "images" / row["image"])
        lesion = row["mask"].split("__")[1].removesuffix(".png")
        if lesion in lesions:
            name, ending = lesions[lesion]
            mask = folder / "2. All Segmentation Groundtruths" / part / name / f"{image.stem}_{ending}.tif"
            mask.parent.mkdir(parents=True, exist_ok=True)
            mask.symlink_to(shared_data / "fundus" / "masks" / row["mask"])
            expected += 1
    image_file(folder / "1. Original Images" / "b. Testing Set" / "IDRiD_55.jpg", 1)
    records, _ = build(tmp_path, "idrid", max_bad_fraction=0)
    assert len(records) == 27 and sum(len(r.findings) for r in records.values()) == expected > 80


@pytest.mark.parametrize(
    "name", ["padchest", "roco", "chexpert", "sicapv2", "wsss4luad", "idrid", "siim", "vindr_cxr", "nih", "dhmc_luad"]
)
def test_an_empty_folder_is_refused_with_the_list_of_what_is_expected(tmp_path, name):
    (tmp_path / "raw").mkdir()
    assert "is missing" in refused(tmp_path, name)
