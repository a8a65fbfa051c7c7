"""MIMIC-CXR(-JPG) and MS-CXR: official tables, sections, patients who must stay out of training."""

import gzip
import hashlib
import zipfile

import numpy as np
import pytest
from published import any_count, box_mask, build, dicom_file, image_file, json_file, listed, refused, rows_file
from raw_folders import SECRET

from afloc_jax.evaluation.truth.read import read_truth
from data_pipelines.builders.mimic_cxr import mimic_cxr_dataset_builder
from data_pipelines.builders.mimic_cxr.mimic_cxr_dataset_builder import CLASSES
from data_pipelines.builders.mimic_cxr.sections import report_sections
from data_pipelines.images import Geometry
from data_pipelines.prepared import prepare

STUDIES = (  # patient, study, images (view), split
    ("10000032", "50414267", (("a1", "PA"), ("a2", "LATERAL")), "train"),
    ("10000764", "57375967", (("b1", "AP"),), "validate"),
    ("11000011", "51029426", (("c1", "PA"),), "test"),
    ("12000022", "52000000", (("d1", "PA"),), "train"),  # in MS-CXR
    ("13000033", "53000000", (("e1", "PA"),), "train"),  # its report says nothing
)
REPORTS = {
    "50414267": "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n"
    f" INDICATION:  {SECRET} with new onset ascites\n \n FINDINGS: \n \n"
    " There is no focal consolidation, pleural effusion or 1.5 cm nodule.\n \n IMPRESSION: \n \n No acute process.\n",
    "57375967": "                                 FINAL REPORT\n PORTABLE AP CHEST, 2:15 A.M.\n \n Edema is new.\n",
    "51029426": "                                 FINAL REPORT\n CONCLUSION:  Large effusion.\n",
    "52000000": "                                 FINAL REPORT\n IMPRESSION:  Pneumothorax.\n",
    "53000000": "                                 FINAL REPORT\n FINDINGS: ___.\n",
}  # fmt: skip


def folder(patient, study):
    return f"files/p{patient[:2]}/p{patient}/s{study}"


def ms_cxr(path, boxes):
    names = [f"{folder(p, s)}/{i}.jpg" for p, s, i, *_ in boxes]
    images = [{"id": n, "file_name": name.rsplit("/")[-1], "path": name, "width": 30, "height": 40}
              for n, name in enumerate(dict.fromkeys(names))]  # fmt: skip
    ids = {image["path"]: image["id"] for image in images}
    annotations = [
        {"id": n, "image_id": ids[name], "category_id": 7, "bbox": box, "label_text": phrase}
        for n, (name, (*_, phrase, box)) in enumerate(zip(names, boxes, strict=True))
    ]
    categories = [{"id": 7, "name": "Pneumothorax", "supercategory": "disease"}]
    json_file(
        path, {"info": {}, "licenses": [], "categories": categories, "images": images, "annotations": annotations}
    )


