"""The fit of presence: labels, questions, and both fits beside scikit-learn."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from afloc_jax.errors import UserError
from afloc_jax.evaluation.presence.fit import LEAST, fit
from afloc_jax.evaluation.presence.labels import questions, read_labels, words_of
from afloc_jax.evaluation.presence.settings import CalibrationSettings
from data_pipelines.records import Finding, Record

HOW = CalibrationSettings(name="made")
MASK = cv2.imencode(".png", np.full((8, 8), 255, np.uint8))[1].tobytes()


def record(index, sentences=(), labels=None, findings=()):
    found = [Finding(label, prompt, MASK) for label, prompt in findings]
    image = np.full((8, 8), index % 251, np.uint8)
    return Record(f"r{index}", image, list(sentences), 0, f"p{index}", "PA", 8, 8, found, labels=labels or {})


REPORTS = [
    record(0, ["small left effusion", "no pneumothorax"]),
    record(1, ["no pleural effusion or pneumothorax", "the trachea is midline"]),
    record(2, ["the trachea is midline"]),
    record(3, ["large effusion on the right", "possible pneumothorax"]),
    record(4, ["apical pneumothorax"]),
]


def test_labels_come_from_the_records_where_they_have_any():
    source = [record(0, ["no edema"], {"Edema": 1}), record(1, [], {"Edema": 0})]
    records, where = read_labels(source, HOW)
    assert (where, records.classes) == ("records", ("edema",))
    assert records.labels.tolist() == [[1], [0]]


def test_without_labels_reports_state_deny_or_are_silent():
    records, where = read_labels(REPORTS, HOW)
    assert where == "reports"
    assert records.ids == ("r0", "r1", "r3", "r4")  # nothing is known of r2
    table = dict(zip(records.classes, records.labels.T.tolist(), strict=True))
    assert set(table) == {"pleural effusion", "pneumothorax"}
    np.testing.assert_equal(table["pleural effusion"], [1, 0, 1, np.nan])
    np.testing.assert_equal(table["pneumothorax"], [0, 0, np.nan, 1])


def test_without_labels_and_statements_there_is_one_error():
    with pytest.raises(UserError, match="neither state nor deny"):
        read_labels([record(0, ["the trachea is midline"])], HOW)


def test_an_image_is_asked_by_name_and_by_its_own_phrase_or_by_that_of_another_one():
    source = [record(i, findings=[("Effusion", f"effusion number {i}")] if i < 3 else []) for i in range(9)]
    source += [record(9, findings=[("Edema", "mild edema")])]
    records, _ = read_labels(source, HOW)
    asked = questions(source, records)
    assert records.classes == ("edema", "effusion")
    own = asked.category == 1
    assert asked.by_name[own].sum() == (~asked.by_name[own]).sum() == 10
    assert {asked.prompts[k] for k in np.flatnonzero(own & asked.by_name)} == {"effusion"}
    for k in np.flatnonzero(own & ~asked.by_name):
        number = int(asked.prompts[k].rsplit(" ", 1)[1])
        assert number == asked.rows[k] if asked.present[k] else number < 3
    np.testing.assert_array_equal(asked.present, records.labels[asked.record, asked.category] == 1)
    assert asked.prompts == questions(source, records).prompts


def test_no_phrase_alone_tells_what_is_present():
    """Where half of the images that show a class have a phrase, about half of the others are asked by one."""
    source = [record(i, ["an effusion"] if i % 2 else [], {"effusion": int(i < 200)}) for i in range(400)]
    asked = questions(source, read_labels(source, HOW)[0])
    shares = [(~asked.by_name)[asked.present == side].sum() / 200 for side in (True, False)]
    assert shares[0] == 0.5
    assert shares[1] == pytest.approx(0.5, abs=0.1)


def test_words_of_a_class_are_those_of_its_synonyms():
    assert {"infiltrate", "infiltration", "pulmonary infiltrate"} <= set(words_of("Infiltrate"))
    assert words_of("something else") == ("something else",)


def made(number, positives, seed=0):
    """Evidence in which class 0 has many positives and class 1 few."""
    rng = np.random.default_rng(seed)
    source = [record(i, labels={"edema": int(i < number // 3), "nodule": int(i < positives)}) for i in range(number)]
    records = read_labels(source, HOW)[0]
    asked = questions(source, records)
    evidence = rng.normal(size=(len(asked), 3)) + np.where(asked.present, 1.0, 0.0)[:, None] * [1.5, 0.5, 0.0]
    return evidence, asked, records


def smoothed(inputs, present, strength):
    """Scikit-learn's fit on Platt's targets: each sample counts as present by its target, and as absent by the rest."""
    positives = present.sum()
    targets = np.where(present, (positives + 1) / (positives + 2), 1 / ((~present).sum() + 2))
    model = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=5000)
    outcomes = np.repeat([1, 0], len(inputs))
    model.fit(np.concatenate([inputs, inputs]), outcomes, np.concatenate([targets, 1 - targets]))
    return model


def test_the_pooled_fit_is_that_of_scikit_learn():
    evidence, asked, records = made(120, 5)
    pooled = fit(evidence, asked, records).pooled
    scaled = (evidence - evidence.mean(axis=0)) / evidence.std(axis=0)
    expected = smoothed(scaled, asked.present, 1e-3)
    np.testing.assert_allclose(pooled.weights, expected.coef_[0], rtol=1e-3, atol=1e-4)
    assert pooled.bias == pytest.approx(expected.intercept_[0], rel=1e-3)
    np.testing.assert_allclose([pooled.lowest, pooled.highest], [evidence.min(axis=0), evidence.max(axis=0)])


def test_a_class_has_its_own_fit_from_twenty_positives_and_negatives_on():
    fits = {
        positives: {one.name: one for one in fit(*made(120, positives)).classes} for positives in (LEAST - 1, LEAST)
    }
    assert fits[LEAST - 1]["nodule"].temperature is None
    assert fits[LEAST]["nodule"].temperature is not None
    assert (fits[LEAST]["nodule"].positives, fits[LEAST]["nodule"].negatives) == (20, 100)
    assert fits[LEAST - 1]["edema"].temperature is not None


def test_a_class_of_another_frequency_gets_a_bias_of_its_own():
    """Its probabilities have the mean of its labels, which those of the pooled fit have not."""
    evidence, asked, records = made(600, 40)
    fitted = fit(evidence, asked, records)
    for c, one in enumerate(fitted.classes):
        own = asked.category == c
        logits = fitted.logits(evidence[own])
        mean = np.mean([fitted.probability(z, one) for z in logits])
        pooled = np.mean([fitted.probability(z, None) for z in logits])
        assert abs(mean - asked.present[own].mean()) < 0.01 < abs(pooled - asked.present[own].mean())


def test_classes_that_are_told_apart_completely_stay_finite():
    _, asked, records = made(120, 40)
    fitted = fit(np.where(asked.present, 1.0, 0.0)[:, None] * np.ones(3), asked, records)
    numbers = [*fitted.pooled.weights, *(value for one in fitted.classes for value in (one.temperature, one.bias))]
    assert np.isfinite(numbers).all()


def test_evidence_of_one_kind_alone_is_refused():
    evidence, asked, records = made(60, 5)
    with pytest.raises(UserError, match="with and without a finding"):
        fit(evidence, replace(asked, present=np.ones(len(asked), bool)), records)
