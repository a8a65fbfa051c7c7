"""Patients of evaluation data, and of a user's lists, stay out of the records."""

import os

import pytest
from published import build, image_file, refused, rows_file
from raw_folders import SECRET, pairs_folder
from test_mimic_cxr import STUDIES, tree

from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from data_pipelines.building.exclusion import read_patients
from data_pipelines.prepared import prepare

KEYS = "dicom_id,subject_id,study_id,Bulla"


def test_patients_of_cxr_lt_stay_out_of_mimic_cxr(tmp_path):
    tree(tmp_path)
    table = tmp_path / "raw" / "cxr-lt-2024" / "test_labeled_task3.csv"
    _, account = build(tmp_path, "mimic_cxr")
    assert account["splits"] == {"a1": "train", "b1": "validation", "c1": "test"}
    (note,) = account["notes"]
    assert note.startswith("no test_labeled_task*.csv of CXR-LT below the raw folder: its patients are among")
    rows_file(table, KEYS, [["a9", STUDIES[0][0], "1", 1], ["z", "19999999", "2", 0]])
    rows_file(table.with_name("test_labeled_task2.csv"), KEYS, [["b9", STUDIES[1][0], "1", 1]])
    _, account = build(tmp_path, "mimic_cxr")
    assert account["splits"] == {"c1": "test"} and account["dropped"]["patient of CXR-LT"] == 2
    assert account["notes"] == []
    _, account = build(tmp_path, "mimic_cxr", exclude_cxr_lt=False)
    assert set(account["splits"]) == {"a1", "b1", "c1"} and account["notes"] == []
    rows_file(table, KEYS, [["a9", "", "1", 1]])
    assert "test_labeled_task3.csv, row 2, column subject_id: no patient" in refused(
        tmp_path, "mimic_cxr", partial=True
    )


def test_patients_of_padchest_gr_stay_out_of_padchest(tmp_path):
    raw = tmp_path / "raw"
    header = "ImageID,ImageDir,StudyID,PatientID,Projection,Report,Labels"
    rows = [[f"{k}.png", 0, f"s{k}", f"p{k}", "PA", f"derrame {'abcd'[k]} .", "[]"] for k in range(4)]
    rows.append(["4.png", 0, "s4", "p1", "PA", "otro estudio .", "[]"])  # of patient 1
    rows_file(raw / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", header, rows)
    for seed, row in enumerate(rows):
        image_file(raw / "0" / row[0], seed)
    _, account = build(tmp_path, "padchest")
    assert len(account["splits"]) == 5 and account["notes"][0].startswith("no master_table.csv of PadChest-GR")
    # Patient 1 by number; patient 3 by a study, under another number.
    table = [["s1", "p1", "train"], ["s3", "another", "test"], ["s77", "p77", "test"]]
    rows_file(raw / "gr" / "master_table.csv", "StudyID,PatientID,split", table)
    _, account = build(tmp_path, "padchest")
    assert set(account["splits"]) == {"0.png", "2.png"} and account["dropped"] == {"patient of PadChest-GR": 3}
    _, account = build(tmp_path, "padchest", exclude_padchest_gr=False)
    assert len(account["splits"]) == 5 and account["dropped"] == {}


def test_a_list_of_patients_is_left_out_of_any_data_set(tmp_path, capsys):
    raw = tmp_path / "raw"
    pairs_folder(raw, 24)  # patients p0 to p11, two images each
    lists = tmp_path / "mine.txt", tmp_path / "table.csv"
    lists[0].write_text("p3\n\n p5 \nnobody\n")
    rows_file(lists[1], "StudyID,PatientID", [["s", "p5"], ["t", "p11"]])
    out = str(tmp_path / "out")
    call = ["prepare", "pairs", "--raw", str(raw), "--out", out, "--no_overview"]
    assert main([*call, *(f"--exclude={path}" for path in lists)]) == 0
    printed = capsys.readouterr().out
    assert "left out: patient of an exclusion list 6" in printed
    assert "exclude: 3 of 4 patients of the lists are in the tables" in printed and "p11" not in printed
    prepared = prepare("pairs", out, raw=raw, builder={"exclude": [str(path) for path in lists]})
    assert not prepared.built and sum(prepared.report.records.values()) == 18
    kept = {record.id for source in prepared.sources().values() for record in source}
    assert not kept & {"006.png", "007.png", "010.png", "011.png", "022.png", "023.png"}
    lists[0].write_text("p3\np4\n")  # another list, other records
    os.utime(lists[0], ns=(1, 1))
    changed = prepare("pairs", out, raw=raw, builder={"exclude": [str(path) for path in lists]})
    assert (
        changed.built
        and changed.folder != prepared.folder
        and changed.report.dropped == {"patient of an exclusion list": 8}
    )
    assert sum(prepare("pairs", out, raw=raw).report.records.values()) == 24


def test_one_text_is_one_list_and_a_data_set_without_patients_is_refused(tmp_path):
    pairs_folder(tmp_path / "raw", 12)
    (tmp_path / "list").write_text("p1\n")
    records = prepare("pairs", tmp_path / "out", raw=tmp_path / "raw", builder={"exclude": str(tmp_path / "list")})
    assert sum(records.report.records.values()) == 10
    pairs_folder(tmp_path / "raw", 12, patient=[""] * 12)
    with pytest.raises(UsageError, match="does not name patients"):
        prepare("pairs", tmp_path / "out", raw=tmp_path / "raw", builder={"exclude": [str(tmp_path / "list")]})
    with pytest.raises(UserError, match="nowhere: no such file"):
        prepare("pairs", tmp_path / "out", raw=tmp_path / "raw", builder={"exclude": [str(tmp_path / "nowhere")]})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", f"subject_id,note\n1,x\n,{SECRET}\n", "a.csv, row 3, column subject_id: no patient"),
        ("a.csv", f"{SECRET},b\n1,2\n", "a.csv has no column of patients; name one of its columns patient"),
        ("a.csv", "patient\n", "a.csv names no patient"),
        (
            "a.csv",
            f"subject_id,note\n1,x\n2,y,{SECRET}\n",
            "a.csv, row 3, column 2: the row has 3 cells and the header 2",
        ),
        ("a.csv", f'subject_id,note\n1,"{SECRET}\n2,y\n', "a.csv, row 2, column 2: the quote of a cell is unbalanced"),
        ("a.csv", f"note,patient\n{SECRET}\n", "a.csv, row 2, column 1: the row has 1 cells and the header 2"),
        ("a.txt", "\n \n", "a.txt names no patient"),
        ("a.txt", "p\xff", "a.txt is not UTF-8 text"),
    ],
)
def test_a_list_that_may_miss_a_patient_is_refused_without_showing_a_cell(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_patients(tmp_path / name)
    assert message in str(caught.value) and "Jane" not in str(caught.value)
