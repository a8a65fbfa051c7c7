"""A user's folder becomes records, and what is wrong with it is said by file name, never by report text."""

import json

import cv2
import numpy as np
import pytest
from raw_folders import SECRET, pairs_folder, radiograph, write_table

from afloc_jax.errors import UsageError, UserError
from afloc_jax.tables import Row
from data_pipelines.building.items import Item
from data_pipelines.building.splits import assign_splits, split_of
from data_pipelines.images import Geometry
from data_pipelines.prepared import open_source, prepare

ALL_TRAIN = {"train": 1.0}


def records_of(tmp_path, name="pairs", split="train", **builder):
    return open_source(name, tmp_path / "prepared", split, raw=tmp_path / "raw", builder=builder)


def refusal(tmp_path, name="pairs", **builder) -> str:
    with pytest.raises(UserError) as caught:
        prepare(name, tmp_path / "prepared", raw=tmp_path / "raw", builder=builder)
    message = str(caught.value)
    assert SECRET.split()[-1] not in message and "\n" not in message
    kept = {".prepare.lock", ".pseudonym_key", ".raw_files.json", f"{name}.rejected.txt"}
    left = {path.name for path in (tmp_path / "prepared").glob("*")} - kept
    assert not left, "something half-built was left behind"
    return message


def test_pairs_keep_image_text_and_geometry(tmp_path):
    rows = pairs_folder(tmp_path / "raw", 6, view=["PA", "AP", "L", "PA", "AP", ""])
    source = records_of(tmp_path, fractions=ALL_TRAIN)
    assert len(source) == 6
    for number, record in enumerate(source):
        image = radiograph(number, 30 + number % 7, 35)
        assert record.id == rows[number]["image"] and record.view == rows[number]["view"]
        assert (record.height, record.width) == image.shape
        np.testing.assert_array_equal(record.image, Geometry(*image.shape).to_square(image))
        assert record.sentences == [f"{SECRET.lower()} has effusion {number}", "no edema"]
        assert record.findings == [] and record.patient not in ("", rows[number]["patient"])
        assert SECRET.lower() not in repr(record)
    assert source[-1].id == source[5].id
    with pytest.raises(IndexError):
        source[6]


def test_text_comes_from_sections_or_columns(tmp_path):
    rows = [
        {"image": "000.png", "text": "INDICATION: cough.\nFINDINGS: Lungs clear.\nIMPRESSION: Normal."},
        {"image": "001.png", "findings": "Small effusion.", "impression": "Effusion. Edema."},
        {"image": "002.png", "text": "Just a caption"},
    ]
    pairs_folder(tmp_path / "raw", 3)
    write_table(tmp_path / "raw" / "pairs.csv", rows)
    found = [(r.sentences, r.impression_count) for r in records_of(tmp_path, fractions=ALL_TRAIN)]
    assert found == [
        (["normal", "lungs clear"], 1),
        (["effusion", "edema", "small effusion"], 2),
        (["just a caption"], 0),
    ]


def test_filters_drop_rows_and_count_them(tmp_path):
    rows = pairs_folder(tmp_path / "raw", 8, view=["PA", "pa", "AP", "L", "PA", "PA", "PA", "PA"])
    rows[4]["text"] = " .. "
    write_table(tmp_path / "raw" / "pairs.csv", rows)
    prepared = prepare(
        "pairs", tmp_path / "prepared", raw=tmp_path / "raw", builder={"views": ("PA",), "fractions": ALL_TRAIN}
    )
    assert prepared.report.records == {"train": 5}
    assert prepared.report.dropped == {"too few sentences": 1, "view not wanted": 2}
    written = json.loads(next((tmp_path / "prepared").glob("*/build_report.json")).read_text())
    assert written == prepared.report.plain() and SECRET not in json.dumps(written)


