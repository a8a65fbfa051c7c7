"""The evaluation of presence: metrics on known numbers, and its folder and page with a stand-in for a model."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from afloc_jax.errors import UserError
from afloc_jax.evaluation.page import write_report
from afloc_jax.evaluation.presence.evaluate import KEPT, evaluate_presence
from afloc_jax.evaluation.presence.fit import fit_presence
from afloc_jax.evaluation.presence.metrics import (
    BINS,
    bins_of,
    brier,
    calibration_error,
    false_positives,
    reliability_table,
    selective_risk,
)
from afloc_jax.evaluation.presence.settings import CalibrationSettings, PresenceSettings
from afloc_jax.evaluation.run import card_tables
from afloc_jax.inference.class_prompts import SYNONYMS
from afloc_jax.models.settings import ModelSettings
from data_pipelines.records import Record

CLASSES = ("edema", "nodule", "pneumothorax")
SOME, NONE = np.ones((1, 200)), np.ones((1, 1))
RNG = np.random.default_rng(3)
PROBABILITIES = RNG.random(200)
PRESENT = RNG.random(200) < PROBABILITIES**1.5


# Metrics


def test_bins_have_equal_mass():
    counts = np.bincount(bins_of(PROBABILITIES))
    assert len(counts) == BINS
    assert set(counts) <= {13, 14}
    assert all(PROBABILITIES[bins_of(PROBABILITIES) == k].max() <= PROBABILITIES[bins_of(PROBABILITIES) == k + 1].min()
               for k in range(BINS - 1))  # fmt: skip


def test_calibration_error_is_that_of_a_plain_loop():
    expected = 0.0
    for part in np.array_split(np.argsort(PROBABILITIES), BINS):
        expected += abs(PRESENT[part].mean() - PROBABILITIES[part].mean()) * len(part) / 200
    assert calibration_error(PRESENT, PROBABILITIES, SOME)[0] == pytest.approx(expected)
    table = reliability_table(PRESENT, PROBABILITIES)
    assert sum(abs(row.observed - row.mean_probability) * row.n for row in table) / 200 == pytest.approx(expected)


def test_weights_count_as_copies():
    weights = RNG.integers(0, 4, (1, 200)).astype(float)
    copies = np.repeat(np.arange(200), weights[0].astype(int))
    found = brier(PRESENT, PROBABILITIES, weights)[0]
    assert found == pytest.approx(sklearn_metrics.brier_score_loss(PRESENT[copies], PROBABILITIES[copies]))
    rate = false_positives(PRESENT, PROBABILITIES, weights)[0]
    assert rate == pytest.approx(false_positives(PRESENT[copies], PROBABILITIES[copies], np.ones((1, len(copies))))[0])


@pytest.mark.parametrize("digits", [1, 12])  # with and without ties
def test_false_positives_are_read_off_scikit_learns_roc_curve(digits):
    scores = PROBABILITIES.round(digits)
    false, true, _ = sklearn_metrics.roc_curve(PRESENT, scores, drop_intermediate=False)
    assert false_positives(PRESENT, scores, SOME)[0] == pytest.approx(false[np.argmax(true >= 0.9)])
    assert np.isnan(false_positives(np.ones(200, bool), scores, SOME)).all()


def test_risk_of_all_decisions_is_the_share_of_wrong_ones():
    curve = selective_risk(PRESENT, PROBABILITIES)
    assert curve[-1] == (1.0, pytest.approx(((PROBABILITIES >= 0.5) != PRESENT).mean()))
    most_certain = np.argsort(-np.abs(PROBABILITIES - 0.5))[:100]
    wrong = ((PROBABILITIES >= 0.5) != PRESENT)[most_certain].mean()
    assert dict(curve)[0.5] == pytest.approx(wrong)


# The evaluation


def records(number, seed):
    """Images whose pixels say which classes they show."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(number):
        shown = rng.random(len(CLASSES)) < [0.5, 0.3, 0.1]
        image = np.full((8, 8), int(shown @ [1, 2, 4]), np.uint8)
        sentences = [f"small {name}" if there else f"no {name}" for name, there in zip(CLASSES, shown, strict=True)]
        made.append(Record(f"r{i}", image, sentences, 0, f"p{i}", "PA", 8, 8, []))
    return made


