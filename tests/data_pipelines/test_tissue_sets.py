"""Data sets of stained tissue, each in its publisher's layout."""

import zipfile

import cv2
import numpy as np
import pytest
from PIL import Image
from published import box_mask, build, image_file, listed, refused, rows_file
from test_slides import slide_file

from data_pipelines.building.tables import read_workbook
from data_pipelines.images import Geometry

SQUARE = Geometry(40, 30)


def workbook(path, rows):
    """A workbook as spreadsheet programs write it: texts shared, numbers in place, empty cells left out."""
    texts = sorted({str(cell) for row in rows for cell in row if isinstance(cell, str)})
    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    lines = []
    for number, row in enumerate(rows, start=1):
        cells = ""
        for column, cell in zip("ABCDEFG", row, strict=False):
            if isinstance(cell, str):
                cells += f'<c r="{column}{number}" t="s"><v>{texts.index(cell)}</v></c>'
            elif cell is not None:
                cells += f'<c r="{column}{number}"><v>{cell}</v></c>'
        lines.append(f'<row r="{number}">{cells}</row>')
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "xl/worksheets/sheet1.xml", f"<worksheet {main}><sheetData>{''.join(lines)}</sheetData></worksheet>"
        )
        archive.writestr("xl/sharedStrings.xml", f"<sst {main}>{''.join(f'<si><t>{t}</t></si>' for t in texts)}</sst>")


NAMES = ["16B0001851_Block_Region_1_0_0_xini_6803_yini_59786.jpg", "18B0006623A_Block_Region_5_2_3_xini_1_yini_2.jpg"]


def sicapv2(raw):
    """A patch of grade 3 with some grade 4 and a benign one, masks as PNG with the grades. Returns the first mask."""
    rows = {"Train": [NAMES[0], 0, 1, 0, 0, 0], "Test": [NAMES[1], 1, 0, 0, 0, 0]}
    mask = np.zeros((40, 30), np.uint8)
    mask[5:20], mask[25:35, :10] = 3, 4
    (raw / "masks").mkdir(parents=True)
    for seed, (part, row) in enumerate(rows.items()):
        image_file(raw / "images" / row[0], seed)
        workbook(raw / "partition" / "Test" / f"{part}.xlsx", [["image_name", "NC", "G3", "G4", "G5", "G4C"], row])
        cv2.imwrite(str(raw / "masks" / row[0].replace(".jpg", ".png")), mask if part == "Train" else mask * 0)
    return mask


def test_sicapv2_labels_text_and_masks_of_grades(tmp_path):
    mask = sicapv2(tmp_path / "raw")
    records, account = build(tmp_path, "sicapv2", partial=False)
    assert account["splits"] == dict(zip(NAMES, ("train", "test"), strict=True))
    cancer, benign = records[NAMES[0]], records[NAMES[1]]
    assert cancer.labels == {"non-cancerous": 0, "gleason 3": 1, "gleason 4": 0, "gleason 5": 0}
    assert cancer.sentences == ["prostate cancer of gleason grade 3"]
    assert benign.sentences == ["non cancerous prostate tissue"] and benign.findings == []
    assert [(f.label, f.prompt) for f in cancer.findings] == [
        ("gleason 3", "Findings suggesting prostate cancer of gleason grade 3."),
        ("gleason 4", "Findings suggesting prostate cancer of gleason grade 4."),
    ]
    for finding, grade in zip(cancer.findings, (3, 4), strict=True):
        np.testing.assert_array_equal(finding.mask, SQUARE.mask_to_square(mask == grade))


@pytest.mark.parametrize("quality", [75, 95])
def test_sicapv2_masks_as_jpeg_give_the_same_grades(tmp_path, quality):
    raw = tmp_path / "raw"
    sicapv2(raw)
    mask = np.zeros((40, 30), np.uint8)
    mask[5:20], mask[25:35, :10] = 100, 200
    for path in sorted((raw / "masks").glob("*.png")):
        path.unlink()
    for name in NAMES:
        Image.fromarray(mask).save(raw / "masks" / name, quality=quality)
    assert len(np.unique(cv2.imread(str(raw / "masks" / NAMES[0]), 0))) > 3, "the compression has spread the values"
    records, _ = build(tmp_path, "sicapv2")
    findings = records[NAMES[0]].findings
    assert [f.label for f in findings] == ["gleason 3", "gleason 5"] and records[NAMES[1]].findings == []
    for finding, grey in zip(findings, (100, 200), strict=True):
        expected = SQUARE.mask_to_square(mask == grey)
        assert (finding.mask & expected).sum() / (finding.mask | expected).sum() > 0.95