def test_broken_images_are_reported_by_name_and_stop_the_build_above_a_fraction(tmp_path):
    rows = pairs_folder(tmp_path / "raw", 20)
    rows[10]["image"] = ""
    write_table(tmp_path / "raw" / "pairs.csv", rows)
    images = tmp_path / "raw" / "images"
    (images / "003.png").write_bytes((images / "003.png").read_bytes()[:200])
    (images / "005.png").unlink()
    cv2.imwrite(str(images / "007.png"), np.zeros((1, 1), np.uint8))
    message = refusal(tmp_path)
    assert "3 of 20" not in message and "2 of 20" in message and "max_bad_fraction=0.05" in message  # stops at once
    prepared = prepare(
        "pairs",
        tmp_path / "prepared",
        raw=tmp_path / "raw",
        builder={"max_bad_fraction": 0.2, "fractions": ALL_TRAIN},
    )
    assert [entry.image for entry in prepared.report.rejected] == ["", "003.png", "005.png", "007.png"]
    reasons = ["column image: empty", "truncated", "no such file", "too small"]
    for entry, reason in zip(prepared.report.rejected, reasons, strict=True):
        assert reason in entry.reason
    assert [entry.place for entry in prepared.report.rejected] == [f"pairs.csv, row {row}" for row in (12, 5, 7, 9)]
    assert sum(prepared.report.records.values()) == 16


def test_unusable_tables_are_refused_with_what_they_lack(tmp_path):
    assert "no folder" in refusal(tmp_path)
    raw = tmp_path / "raw"
    raw.mkdir()
    assert "no table pairs.csv" in refusal(tmp_path)
    (raw / "pairs.csv").write_text("picture,report\na.png,b\n")
    assert "row 1: lacks the column image; its first row must name the columns" in refusal(tmp_path)
    (raw / "pairs.csv").write_text("image,report\na.png,b\n")
    said = refusal(tmp_path)
    assert "row 1: lacks the column text; its first row must name the columns" in said and "report" not in said
    (raw / "pairs.csv").write_text("image,text\n")
    assert "no row" in refusal(tmp_path)
    (raw / "pairs.csv").write_bytes("image,text\na.png,é\n".encode("latin-1"))
    assert "not UTF-8" in refusal(tmp_path)
    (raw / "pairs.csv").write_text("image,text\na.png,\nb.png, ..\n")
    assert "no usable row" in refusal(tmp_path) and "too few sentences: 2" in refusal(tmp_path)
    pairs_folder(raw, 4, split=["train", "holdout", "train", "train"])
    assert "(pairs.csv, row 3, column split: unknown split; use" in refusal(tmp_path)
    pairs_folder(raw, 4)
    assert "sum to 1" in refusal(tmp_path, fractions={"train": 0.5})
    assert "views" in refusal(tmp_path, views="PA")
    assert "image_size" in refusal(tmp_path, image_size=3)
    assert "no argument 'veiws'" in refusal(tmp_path, veiws=("PA",))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "image,text,patient,split\na.png,Roe, no effusion,P1,train\n",
            "pairs.csv, row 2, column split: the row has 5 cells and the header 4",
        ),
        (
            "image,text,patient\na.png,fine,P1\nb.png,Roe, no effusion,P2\n",
            "pairs.csv, row 3, column patient: the row has 4 cells and the header 3",
        ),
        ("a.png,the heart of Roe\nb.png,no effusion\n", "its first row must name the columns"),
        ("image,text,split\na.png,fine,the heart of Roe\n", "row 2, column split: unknown split"),
        ("image,text,text\na.png,fine,the heart of Roe\n", "row 1, column text: comes twice"),
    ],
)
def test_a_table_whose_columns_moved_is_refused_without_showing_a_cell(tmp_path, table, message):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/pairs.csv").write_text(table)
    said = refusal(tmp_path)
    assert message in said and "Roe" not in said


def test_empty_cells_behind_the_last_column_are_no_harm(tmp_path):
    pairs_folder(tmp_path / "raw", 12)
    path = tmp_path / "raw/pairs.csv"
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(f"{row},," for row in rows)]) + "\n")
    prepared = prepare("pairs", tmp_path / "prepared", raw=tmp_path / "raw", builder={"fractions": ALL_TRAIN})
    assert prepared.report.records == {"train": 12}


def test_patients_never_straddle_a_split(tmp_path):
    pairs_folder(tmp_path / "raw", 60, patient=[f"p{k % 20}" for k in range(60)])
    builder = {"fractions": {"train": 0.5, "validation": 0.25, "test": 0.25}}
    prepared = prepare("pairs", tmp_path / "prepared", raw=tmp_path / "raw", builder=builder)
    assert sum(prepared.report.records.values()) == 60 and sum(prepared.report.patients.values()) == 20
    patients = [{r.patient for r in records_of(tmp_path, split=split, **builder)} for split in prepared.report.records]
    assert len(patients) > 1 and not set.intersection(*patients)


