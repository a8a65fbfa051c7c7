"""Presence: evidence, the calibration of a model folder, and what the commands say with one and without."""

import csv
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

import afloc_jax
from afloc_jax.cli import main
from afloc_jax.errors import UserError
from afloc_jax.inference.presence import class_of, presence
from afloc_jax.weights.calibration import (
    CALIBRATION,
    Calibration,
    ClassFit,
    Pooled,
    read_calibration,
    write_calibration,
)
from afloc_jax.weights.config import ModelFolderError
from afloc_jax.weights.folder import weights_hash

EDEMA = ClassFit("edema", ("edema", "pulmonary edema"), temperature=2.0, bias=-1.0, positives=20, negatives=30)
OPACITY = ClassFit("lung opacity", ("lung opacity", "opacity"), positives=3, negatives=30)
POOLED = Pooled(
    mean=(0.4, 0.1, 0.5), deviation=(0.1, 0.2, 0.5), highest=(0.9, 0.9, 2.0), weights=(2.0, 1.0, -0.5), bias=0.3
)
FITTED = Calibration(dataset="phantom", split="validation", records=50, pooled=POOLED, classes=(EDEMA, OPACITY))
PROMPTS = ["small left pleural effusion", "mild edema", "no edema"]


@pytest.fixture
def calibrated(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    write_calibration(copy, replace(FITTED, weights_sha256=weights_hash(copy)))
    return copy


@pytest.fixture
def picture(pictures, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), pictures[0])
    return tmp_path / "a.png"


def logit(evidence):
    clipped = np.clip(evidence, POOLED.lowest, POOLED.highest)
    return (clipped - np.array(POOLED.mean)) / np.array(POOLED.deviation) @ np.array(POOLED.weights) + POOLED.bias


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def test_the_class_of_a_prompt_has_its_own_temperature_and_bias_and_all_others_the_pooled_fit():
    evidence = np.array([[0.5, 0.2, 0.7]] * 4)
    found = presence(FITTED, evidence, ["mild edema", "an opacity", "zebra crossing", "edema with opacity"])
    z = logit(evidence[0])
    np.testing.assert_allclose(found, [sigmoid(z / 2 - 1), sigmoid(z), sigmoid(z), sigmoid(z)])


def test_evidence_beyond_the_fit_counts_as_the_end_of_its_range():
    far, end = (presence(FITTED, np.array([[0.5, 0.2, words]]), ["a nodule"]) for words in (9.0, 2.0))
    assert far == end != presence(FITTED, np.array([[0.5, 0.2, 1.0]]), ["a nodule"])


def test_a_denial_has_no_presence():
    assert presence(FITTED, np.zeros((3, 3)), ["no edema", "the lungs are clear", "edema"])[:2] == [None, None]


def test_a_name_within_a_longer_one_names_no_class_of_its_own():
    airspace = ClassFit("consolidation", ("consolidation", "airspace opacity"))
    known = replace(FITTED, classes=(*FITTED.classes, airspace))
    assert class_of("patchy airspace opacity", known) is airspace
    assert class_of("Airspace_Opacity and an opacity", known) is None
    assert class_of("pulmonary edema", known) is EDEMA


def test_evidence_is_the_peak_of_the_cosines_the_global_cosine_and_the_words(model, pictures):
    squares = np.stack([model.square_of(picture)[0] for picture in pictures[:2]])
    rows, prompts = np.array([1, 0, 1]), ["small left pleural effusion", "edema", "Edema."]
    found = model.evidence(squares, rows, prompts)
    levels = model.embed_squares(squares)
    queries = model._prompt_vectors(model.read_prompts(prompts)).queries
    for k, row in enumerate(rows):
        query = queries[k] / np.linalg.norm(queries[k])
        deep = levels.deep[row].reshape(-1, len(query))
        peak = (deep @ query / np.linalg.norm(deep, axis=1)).max()
        whole = levels.whole[row] @ query / np.linalg.norm(levels.whole[row])
        np.testing.assert_allclose(found[k], [peak, whole, np.log(len(prompts[k].split()))], atol=1e-5)