def test_sicapv2_names_what_is_wrong_with_masks_and_tables(tmp_path):
    raw = tmp_path / "raw"
    sicapv2(raw)
    path = raw / "masks" / NAMES[0].replace(".jpg", ".png")
    cv2.imwrite(str(path), box_mask(40, 30, (5, 5, 9, 9)).astype(np.uint8) * 2)
    assert "(Train.xlsx, row 2: a value of its mask is none of 0, 3, 4, 5" in refused(tmp_path, "sicapv2")
    _, account = build(tmp_path, "sicapv2", max_bad_fraction=0.5)
    assert [entry["image"] for entry in account["rejected"]] == [NAMES[0]]
    cv2.imwrite(str(path), np.zeros((40, 30, 3), np.uint8))
    assert "one channel, this one is RGB" in refused(tmp_path, "sicapv2")
    path.unlink()
    assert "lacks 1 of the files that belong to its images;" in refused(tmp_path, "sicapv2")
    assert listed(tmp_path, "sicapv2", "missing") == [f"masks/{path.stem}.png or .jpg"]
    records, account = build(tmp_path, "sicapv2", partial=True)
    assert set(records) == {NAMES[1]} and account["dropped"] == {"mask not there": 1}
    workbook(raw / "partition" / "Test" / "Test.xlsx", [["name"], ["x"]])
    assert "lacks the columns image_name, NC" in refused(tmp_path, "sicapv2", partial=True)
    (raw / "partition" / "Test" / "Test.xlsx").write_text("no")
    assert "not a readable workbook" in refused(tmp_path, "sicapv2")
    workbook(tmp_path / "gaps.xlsx", [["a", "b", "c"], [1, None, "x"]])
    (row,) = read_workbook(tmp_path / "gaps.xlsx", ["a"])
    assert row.place == "gaps.xlsx, row 2" and dict(row) == {"a": "1", "b": "", "c": "x"}


# The masks of the publisher hold indices with these colours (tumor, stroma, normal, background).
PALETTE = [0, 64, 128, 64, 128, 0, 243, 152, 0, 255, 255, 255]


def wsss4luad(raw):
    image_file(raw / "1.training" / "1031280-2300-27920-[1, 0, 1].png", 1)
    mask = np.full((40, 30), 3, np.uint8)
    mask[:10], mask[30:, :15] = 0, 1
    picture = Image.fromarray(mask).convert("P")
    picture.putdata(mask.ravel().tolist())
    picture.putpalette(PALETTE)
    for part, seed in (("2.validation", 2), ("3.testing", 3)):
        image_file(raw / part / "img" / "00.png", seed)
        (raw / part / "mask").mkdir()
        picture.save(raw / part / "mask" / "00.png")
    (raw / "2.validation" / "background-mask").mkdir()
    image_file(raw / "2.validation" / "background-mask" / "00.png", 4)
    return mask


def test_wsss4luad_labels_stand_in_names_and_masks_hold_classes(tmp_path):
    mask = wsss4luad(tmp_path / "raw")
    records, account = build(tmp_path, "wsss4luad")
    assert sorted(account["splits"].values()) == ["test", "train", "validation"]
    patch, field = records["train/1031280-2300-27920-[1, 0, 1].png"], records["test/00.png"]
    assert patch.labels == {"tumor": 1, "stroma": 0, "normal": 1}
    assert patch.sentences == [
        "there is tumor epithelial tissue",
        "no tumor associated stroma",
        "there is normal tissue",
    ]
    assert field.labels == {"tumor": 1, "stroma": 1, "normal": 0} and field.sentences[-1] == "no normal tissue"
    assert field.findings[0].prompt == "Findings suggesting tumor epithelial tissue."
    np.testing.assert_array_equal(field.findings[0].mask, SQUARE.mask_to_square(mask == 0))
    np.testing.assert_array_equal(field.findings[1].mask, SQUARE.mask_to_square(mask == 1))