def test_a_patient_on_both_sides_stops_the_build(tmp_path):
    pairs_folder(tmp_path / "raw", 4, patient=["Roe", "b", "Roe", "c"], split=["train", "train", "test", "val"])
    message = refusal(tmp_path)
    assert "1 patient on both sides of a split (pairs.csv, row 4 in test and pairs.csv, row 2 in train)" in message


def test_identical_images_on_both_sides_stop_the_build(tmp_path):
    pairs_folder(tmp_path / "raw", 4, split=["train", "train", "test", "val"], patient=list("abcd"))
    images = tmp_path / "raw" / "images"
    (images / "002.png").write_bytes((images / "000.png").read_bytes())
    assert "1 image content on both sides" in refusal(tmp_path)


def items_of(tmp_path, patients, images=None, splits=None):
    paths = []
    for number, content in enumerate(images or range(len(patients))):
        paths.append(tmp_path / f"{number}.bin")
        paths[-1].write_bytes(str(content).encode())
    names = splits or [""] * len(patients)
    return [Item(path.name, path, p, split=s) for path, p, s in zip(paths, patients, names, strict=True)]


def test_splits_depend_on_patients_alone(tmp_path):
    fractions = {"train": 0.6, "validation": 0.2, "test": 0.2}
    items = items_of(tmp_path, [f"p{k}" for k in range(200)])
    assign_splits(items, fractions, seed=0)
    before = {item.patient: item.split for item in items}
    shares = [sum(split == name for split in before.values()) / 200 for name in fractions]
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.1)
    more = items_of(tmp_path, [f"p{k}" for k in range(250)][::-1])
    assign_splits(more, fractions, seed=0)
    assert before.items() <= {item.patient: item.split for item in more}.items()
    assign_splits(items, fractions, seed=0)  # a second time changes nothing
    other = items_of(tmp_path, [f"p{k}" for k in range(200)])
    assign_splits(other, fractions, seed=1)
    assert before != {item.patient: item.split for item in other}


