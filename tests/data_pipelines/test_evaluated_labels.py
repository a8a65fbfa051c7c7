"""Labels of data sets as evaluation reads them: through prepared records, and to the end of `afloc evaluate`."""

import csv
import json

import numpy as np
import pytest
from published import build, image_file, rows_file
from test_annotated_sets import NIH_HEADER, nih, rsna, vindr
from test_text_and_label_sets import CXR_LT_CLASSES
from test_tissue_sets import dhmc_luad, sicapv2, wsss4luad

from afloc_jax.cli import main
from afloc_jax.errors import UserError
from afloc_jax.evaluation.labelled import read_labelled
from data_pipelines.builders.mimic_cxr.mimic_cxr_dataset_builder import CLASSES
from tests.inference.conftest import folder  # noqa: F401 (fixture)

UNKNOWN = np.nan


def chexpert(raw):
    """Four images; of the third only an uncertain class is stated, of the fourth nothing."""
    header = ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CLASSES])
    stated = [{"Edema": "1.0", "Pneumonia": "-1.0"}, {"Edema": "0.0", "Pneumonia": "1.0"}, {"Pneumonia": "-1.0"}, {}]
    rows = []
    for number, labels in enumerate(stated):
        path = f"train/patient{number:05d}/study1/view1_frontal.jpg"
        image_file(raw / path, number)
        rows.append([f"CheXpert-v1.0/{path}", "F", 60, "Frontal", "AP", *(labels.get(name, "") for name in CLASSES)])
    rows_file(raw / "train.csv", header, rows)
    image_file(raw / "valid/patient9/study1/view1_frontal.jpg", 9)
    valid = ["CheXpert-v1.0/valid/patient9/study1/view1_frontal.jpg", "F", 60, "Frontal", "AP", *["0.0"] * len(CLASSES)]
    rows_file(raw / "valid.csv", header, [valid])


def cxr_lt(raw):
    about = "dicom_id,subject_id,study_id,ViewPosition"
    rows = []
    for number, values in enumerate(([1, 0, 0, 0, 1], [0, 1, 0, 0, 0])):
        image_file(raw / f"files/p10/p1000000{number}/s5/d{number}.jpg", number)
        rows.append([f"d{number}", f"1000000{number}", "5", "PA", *values])
    rows_file(raw / "test_labeled_task3.csv", f"{about},{','.join(CXR_LT_CLASSES[3])}", rows)