def test_wsss4luad_refuses_what_it_cannot_read(tmp_path):
    raw = tmp_path / "raw"
    mask = wsss4luad(raw)
    assert "1 files, the data set has 10,091" in refused(tmp_path, "wsss4luad")
    cv2.imwrite(str(raw / "3.testing" / "mask" / "00.png"), mask + 1)
    assert "(image 3: its mask has values other than 0, 1, 2, 3)" in refused(tmp_path, "wsss4luad", partial=True)
    _, account = build(tmp_path, "wsss4luad", max_bad_fraction=0.4)
    assert [entry["image"] for entry in account["rejected"]] == ["test/00.png"] and len(account["splits"]) == 2
    cv2.imwrite(str(raw / "3.testing" / "mask" / "00.png"), np.zeros((40, 30, 3), np.uint8))
    assert "(image 3: a mask of classes must have one channel" in refused(tmp_path, "wsss4luad", partial=True)
    (raw / "3.testing" / "mask" / "00.png").rename(raw / "3.testing" / "mask" / "01.png")
    assert "lacks 1 of the files that belong to its images;" in refused(tmp_path, "wsss4luad")
    assert listed(tmp_path, "wsss4luad", "missing")[0] == "3.testing/mask/00.png"
    _, account = build(tmp_path, "wsss4luad")
    assert account["dropped"] == {"mask not there": 1} and len(account["splits"]) == 2
    image_file(raw / "1.training" / "unnamed.png", 4)
    assert "a training patch must have its labels" in refused(tmp_path, "wsss4luad", partial=True)
    assert listed(tmp_path, "wsss4luad")[0].startswith("train/unnamed.png: a training patch")


# --- DHMC-LUAD ----------------------------------------------------------------------------------------------------

DHMC_HEADER = "File Name,Class,Magnification,Microns Per Pixel"


def dhmc_luad(raw, *classes):
    rows = [[f"DHMC_{k:04d}.tif", pattern, "20x", 0.5] for k, pattern in enumerate(classes, start=1)]
    rows_file(raw / "MetaData_Release_1.0.csv", DHMC_HEADER, rows)
    return [
        slide_file(raw / "DHMC_wsi" / row[0], [(960, 720), (480, 360), (240, 180)], k) for k, row in enumerate(rows)
    ]


def test_dhmc_luad_slides_become_records_with_their_pattern(tmp_path):
    levels = dhmc_luad(tmp_path / "raw", "solid", "lepidic", "Acinar")
    records, account = build(tmp_path, "dhmc_luad")
    assert set(account["splits"].values()) == {"test"} and account["patients"] == {"test": 3}
    first = records["DHMC_0001.tif"]
    assert [k for k, value in first.labels.items() if value] == ["solid"] and len(first.labels) == 5
    assert first.sentences == ["lung adenocarcinoma with a predominantly solid growth pattern"]
    assert records["DHMC_0003.tif"].labels["acinar"] == 1
    assert (first.width, first.height) == (240, 180), "the smallest level that fills the square"
    np.testing.assert_array_equal(first.image, Geometry(180, 240).to_square(levels[0][-1]))


def test_dhmc_luad_names_missing_and_broken_slides(tmp_path):
    raw = tmp_path / "raw"
    dhmc_luad(raw, *["papillary"] * 4)
    assert "4 files, the data set has 143" in refused(tmp_path, "dhmc_luad")
    (raw / "DHMC_wsi" / "DHMC_0002.tif").write_bytes(b"II*\0 not a slide")
    _, account = build(tmp_path, "dhmc_luad", max_bad_fraction=0.5)
    assert [entry["image"] for entry in account["rejected"]] == ["DHMC_0002.tif"]
    (raw / "DHMC_wsi" / "DHMC_0003.tif").unlink()
    _, account = build(tmp_path, "dhmc_luad", max_bad_fraction=0.5)
    assert account["dropped"] == {"image not there": 1}
    rows_file(raw / "MetaData_Release_1.0.csv", DHMC_HEADER, [["DHMC_0001.tif", "mucinous", "20x", 0.5]])
    assert "(MetaData_Release_1.0.csv, row 2, column Class: none of acinar, lepidic" in refused(
        tmp_path, "dhmc_luad", partial=True
    )