def tree(tmp_path, zipped=True):
    raw = tmp_path / "raw"
    images = [(p, s, i, view, split) for p, s, views, split in STUDIES for i, view in views]
    for seed, (patient, study, image, *_) in enumerate(images):
        image_file(raw / folder(patient, study) / f"{image}.jpg", seed)
    prefix = raw / "mimic-cxr-2.0.0-"
    header = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate"
    rows = [[i, p, s, "CHEST (PA AND LAT)", view, 40, 30, 21800506] for p, s, i, view, _ in images]
    rows_file(prefix.with_name(prefix.name + "metadata.csv.gz"), header, rows, gzip.open)
    rows = [[i, s, p, split] for p, s, i, _, split in images]
    rows_file(prefix.with_name(prefix.name + "split.csv.gz"), "dicom_id,study_id,subject_id,split", rows, gzip.open)
    for labeler, value in (("chexpert", "-1.0"), ("negbio", "1.0")):
        cells = ["", "0.0", value] + [""] * (len(CLASSES) - 3)
        rows = [[p, s, *cells] for p, s, *_ in STUDIES]
        header = ",".join(["subject_id", "study_id", *CLASSES])
        rows_file(prefix.with_name(f"{prefix.name}{labeler}.csv.gz"), header, rows, gzip.open)
    texts = {f"{folder(p, s)}.txt": REPORTS[s] for p, s, *_ in STUDIES}
    if zipped:
        with zipfile.ZipFile(raw / "mimic-cxr-reports.zip", "w") as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
    else:
        for name, text in texts.items():
            (raw / name).write_text(text)
    patient, study, ((image, _),), _ = STUDIES[3]
    ms_cxr(
        raw / "MS_CXR_Local_Alignment_v1.0.0.json", [(patient, study, image, "left apical pneumothorax", [3, 4, 5, 6])]
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_frontal_images_get_the_sections_that_describe_them(tmp_path, zipped):
    tree(tmp_path, zipped)
    records, account = build(tmp_path, "mimic_cxr")
    assert account["splits"] == {"a1": "train", "b1": "validation", "c1": "test"}
    assert account["dropped"] == {"patient of MS-CXR": 1, "report without a sentence": 1, "view not wanted": 1}
    first = records["a1"]
    assert first.sentences == ["no acute process", "there is no focal consolidation pleural effusion or 1.5 cm nodule"]
    assert first.impression_count == 1 and first.view == "PA" and first.study
    assert first.sections["indication"] == f"{SECRET} with new onset ascites"
    assert SECRET.lower() not in " ".join(first.sentences) and SECRET not in repr(first)
    assert first.labels == {"cardiomegaly": 0, "consolidation": -1}
    assert records["b1"].sentences == ["edema is new"] and records["c1"].sentences == ["large effusion"]


def test_options_choose_views_labels_and_file_format(tmp_path):
    tree(tmp_path)
    records, _ = build(tmp_path, "mimic_cxr", views=[], labeler="negbio", exclude_ms_cxr=False)
    assert set(records) == {"a1", "a2", "b1", "c1", "d1"} and records["a1"].labels["consolidation"] == 1
    pixels = dicom_file(tmp_path / "raw" / folder(*STUDIES[2][:2]) / "c1.dcm", 5)
    records, account = build(tmp_path, "mimic_cxr", images="dicom")
    low, high = int(pixels.min()), int(pixels.max())
    expected = np.rint((pixels - float(low)) * (255.0 / (high - low))).astype(np.uint8)
    np.testing.assert_array_equal(records["c1"].image, Geometry(40, 30).to_square(expected))
    assert set(records) == {"c1"} and account["dropped"]["image not there"] == 2
    assert "must be one of chexpert, negbio" in refused(tmp_path, "mimic_cxr", labeler="radgraph")


def small_release(monkeypatch):
    any_count(monkeypatch, "mimic_cxr")
    monkeypatch.setattr(mimic_cxr_dataset_builder, "_REPORT_COUNT", len(STUDIES))


def test_training_is_refused_without_the_list_of_evaluation_patients(tmp_path, monkeypatch):
    small_release(monkeypatch)
    tree(tmp_path)
    (tmp_path / "raw" / "MS_CXR_Local_Alignment_v1.0.0.json").unlink()
    assert "patients of MS-CXR must stay out of training" in refused(tmp_path, "mimic_cxr")
    records, _ = build(tmp_path, "mimic_cxr", exclude_ms_cxr=False)
    assert "d1" in records


def test_missing_tables_columns_reports_and_images_are_named(tmp_path, monkeypatch):
    small_release(monkeypatch)
    tree(tmp_path)
    raw = tmp_path / "raw"
    (raw / folder(*STUDIES[0][:2]) / "a1.jpg").unlink()
    assert "lacks 1 of 3 images" in refused(tmp_path, "mimic_cxr") and "a1.jpg" not in refused(tmp_path, "mimic_cxr")
    assert listed(tmp_path, "mimic_cxr", "missing") == [f"{folder(*STUDIES[0][:2])}/a1.jpg"]
    rows_file(raw / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id,subject_id", [["a1", 1, 2]], gzip.open)
    (raw / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    (raw / "mimic-cxr-2.0.0-negbio.csv.gz").unlink()
    message = refused(tmp_path, "mimic_cxr")
    assert (
        "metadata.csv* is missing" in message
        and "negbio" not in message
        and "split.csv.gz lacks the column split" in message
    )
    tree(tmp_path)
    (raw / "mimic-cxr-2.0.0-negbio.csv.gz").unlink()
    assert "no file mimic-cxr-2.0.0-negbio.csv*" in refused(tmp_path, "mimic_cxr", labeler="negbio")
    data = (raw / "mimic-cxr-2.0.0-metadata.csv.gz").read_bytes()
    (raw / "mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(data[: len(data) - 12])
    assert "metadata.csv.gz" in refused(tmp_path, "mimic_cxr")
    tree(tmp_path)
    (raw / "mimic-cxr-reports.zip").unlink()
    assert "no reports in" in refused(tmp_path, "mimic_cxr")


@pytest.mark.parametrize("zipped", [True, False])
def test_half_of_the_reports_are_not_half_of_a_data_set(tmp_path, monkeypatch, zipped):
    small_release(monkeypatch)
    raw, lost = tmp_path / "raw", [f"{folder(*STUDIES[k][:2])}.txt" for k in (0, 2)]
    tree(tmp_path, zipped)
    assert prepare("mimic_cxr", tmp_path / "whole", raw=raw).report.records == {"train": 1, "validation": 1, "test": 1}
    if zipped:
        with zipfile.ZipFile(raw / "mimic-cxr-reports.zip") as archive:
            texts = {name: archive.read(name) for name in archive.namelist() if name not in lost}
        with zipfile.ZipFile(raw / "mimic-cxr-reports.zip", "w") as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
    else:
        for name in lost:
            (raw / name).unlink()
    message = refused(tmp_path, "mimic_cxr")
    assert "lacks 2 of the files that belong to its images; and " in message and lost[0] not in message
    assert "3 reports, the data set has 5" in message and "partial=true" in message
    written = (tmp_path / "out" / "mimic_cxr.missing.txt").read_text().splitlines()
    assert written[:2] == lost and str(tmp_path / "out" / "mimic_cxr.missing.txt") in message
    records, account = build(tmp_path, "mimic_cxr")
    assert set(records) == {"b1"} and account["dropped"]["no report"] == 2
    assert not (tmp_path / "out" / "mimic_cxr.missing.txt").exists(), "the list goes when a build succeeds"


def test_a_damaged_report_in_the_archive_is_named(tmp_path):
    tree(tmp_path)
    path = tmp_path / "raw" / "mimic-cxr-reports.zip"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Large effusion", b"Large effusioN", 1))
    message = refused(tmp_path, "mimic_cxr", partial=True)
    assert "mimic-cxr-reports.zip is damaged at one of its reports; fetch it again" in message


def test_tables_that_were_cut_or_differ_from_their_checksums_are_named(tmp_path, monkeypatch):
    tree(tmp_path)
    message = refused(tmp_path, "mimic_cxr")
    assert "mimic-cxr-2.0.0-metadata.csv.gz has 6 rows, the data set has 377,110" in message
    small_release(monkeypatch)
    raw = tmp_path / "raw"
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.name}" for path in sorted(raw.glob("*.csv.gz"))]
    (raw / "SHA256SUMS.txt").write_text("\n".join([*lines, "0" * 64 + " files/p10/index.html", ""]))
    assert sum(prepare("mimic_cxr", tmp_path / "whole", raw=raw).report.records.values()) == 3
    tree(tmp_path)
    name = "mimic-cxr-2.0.0-split.csv.gz"
    rows = [[i, s, p, "train"] for p, s, views, _ in STUDIES for i, _ in views]
    rows_file(raw / name, "dicom_id,study_id,subject_id,split", rows, gzip.open)
    (raw / "SHA256SUMS.txt").write_text("\n".join(line for line in lines if line.endswith(name)))
    assert f"{name} differs from its checksum in SHA256SUMS.txt" in refused(tmp_path, "mimic_cxr", partial=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n FINDINGS: a\n b\n \n IMPRESSION:\n c\n", {"findings": "a\n b", "impression": "c"}),
        ("x\n CONCLUSION: a\n", {"preamble": "x", "impression": "a"}),
        ("\n FINDINGS AND IMPRESSION: a", {"impression": "a"}),
        ("\n IMPRESSOIN: a", {"impression": "a"}),
        ("\n FINAL IMPRESSION: a", {"impression": "a"}),
        ("\n CHEST, TWO VIEWS: a", {"findings": "a"}),
        ("\n PA AND LATERAL VIEWS OF THE CHEST: a", {"findings": "a"}),
        ("\n REASON FOR EXAM: a\n CLINICAL HISTORY: b\n", {"indication": "a", "history": "b"}),
        ("\n COMPARISONS: a\n PFI: b\n", {"comparison": "a", "history": "b"}),
        ("\n CHEST, PA LATERAL:\n \n INDICATION: a\n IMPRESSION: b", {"indication": "a", "impression": "b"}),
        ("\n FINDINGS: a\n FINDINGS: b\n", {"findings": "b"}),
        ("\n FINDINGS: a\n FINDINGS: \n", {"findings": "a"}),
        ("\n HISTORY: IMPRESSION: a\n FINDINGS: b", {"history": "IMPRESSION: a", "findings": "b"}),
        ("\n Findings: a\nIMPRESSION: b", {"full report": "Findings: a\nIMPRESSION: b"}),
        (" title\n \n First.\n \n Last.", {"full report": "title", "last_paragraph": "First.\n \n Last."}),
        ("\n INDICATION: a\n \n The heart is big.", {"indication": "a", "last_paragraph": "The heart is big."}),
        ("\n INDICATION: a\n \n b\n IMPRESSION: c\n \n d", {"indication": "a\n \n b", "impression": "c\n \n d"}),
        ("", {}),
    ],
)  # fmt: skip
def test_sections_follow_the_published_rules(text, expected):
    assert report_sections(text) == expected


def test_phrases_of_ms_cxr_have_boxes_and_several_boxes_are_one_finding(tmp_path):
    patient, study = STUDIES[3][:2]
    raw = tmp_path / "raw"
    image_file(raw / folder(patient, study) / "d1.jpg", 4)
    image_file(raw / folder(patient, study) / "d2.jpg", 5)
    # fmt: off
    boxes = [("d1", "Small left pneumothorax", [3, 4, 5, 6]), ("d1", "small left pneumothorax", [12, 20, 10, 15]),
             ("d1", "right pneumothorax", [1, 1, 2, 2]), ("d2", "right pneumothorax", [20.5, 30.5, 0.1, 5])]
    # fmt: on
    ms_cxr(raw / "MS_CXR_Local_Alignment_v1.0.0.json", [(patient, study, *entry) for entry in boxes])
    records, account = build(tmp_path, "ms_cxr")
    first, second = (records[f"{folder(patient, study)}/{name}.jpg"] for name in ("d1", "d2"))
    assert [(f.label, f.prompt) for f in first.findings] == [
        ("Pneumothorax", "Small left pneumothorax"), ("Pneumothorax", "right pneumothorax")]  # fmt: skip
    assert first.findings[0].boxes == ((3, 4, 5, 6), (12, 20, 10, 15))
    # 224 / 40 = 5.6 pixels a pixel, 28 columns of padding: corners and sizes floored, as published.
    expected = box_mask(224, 224, (28 + 16, 22, 28, 33), (28 + 67, 112, 56, 84))
    np.testing.assert_array_equal(first.findings[0].mask, expected)
    assert second.findings[0].mask.sum() == 28  # thinner than a pixel of the square: one column stays
    assert first.patient == second.patient and set(account["splits"].values()) == {"test"}
    truths = read_truth(raw / "MS_CXR_Local_Alignment_v1.0.0.json")  # what `afloc score` reads from the same file
    for truth, finding in zip(truths, [*first.findings, *second.findings], strict=True):
        np.testing.assert_array_equal(truth.mask > 0, finding.mask)
    records, _ = build(tmp_path, "ms_cxr", prompts="classes")
    assert [f.prompt for f in records[first.id].findings] == ["Findings suggesting pneumothorax."]
    assert "prompts is 'words'" in refused(tmp_path, "ms_cxr", prompts="words")
    ms_cxr(raw / "MS_CXR_Local_Alignment_v1.0.0.json", [(patient, study, "d1", SECRET, [60, 4, 5, 6])])
    assert "json, annotation 0: a box lies outside its image of 30 x 40 pixels" in refused(tmp_path, "ms_cxr")