LABELS = {
    "nih": (nih, {"fractions": {"train": 1.0}}, "train", ("cardiomegaly", "emphysema"), [[1, 0], [1, 1], [0, 0]]),
    "rsna": (rsna, {}, "test", ("pneumonia",), [[0], [1], [0]]),
    # Two of three readers do not see the cardiomegaly that the third has drawn: the vote of the readers counts.
    "vindr_cxr": (vindr, {}, "train", ("pleural effusion",), [[1], [0]]),
    "chexpert": (chexpert, {}, "train", ("edema", "pneumonia"), [[1, UNKNOWN], [0, 1], [UNKNOWN, UNKNOWN]]),
    "cxr_lt": (cxr_lt, {"task": 3}, "test", ("bulla", "cardiomyopathy", "scoliosis"), [[1, 0, 1], [0, 1, 0]]),
    "sicapv2": (sicapv2, {}, "test", ("non-cancerous",), [[1]]),
    "wsss4luad": (wsss4luad, {}, "train", ("normal", "tumor"), [[1, 1]]),
    "dhmc_luad": (
        lambda raw: dhmc_luad(raw, "solid", "lepidic", "Acinar"), {}, "test", ("acinar", "lepidic", "solid"),
        [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_those_that_the_publisher_states(tmp_path, name):
    make, builder, split, classes, expected = LABELS[name]
    make(tmp_path / "raw")
    records, account = build(tmp_path, name, **builder)
    source = [records[key] for key in sorted(records) if account["splits"][key] == split]
    if name == "rsna":
        found = read_labelled(source, classes)  # "normal" and the two kinds of opacity are labels, too
        assert {"normal", "lung opacity"} <= set(read_labelled(source).classes)
    else:
        found = read_labelled(source)
    assert found.classes == classes
    np.testing.assert_array_equal(found.labels, expected)
    assert found.left_out == len(source) - len(expected)


def test_no_finding_is_what_the_labels_leave(tmp_path):
    nih(tmp_path / "raw")
    records, account = build(tmp_path, "nih", fractions={"train": 1.0})
    source = [records[key] for key in sorted(records) if account["splits"][key] == "train"]
    np.testing.assert_array_equal(read_labelled(source, ["No Finding"]).labels, [[0], [0], [1]])


def test_labels_that_list_only_what_is_present_need_a_word_from_the_user(tmp_path):
    header = ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,Projection,ReportID,Report,Labels"
    found = ["['pleural effusion']", "['normal']", "['nodule', 'pleural effusion']"]
    rows = [[n, f"{n}.png", 0, 20140915, f"s{n}", f"p{n}", "PA", n, "sin cambios .", labels]
            for n, labels in enumerate(found)]  # fmt: skip
    rows_file(tmp_path / "raw" / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", header, rows)
    for n in range(3):
        image_file(tmp_path / "raw" / "0" / f"{n}.png", n)
    records, _ = build(tmp_path, "padchest")
    source = [records[key] for key in sorted(records)]
    with pytest.raises(UserError, match="--unlisted absent"):
        read_labelled(source).contrasted()
    known = read_labelled(source, unlisted="absent")
    assert known.classes == ("nodule", "normal", "pleural effusion")
    np.testing.assert_array_equal(known.labels, [[0, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert list(known.exclusive()) == [2, 1, -1]


def test_evaluate_scores_the_labels_of_every_image_and_not_the_boxes_alone(tmp_path, folder, capsys):  # noqa: F811
    raw = tmp_path / "raw"
    names = [f"0000000{n}_000.png" for n in range(8)]
    found = ["Mass|Edema", "No Finding", "Effusion", "Edema", "Mass", "No Finding", "Effusion|Edema", "Mass"]
    for seed, name in enumerate(names):
        image_file(raw / "images_001" / "images" / name, seed, 40, 40)  # square, as the publisher's
    rows = [[name, label, 0, seed, "058Y", "M", "PA", 2682, 2749, 0.143, 0.143, ""]
            for seed, (name, label) in enumerate(zip(names, found, strict=True))]  # fmt: skip
    rows_file(raw / "Data_Entry_2017.csv", NIH_HEADER, rows)
    box = [names[4], "Mass", 64, 211.2, 256, 307.2, "", "", ""]  # of 1,024 pixels
    rows_file(raw / "BBox_List_2017.csv", "Image Index,Finding Label,Bbox [x,y,w,h],,,", [box])
    (raw / "train_val_list.txt").write_text("")
    (raw / "test_list.txt").write_text("\n".join(names))
    call = ["evaluate", str(folder), "--dataset", "nih", "--data", str(tmp_path / "data"), "--raw", str(raw)]
    call += ["--builder", "partial=true", "--bootstrap", "20", "--out", str(tmp_path / "out")]
    own = ["--prompts", "chest", "--validation_split", ""]
    assert main([*call, "--task", "classification", *own]) == 0, capsys.readouterr().err
    with open(tmp_path / "out" / "per_sample.csv", newline="") as file:
        labels = {(row["id"], row["category"]): row["label"] for row in csv.DictReader(file)}
    expected = {(name, c.lower()): str(int(c in label)) for name, label in zip(names, found, strict=True)
                for c in ("Edema", "Effusion", "Mass")}  # fmt: skip
    assert labels == expected
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["positives"] == {"edema": 3, "effusion": 2, "mass": 3} and not summary["asked_without_phrases"]
    assert any("pleural effusion" in text for text in summary["prompts"]["effusion"]["positive"])
    assert main([*call, "--task", "robustness"]) == 0, capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["spread"]["auc"]) == ["edema", "effusion"] and "iou" not in summary["spread"]
    assert summary["left_out_classes"] == {"mass": "has no paraphrases"}
