"""Open-i: XML reports and their images."""

import tarfile

import numpy as np
from published import build, image_file, listed, refused, rows_file
from raw_folders import SECRET

from data_pipelines.images import Geometry

REPORT = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{number}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH><major>Cardiomegaly/mild</major><major>Opacity/lung/base/left</major></MeSH>
{images}</eCitation>"""


A, B, EMPTY, C = "CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001", "CXR10_IM-0002-1001", "CXR2_IM-0652-1001"


def report(folder, number, findings, impression, images):
    folder.mkdir(parents=True, exist_ok=True)
    nodes = "".join(f'<parentImage id="{name}"><caption>Chest PA</caption></parentImage>' for name in images)
    text = REPORT.format(number=number, findings=findings, impression=impression, images=nodes)
    (folder / f"{number}.xml").write_text(text, encoding="utf-8")


def tree(tmp_path):
    raw = tmp_path / "raw"
    report(raw / "ecgen-radiology", 1, f"Heart is big. {SECRET}.", "Mild cardiomegaly.", [A, B])
    report(raw / "ecgen-radiology", 10, "", "", [EMPTY])
    report(raw / "ecgen-radiology", 2, "Caf\u00e9 nodule of 1.5 cm.", "", [C])
    return [image_file(raw / f"{name}.png", seed) for seed, name in enumerate((A, B, EMPTY, C))]


def test_every_image_gets_its_report_and_a_report_stays_in_one_split(tmp_path):
    images = tree(tmp_path)
    records, account = build(tmp_path, "open_i")
    assert sorted(records) == [A, B, C]
    first, second = records[A], records[B]
    np.testing.assert_array_equal(first.image, Geometry(40, 30).to_square(images[0]))
    assert first.sentences == ["mild cardiomegaly", "heart is big", SECRET.lower()] and first.impression_count == 1
    assert first.sections["comparison"] == "None." and first.sections["impression"] == "Mild cardiomegaly."
    assert first.labels == {"cardiomegaly": 1, "opacity": 1}
    assert first.patient == second.patient != records[C].patient
    assert account["splits"][first.id] == account["splits"][second.id]
    assert records[C].sentences == ["cafe nodule of 1.5 cm"]
    assert account["dropped"] == {"report without a sentence": 1} and account["rows"] == 4


def test_frontal_images_need_the_table_of_projections(tmp_path):
    tree(tmp_path)
    assert "frontal=true needs indiana_projections.csv" in refused(tmp_path, "open_i", partial=True, frontal=True)
    projections = {"1_IM-0001-3001": (1, "Lateral"), "1_IM-0001-4001": (1, "Frontal"), "2_IM-0652-1001": (2, "Frontal")}
    rows = [[uid, f"{name}.dcm.png", view] for name, (uid, view) in projections.items()]
    rows_file(tmp_path / "raw" / "indiana_projections.csv", "uid,filename,projection", rows)
    records, account = build(tmp_path, "open_i", frontal=True)
    assert {record.id: record.view for record in records.values()} == {
        B: "Frontal",
        C: "Frontal",
    }
    assert account["dropped"]["not frontal"] == 2


def test_what_is_missing_is_named_before_any_work(tmp_path):
    (tmp_path / "raw").mkdir()
    assert "**/[0-9]*.xml is missing" in refused(tmp_path, "open_i") and "**/CXR*.png is missing" in refused(
        tmp_path, "open_i"
    )
    tree(tmp_path)
    message = refused(tmp_path, "open_i")
    assert "3 files, the data set has 3,955" in message and "4 files, the data set has 7,470" in message
    assert "partial=true" in message
    (tmp_path / "raw" / "CXR2_IM-0652-1001.png").unlink()
    records, account = build(tmp_path, "open_i")
    assert len(records) == 2 and account["dropped"]["image not there"] == 1
    (tmp_path / "raw" / "ecgen-radiology" / "2.xml").write_text("<eCitation>")
    assert "(image 3: not a readable XML report)" in refused(tmp_path, "open_i", partial=True)
    assert listed(tmp_path, "open_i") == ["2.xml: not a readable XML report"]


def test_the_real_reports_are_read_whole(tmp_path, shared_data):
    """All 3,955 reports, with an image made for every hundredth (the real ones are not here)."""
    raw = tmp_path / "raw"
    with tarfile.open(shared_data / "iu_reports" / "NLMCXR_reports.tgz") as archive:
        archive.extractall(raw, filter="data")
    for number in range(1, 4000, 100):
        path = raw / "ecgen-radiology" / f"{number}.xml"
        if path.is_file():
            for name in path.read_text().split('<parentImage id="')[1:]:
                image_file(raw / f"{name.split(chr(34))[0]}.png", number)
    records, account = build(tmp_path, "open_i", max_bad_fraction=0)
    assert account["rows"] == 7470  # images that the reports name, as many as the publisher ships
    assert len(records) == 74 and account["dropped"] == {"image not there": 7356, "report without a sentence": 40}