def test_rows_without_a_patient_are_held_together_by_identical_images(tmp_path):
    fractions = {"train": 0.5, "test": 0.5}
    items = items_of(tmp_path, [""] * 60, images=[k // 3 for k in range(60)])
    assign_splits(items, fractions, seed=0)
    for start in range(0, 60, 3):
        assert len({item.split for item in items[start : start + 3]}) == 1
    assert {item.split for item in items} == {"train", "test"}
    tied = items_of(tmp_path, ["a", "b", "b", "c"], images=[0, 0, 1, 2])  # a and b share an image
    for seed in range(8):
        for item in tied:
            item.split = ""
        assign_splits(tied, fractions, seed=seed)
        assert len({item.split for item in tied[:3]}) == 1


def test_a_named_split_holds_for_the_whole_patient(tmp_path):
    items = items_of(tmp_path, ["a", "a", "b"], splits=["test", "", ""])
    assign_splits(items, {"train": 1.0}, seed=0)
    assert [item.split for item in items] == ["test", "test", "train"]
    chain = items_of(tmp_path, ["a", "b", "b"], images=[0, 0, 1], splits=["test", "", "train"])
    with pytest.raises(UserError, match="tied by patient or identical image"):
        assign_splits(chain, {"train": 1.0}, seed=0)
    cells = [{"split": "Val"}, {"split": "TRAINING"}, {"split": ""}, {}]
    assert [split_of(Row("t.csv", 2, row)) for row in cells] == ["validation", "train", "", ""]
    with pytest.raises(UsageError, match="unknown split dev"):
        assign_splits(items, {"dev": 1.0}, seed=0)


def masks_folder(folder):
    """Three images: two lesions of one kind and one of another; one lesion; none."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    masks = {}
    for number in range(3):
        color = np.stack([radiograph(number + k, 60, 80) for k in range(3)], -1)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), color)
    for name, box in {
        "0a": (5, 25, 10, 30),
        "0b": (30, 50, 40, 70),
        "0c": (10, 20, 50, 60),
        "1a": (0, 60, 0, 80),
    }.items():
        masks[name] = np.zeros((60, 80), bool)
        masks[name][box[0] : box[1], box[2] : box[3]] = True
        cv2.imwrite(str(folder / "masks" / f"{name}.png"), masks[name] * np.uint8(255))
    rows = [
        {"image": "0.png", "mask": "0a.png", "finding": "exudate"},
        {"image": "0.png", "mask": "0c.png", "finding": "haemorrhage"},
        {"image": "0.png", "mask": "0b.png", "finding": "exudate"},
        {"image": "1.png", "mask": "1a.png", "finding": "exudate"},
    ]
    write_table(folder / "lesions.csv", rows)
    write_table(folder / "images.csv", [{"image": f"{k}.png", "patient": f"q{k}", "view": "PA"} for k in range(3)])
    return masks


def test_masks_of_one_finding_are_one_sample(tmp_path):
    masks = masks_folder(tmp_path / "raw")
    source = records_of(tmp_path, "masks", "test", prompts={"haemorrhage": "retinal bleeding"})
    first, second, third = source
    assert [(f.label, f.prompt) for f in first.findings] == [
        ("exudate", "Findings suggesting exudate."),
        ("haemorrhage", "retinal bleeding"),
    ]
    np.testing.assert_array_equal(first.findings[0].mask, first.geometry.mask_to_square(masks["0a"] | masks["0b"]))
    np.testing.assert_array_equal(first.findings[1].mask, first.geometry.mask_to_square(masks["0c"]))
    assert second.findings[0].mask.sum() == 168 * 224  # the whole image, none of the padding
    assert third.findings == [] and third.view == "PA"
    assert len({record.patient for record in source}) == 3
    assert SECRET not in repr(first) and source.name == "masks"


def test_a_mask_that_does_not_fit_its_image_is_reported(tmp_path):
    masks_folder(tmp_path / "raw")
    cv2.imwrite(str(tmp_path / "raw" / "masks" / "1a.png"), np.ones((60, 79), np.uint8))
    assert "(lesions.csv, row 5: the mask is 79 x 60 pixels, its image 80 x 60)" in refusal(tmp_path, "masks")
    assert "1.png: 1a.png: the mask is 79 x 60" in (tmp_path / "prepared" / "masks.rejected.txt").read_text()
    cv2.imwrite(str(tmp_path / "raw" / "masks" / "1a.png"), np.zeros((60, 80), np.uint8))
    prepared = prepare("masks", tmp_path / "prepared", raw=tmp_path / "raw", builder={"max_bad_fraction": 0.5})
    assert prepared.report.records == {"test": 2} and prepared.report.rejected[0].reason == "1a.png: the mask is empty"


@pytest.mark.parametrize("row", ["1.png,../1a.png,exudate", "1.png,1a.png,an, exudate"])
def test_an_image_with_a_row_that_cannot_be_used_does_not_count_as_one_without_a_finding(row, tmp_path):
    masks_folder(tmp_path / "raw")
    table = tmp_path / "raw" / "lesions.csv"
    lines = table.read_text().splitlines()
    (number,) = (number for number, line in enumerate(lines) if line.startswith("1.png"))
    lines[number] = row
    table.write_text("\n".join(lines) + "\n")
    report = prepare("masks", tmp_path / "prepared", raw=tmp_path / "raw", builder={"max_bad_fraction": 0.7}).report
    place = f"lesions.csv, row {number + 1}"
    assert [entry.image for entry in report.rejected] == ["1.png", place] and report.records == {"test": 2}
    assert report.rejected[0].reason.startswith(place)


def test_the_real_folders_are_built(tmp_path, shared_data):
    lesions = open_source("masks", tmp_path, "test", raw=shared_data / "covid_lesions")
    assert len(lesions) == 40 and sum(len(record.findings) for record in lesions) == 56
    assert all(finding.mask.any() for record in lesions for finding in record.findings)
    prepared = prepare("pairs", tmp_path, raw=shared_data / "cxr_pairs")
    assert sum(prepared.report.records.values()) == 665 and not prepared.report.rejected
    pairs = {s: {r.patient for r in open_source("pairs", tmp_path, s)} - {""} for s in ("train", "test", "validation")}
    assert not pairs["train"] & pairs["test"] and not pairs["train"] & pairs["validation"]
