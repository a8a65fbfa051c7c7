"""Evaluation and page of the other protocols, published numbers beside ours, failures."""

import csv
import re
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.localization.evaluate import evaluate
from afloc_jax.evaluation.localization.failures import worst_samples
from afloc_jax.evaluation.localization.protocols import get_protocol
from afloc_jax.evaluation.localization.published import published_scores
from afloc_jax.evaluation.localization.samples import parts_of
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.page import write_report
from afloc_jax.evaluation.report.numbers import number
from tests.evaluation.discs import SIZE, SOURCE, TRAIN, Checker, Reader, record


class Seer(Reader):
    """Finds the bright disc itself, whatever it is asked for, and is sure of it; `blind` sees nothing."""

    def heatmaps_of_pairs(self, images, rows, prompts, *, compatible=False):
        maps = [cv2.GaussianBlur((images[row] >= 200) * 2.0, (0, 0), 2) for row in rows]
        noise = np.random.default_rng(0).random((SIZE, SIZE)) * 0.01
        return np.array([noise if self.blind else one + noise for one in maps], np.float32)


TUNED = LocalizationSettings(protocol="chexlocalize", class_prompt="a {finding}")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned")
    validation = [record(200 + i, [["nodule"], []][i % 2]) for i in range(6)]
    seer = Seer()
    seer.untrained = lambda: Seer(blind=True)
    settings = replace(TUNED, bootstrap=20, title="MS-CXR")
    summary = evaluate(seer, SOURCE, out, settings, validation_source=validation, prior_source=TRAIN)
    return out, summary, write_report(out).read_text()


def test_every_image_is_asked_for_every_class_and_thresholds_come_from_validation(tuned):
    _, summary, _ = tuned
    assert summary["n"] == 2 * len(SOURCE)
    assert summary["n_per_category"] == {"edema": 18, "nodule": 18}
    positives = {name: row["positives"] for name, row in summary["presence"]["per_category"].items()}
    assert positives == {"edema": 9, "nodule": 10}
    assert summary["operating_points"]["nodule"]["positives"] == 3
    assert summary["operating_points"]["edema"]["chosen_on"] == "all classes"
    assert summary["metrics"]["iou_true_positive"]["per_category"]["nodule"]["mean"] > 0.6
    assert summary["baselines"]["untrained"]["difference"]["iou"]["overall"]["lower"] > 0


def test_the_page_of_one_evaluation_shows_presence_and_what_failed(tuned):
    out, summary, page = tuned
    checker = Checker()
    checker.feed(page)
    assert checker.open == [] and checker.fetched == []
    assert "Every setting" not in page and "No metrics were logged" not in page
    point, row = summary["operating_points"]["nodule"], summary["presence"]["per_category"]["nodule"]
    cells = "".join(re.findall(r"<tr><th>nodule</th>.*?</tr>", page, re.DOTALL))
    for value in (number(point["mask_threshold"], 1), number(row["auc"]["mean"]), number(row["specificity"])):
        assert f"<td>{value}" in cells
    false_positives = sum(summary["outcomes"]["false positives"].values())
    assert f"predicted where there is nothing {false_positives}" in re.sub(r"\s+", " ", page)
    failures = worst_samples(out / "per_sample.csv", 4)
    assert failures.scored == 36
    assert failures.failed == sum(failures.kinds.values()) >= false_positives
    assert [sample.category for sample in failures.samples] == ["edema", "nodule"] * 2
    with pytest.raises(UsageError, match="validation split"):
        evaluate(Seer(), SOURCE, out, TUNED)


def test_patients_of_the_records_reach_the_table_and_are_drawn_together(tmp_path):
    """Images of one patient: presence too is drawn by patient, and the baselines see the same draws."""
    named = [SimpleNamespace(**{**vars(one), "patient": f"p{i // 2}"}) for i, one in enumerate(SOURCE)]
    seer = Seer()
    seer.untrained = lambda: Seer(blind=True)
    summary = evaluate(seer, named, tmp_path, replace(TUNED, bootstrap=50, unit="patient"), validation_source=named)
    assert summary["bootstrap"]["unit"] == "patient"
    auc = summary["presence"]["overall"]["auc"]
    assert auc["lower"] <= auc["mean"] <= auc["upper"]
    with open(tmp_path / "per_sample.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["patient"] for row in rows if row["image"] == "r5"} == {"p2"}
    with pytest.raises(UserError, match="name no patient"):
        evaluate(seer, SOURCE, tmp_path, LocalizationSettings(bootstrap=50, unit="patient"))


def test_published_numbers_stand_beside_ours_for_the_same_data_and_protocol(tmp_path, tuned):
    assert "Beside published numbers" not in tuned[2]  # another protocol
    evaluate(Reader(), SOURCE, tmp_path, LocalizationSettings(bootstrap=10, title="MS-CXR phrases"))
    page = write_report(tmp_path).read_text()
    text = re.sub(r"\s+", " ", page)
    assert "Beside published numbers, MS-CXR" in text
    assert "<tr><th>BioViL</th><td>0.228</td><td>0.343</td><td>1.084</td></tr>" in text
    assert published_scores("phantom", "COVID-19 lesions") == ("", {})
    assert published_scores("", "covid_rural")[0] == "COVID Rural"


def test_grounding_scores_masks_as_boxes(tmp_path):
    summary = evaluate(Reader(), SOURCE, tmp_path, LocalizationSettings(bootstrap=10, protocol="grounding"))
    assert (summary["protocol"], summary["margin"], summary["n"]) == ("grounding", 0, 19)
    truths = parts_of(get_protocol("grounding"), [SOURCE])[0].truths
    assert {int(truth.mask.sum()) for truth in truths} == {13 * 13}  # around discs of radius 6