class Seeing:
    """A model whose peaks are high where an image shows what a prompt names, but for one in ten."""

    batch_size, weights_sha256, calibration = 16, "0" * 64, None
    config = SimpleNamespace(trained_on=("phantom",), architecture=ModelSettings())

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def evidence(self, squares, rows, prompts):
        seen = [
            any(name in prompt and squares[row, 0, 0] >> k & 1 for k, name in enumerate(CLASSES))
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        mistaken = self.rng.random(len(seen)) < 0.1
        peaks = np.where(np.array(seen) ^ mistaken, 0.7, 0.3) + self.rng.normal(0, 0.1, len(seen))
        words = np.log([len(prompt.split()) for prompt in prompts])
        return np.stack([peaks, self.rng.normal(0, 1, len(seen)), words], axis=1)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    model, out = Seeing(), tmp_path_factory.mktemp("out")
    validation, source = records(300, seed=1), records(400, seed=2)
    model.calibration = fit_presence(model, validation, CalibrationSettings(name="made"))
    settings = PresenceSettings(name="made", title="Made", bootstrap=50)
    return evaluate_presence(model, source, out, settings, validation), out


def test_a_calibrated_model_is_calibrated(found):
    result, _ = found
    assert (result.n, result.questions, result.labels) == (400, 2 * 3 * 400, "reports")
    assert sorted(result.own_fit) == sorted(CLASSES)
    for part in ("seen", "left out"):
        assert result.metrics[f"brier {part}"].overall.mean < result.base_brier[""]
        assert 0.05 < result.metrics[f"fpr90 {part}"].overall.mean < 0.5
    assert result.metrics["ece seen"].overall.mean < 0.04
    # The pooled fit of the two other classes knows nothing of how rare a class is.
    seen, left_out = (result.metrics[f"ece {part}"].per_category["pneumothorax"].mean for part in ("seen", "left out"))
    assert seen < 0.05 < left_out


def test_phrases_that_name_nothing_are_absent(found):
    kept = found[0].kept
    assert set(kept) == {"known_words", "everyday"}
    assert all(len(one.phrases) == 15 and one.median < 0.1 for one in kept.values())


def test_the_folder_has_rows_of_every_question_and_a_page(found):
    result, out = found
    with (out / "per_sample.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result.questions
    squared = [(float(row["present"]) - int(row["label"])) ** 2 for row in rows]
    assert [float(row["value"]) for row in rows] == pytest.approx(squared)
    assert np.mean(squared) == pytest.approx(result.metrics["brier seen"].overall.mean)
    page = write_report(out).read_text()
    for words in ("Classes seen", "Classes left out", "Selective risk", "Phrases that name nothing in a chest"):
        assert words in page
    summary = json.loads((out / "summary.json").read_text())
    (table,) = card_tables({"Made": summary})
    assert "ECE, left out" in table["columns"]
    assert "| edema |" in (out / "summary.md").read_text()


def test_without_a_validation_split_no_class_is_left_out(tmp_path):
    model = Seeing()
    model.calibration = fit_presence(model, records(60, seed=1), CalibrationSettings(name="made"))
    result = evaluate_presence(model, records(60, seed=2), tmp_path, PresenceSettings(name="made", bootstrap=5))
    assert result.parts == ["seen"]
    assert write_report(tmp_path).is_file()


def test_a_model_without_calibration_cannot_be_evaluated(tmp_path):
    with pytest.raises(UserError, match="not calibrated; run: afloc calibrate"):
        evaluate_presence(Seeing(), records(4, seed=1), tmp_path, PresenceSettings(name="made"))


def test_kept_phrases_name_no_class():
    from afloc_jax.evaluation.presence.labels import words_of
    from afloc_jax.inference.class_prompts import read_prompt_set
    from data_pipelines.statements import statement

    kept = json.loads(KEPT.read_text())
    phrases = [*kept["known_words"], *kept["everyday"]]
    assert len(set(phrases)) == 30
    for name in [*read_prompt_set("chest").classes, *SYNONYMS, "device", "port"]:
        assert [phrase for phrase in phrases if statement([phrase], words_of(name)) != "silent"] == []