def test_localisation_and_classification_give_the_presence_of_the_same_evidence(calibrated, pictures):
    model = afloc_jax.load(calibrated, batch_size=4)
    found = model.localize(pictures, PROMPTS)
    squares = np.stack([model.square_of(picture)[0] for picture in pictures])
    rows = np.repeat(np.arange(len(squares)), len(PROMPTS))
    evidence = model.evidence(squares, rows, PROMPTS * len(squares)).reshape(len(squares), len(PROMPTS), 3)
    for of_image, values in zip(found, evidence, strict=True):
        z = logit(values)
        assert [one.present for one in of_image] == pytest.approx([sigmoid(z[0]), sigmoid(z[1] / 2 - 1), None])
        assert [one.is_absent for one in of_image] == [sigmoid(z[0]) < 0.5, sigmoid(z[1] / 2 - 1) < 0.5, False]
    probabilities, judged = model.classify_squares(squares, ["Edema", "No_finding"])
    np.testing.assert_allclose(probabilities, model.classify(pictures, ["Edema", "No_finding"]))
    by_name = model.localize(pictures, ["edema"])
    assert judged == [[pytest.approx(one.present, abs=1e-6), None] for (one,) in by_name]
    assert model.classify_squares(squares, ["Edema"], framing="crop")[1] == [[None]] * len(pictures)


def test_commands_write_presence(calibrated, picture, tmp_path):
    assert main(["localize", str(calibrated), str(picture), "--prompt", "edema", "--out", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "localize.json").read_text())
    (entry,) = told["images"][0]["prompts"]
    assert told["calibrated"] is True
    assert 0 < entry["present"] < 1
    table = tmp_path / "scores.csv"
    assert main(["classify", str(calibrated), str(picture), "--class", "edema", "--out", str(table)]) == 0
    told = json.loads(table.with_suffix(".json").read_text())
    assert told["present"] == {str(picture): {"edema": pytest.approx(entry["present"])}}
    assert next(csv.DictReader(table.open())).keys() == {"image", "edema"}


@pytest.mark.parametrize(("bias", "absent"), [(-9.0, True), (9.0, False)])
def test_boxes_of_prompts_judged_absent_are_in_the_json_alone(calibrated, picture, tmp_path, bias, absent):
    sure = replace(FITTED, weights_sha256=weights_hash(calibrated), pooled=replace(POOLED, bias=bias), classes=())
    write_calibration(calibrated, sure)
    out = tmp_path / "out"
    assert main(["localize", str(calibrated), str(picture.parent), "--prompt", "edema", "--out", str(out)]) == 0
    (entry,) = json.loads((out / "localize.json").read_text())["images"][0]["prompts"]
    assert (entry["absent"], entry["present"] < 0.5) == (absent, absent)
    assert entry["boxes"]
    rows = list(csv.DictReader((out / "boxes.csv").open()))
    assert len(rows) == (0 if absent else len(entry["boxes"]))
    assert all(float(row["present"]) == pytest.approx(entry["present"], abs=1e-4) for row in rows)


def test_a_model_without_calibration_says_so_and_writes_boxes_as_before(folder, picture, tmp_path):
    assert main(["localize", str(folder), str(picture), "--prompt", "edema", "--out", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out" / "localize.json").read_text())
    (entry,) = told["images"][0]["prompts"]
    assert (told["calibrated"], entry["present"]) == (False, None)
    assert entry["boxes"]
    table = tmp_path / "scores.csv"
    assert main(["classify", str(folder), str(picture), "--class", "edema", "--out", str(table)]) == 0
    told = json.loads(table.with_suffix(".json").read_text())
    assert (told["calibrated"], told["present"]) == (False, None)


def test_a_calibration_is_read_as_it_was_written_and_sealed(calibrated, pictures):
    fitted = read_calibration(calibrated)
    assert replace(fitted, weights_sha256="") == FITTED
    path = calibrated / CALIBRATION
    path.write_text(path.read_text().replace("0.3", "3.0"))
    with pytest.raises(UserError, match=r"calibration.json is not the file that was sealed"):
        afloc_jax.load(calibrated).localize(pictures[:1], ["edema"])


def test_a_calibration_of_other_weights_does_not_count(calibrated):
    write_calibration(calibrated, replace(FITTED, weights_sha256="0" * 64))
    assert read_calibration(calibrated) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "format_version"),
        ({"pooled": {"weights": [1.0]}}, "3 numbers: peak, whole, words"),
        ({"pooled": {"deviation": [1.0, 0.0, 1.0]}}, "greater than 0"),
        ({"classes": [{"name": "edema", "temperature": 1.0}]}, "give both"),
        ({"classes": [{"name": "edema", "temperature": -1.0, "bias": 0.0}]}, "greater than 0"),
        ({"recipe": 1}, "unknown key"),
    ],
)
def test_a_wrong_calibration_is_refused_by_name(calibrated, change, words):
    path = calibrated / CALIBRATION
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelFolderError, match=words) as caught:
        read_calibration(calibrated)
    assert CALIBRATION in str(caught.value)
    assert "run afloc calibrate again" in str(caught.value)
