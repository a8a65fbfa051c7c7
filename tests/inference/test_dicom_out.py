"""Segmentations and secondary captures of localisations, opened again by pydicom."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import afloc_jax
from afloc_jax.cli import main

pydicom = pytest.importorskip("pydicom")
NAME, IDENTIFIER = b"Doe^Archibald", b"77654033"
FILM = "dicomdirtests/77654033/CR1/6154"  # of a chest, 16 x 16 pixels, with a patient


@pytest.fixture
def films(tmp_path):
    root = tmp_path / "films"
    root.mkdir()
    shipped = Path(pydicom.data.__file__).parent / "test_files"
    shutil.copy(shipped / FILM, root / "6154")
    shutil.copy(shipped / "MR_small.dcm", root / "mr.dcm")
    return root


def localized(folder, films, tmp_path, *flags):
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    call = ["localize", str(folder), str(films), "--prompt=small left effusion", "--prompt=nodule", "--out", str(out)]
    status = main([*call, *flags])
    return out, status


def test_segments_are_the_maps_above_the_threshold_and_carry_patient_and_study(folder, films, tmp_path):
    pytest.importorskip("highdicom")
    out, status = localized(folder, films, tmp_path, "--dicom=both", "--overlays=none")
    assert status == 0
    found = afloc_jax.load(folder).localize([films / "6154"], ["small left effusion", "nodule"])[0]
    written, source = pydicom.dcmread(out / "6154.seg.dcm"), pydicom.dcmread(films / "6154")
    assert written.SOPClassUID.name == "Segmentation Storage" and written.SegmentationType == "BINARY"
    assert [segment.SegmentLabel for segment in written.SegmentSequence] == ["small left effusion", "nodule"]
    for frame, one in zip(written.pixel_array, found, strict=True):
        np.testing.assert_array_equal(frame, one.heatmap > one.cut)
    referred = written.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    assert referred.ReferencedSOPInstanceUID == source.SOPInstanceUID
    capture = pydicom.dcmread(out / "6154.1.capture.dcm")
    assert capture.SOPClassUID.name == "Secondary Capture Image Storage" and capture.pixel_array.shape[-1] == 3
    for made in (written, capture):
        for key in ("PatientName", "PatientID", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
            assert made[key].value == source[key].value
        assert made.SeriesInstanceUID != source.SeriesInstanceUID
    content = json.loads((out / "localize.json").read_text())
    assert content["images"][0]["segmentation"] == "6154.seg.dcm"
    assert content["images"][0]["prompts"][1]["capture"] == "6154.1.capture.dcm"
    carrying = {path.name for path in out.iterdir() if NAME in path.read_bytes() or IDENTIFIER in path.read_bytes()}
    assert carrying == {"6154.seg.dcm", "6154.0.capture.dcm", "6154.1.capture.dcm"}, "no other file"


def test_without_identity_nothing_leads_back_to_the_image(folder, films, tmp_path):
    pytest.importorskip("highdicom")
    out, status = localized(folder, films, tmp_path, "--dicom=both", "--no_identity")
    assert status == 0
    source = pydicom.dcmread(films / "6154")
    theirs = {str(element.value).encode() for element in source.iterall() if element.VR == "UI"}
    theirs = {uid for uid in theirs if not uid.startswith(b"1.2.840.10008")} | {NAME, IDENTIFIER}
    assert len(theirs) >= 5
    for name in ("6154.seg.dcm", "6154.0.capture.dcm"):
        made, content = pydicom.dcmread(out / name), (out / name).read_bytes()
        assert not [value for value in theirs if value in content]
        assert not any(
            made.get(key) for key in ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "StudyID")
        )
        assert made.pixel_array.any()


def test_a_header_that_does_not_suffice_fails_that_image_alone(folder, films, tmp_path, capsys):
    pytest.importorskip("highdicom")
    dataset = pydicom.dcmread(films / "mr.dcm")
    del dataset.StudyInstanceUID
    dataset.save_as(films / "mr.dcm")
    out, status = localized(folder, films, tmp_path, "--dicom=segmentation")
    said = capsys.readouterr().err
    assert status == 1 and "mr.dcm: no DICOM object can refer to it, for it has no StudyInstanceUID" in said
    assert "1 of 2 images failed" in said and (out / "6154.seg.dcm").exists() and not list(out.glob("*.capture.dcm"))


def test_the_package_is_named_where_it_is_missing(folder, films, tmp_path, monkeypatch, capsys):
    from afloc_jax.inference import dicom_out

    monkeypatch.setattr(dicom_out.importlib.util, "find_spec", lambda name: None)
    assert localized(folder, films, tmp_path, "--dicom=both")[1] == 2
    assert '--dicom needs the package highdicom; run: pip install "afloc-jax[dicom]"' in capsys.readouterr().err


def test_the_help_says_what_they_carry(capsys):
    with pytest.raises(SystemExit):
        main(["localize", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "carry the patient and study modules of the image" in said and "no other file does" in said
