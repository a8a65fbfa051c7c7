"""The page and the card of classification, retrieval and wording: numbers, curves, pictures, and nothing fetched."""

import csv
import json
import re
from html import escape

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.classification import examples as task_examples
from afloc_jax.evaluation.page import write_report
from afloc_jax.evaluation.report.numbers import interval, interval_of, number
from afloc_jax.evaluation.report.small_charts import SpreadRow, interval_cell, roc_chart, spread_chart, wilson
from afloc_jax.evaluation.retrieval.examples import choose_queries
from afloc_jax.evaluation.run import card_index, card_tables, evaluate_datasets
from afloc_jax.evaluation.settings import TaskSettings
from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.interval import Interval
from afloc_jax.evaluation.task import Models
from afloc_jax.evaluation.tasks import TASKS, EvaluationSettings
from afloc_jax.inference.model import load
from afloc_jax.weights.card import render_card
from afloc_jax.weights.config import FolderConfig
from tests.evaluation.discs import Checker
from tests.inference.conftest import folder, model  # noqa: F401 (fixtures)

SIZES = {"train": 0, "validation": 12, "test": 24, "seed": 0}


def checked(out):
    """The page of a folder: well formed, and asking for nothing from elsewhere."""
    page = write_report(out).read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == [] and checker.fetched == []
    assert not {"script", "link", "iframe", "img"} & set(checker.tags)
    assert not re.search(r"\bnan\b|\binf\b", page.split("</style>")[1])
    return page, re.sub(r"\s+", " ", page)


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):  # noqa: F811
    """Folder and summary of every task, on phantoms."""
    data = tmp_path_factory.mktemp("data")
    common = {"name": "phantom", "directory": str(data), "builder": SIZES, "bootstrap": 40, "title": "Chests & <i>"}
    found, ways = {}, data / "ways.json"
    ways.write_text('{"edema": ["edema", "lung edema <b>"], "nodule": ["a nodule", "nodule", "rounded density"]}')
    for task, options in (
        ("classification", {"prompts": "chest"}),
        ("retrieval", {}),
        ("robustness", {"prompts": str(ways)}),
    ):
        out = tmp_path_factory.mktemp(task)
        settings = TASKS[task].settings.read({**common, **options})
        found[task] = (out, TASKS[task].evaluate(Models(lambda: model), out, settings))
    return found


def test_the_page_of_classification_shows_every_class_its_curves_and_the_surest_mistakes(results):
    out, summary = results["classification"]
    page, text = checked(out)
    assert "Chests &amp; &lt;i&gt;: classification" in page
    for name in summary["n_per_category"]:
        entry = summary["metrics"]["auc"]["per_category"][name]
        star = r"\*" if summary["positives"][name] < 20 else ""
        row = re.search(rf"<tr><th>{name}{star}</th>.*?</tr>", text).group()
        assert f"{number(entry['mean'])} <small>{interval(interval_of(entry))}</small>" in row
        assert f"<td>{summary['positives'][name]} / 24</td>" in row
        assert f'aria-label="ROC curve of {name}"' in page
        assert f'aria-label="Observed share over probability of {name}"' in page
    described = json.loads((out / "examples.json").read_text())
    assert len(re.findall(r'href="data:image/jpeg;base64,', page)) == len(described) > 0
    for mistake in described:
        kind = f'{mistake["kind"]}, {number(mistake["probability"], 2)}</span> <span class="scores">{mistake["id"]}<'
        assert kind in text


def test_mistakes_are_those_of_the_table_and_the_surest_of_them(results):
    out, summary = results["classification"]
    with open(out / "per_sample.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    described = json.loads((out / "examples.json").read_text())
    with np.load(out / "examples.npz") as arrays:
        truths = arrays["truths"]
    for name in summary["n_per_category"]:
        for kind, label, sign in (("false positive", "0", -1), ("missed", "1", 1)):
            wrong = [r for r in rows if r["category"] == name and r["label"] == label and r["predicted"] != label]
            wrong.sort(key=lambda r: sign * float(r["probability"]))
            mine = [i for i, m in enumerate(described) if (m["category"], m["kind"]) == (name, kind)]
            assert [described[i]["id"] for i in mine] == [r["id"] for r in wrong[:3]]
            for i in mine:
                assert truths[i].any() == (kind == "missed") == (name in described[i]["shows"])


def test_unknown_labels_are_no_mistakes():
    labels = np.array([[np.nan], [0.0], [1.0], [0.0]])
    found = task_examples.choose_mistakes(labels, np.full((4, 1), 0.9), np.array([[True], [True], [True], [False]]))
    assert found == [(1, 0, "false positive")]


def test_the_page_of_retrieval_shows_both_directions_beside_chance_and_what_reports_find(results):
    out, summary = results["retrieval"]
    page, text = checked(out)
    for direction in ("image_to_text", "text_to_image"):
        values = summary["metrics"][f"recall@5 {direction}"]
        assert f"{number(values['overall']['mean'])} <small>{interval(interval_of(values, 'overall'))}</small>" in text
        assert f"chance {number(values['chance'], 3 if values['chance'] < 0.1 else 2)}<" in text
    queries = json.loads((out / "examples.json").read_text())
    assert len(queries) == 6 and all(len(query["retrieved"]) == 5 for query in queries)
    assert page.count("data:image/jpeg") == 6 * 6
    for query in queries:
        places = [k + 1 for k, item in enumerate(query["retrieved"]) if item["relevant"]]
        assert (places[0] if places else 6) <= query["first_relevant"] <= (places[0] if places else 24)
    ranks = [query["first_relevant"] for query in queries]
    assert ranks == sorted(ranks)  # by pairs, average precision is one over the rank


def test_queries_run_from_the_best_to_the_worst_by_average_precision():
    rng = np.random.default_rng(0)
    similarity, relevant = rng.random((20, 30)), rng.random((20, 30)) < 0.15
    relevant[7] = False
    found = choose_queries(similarity, relevant)
    average = [metrics.average_precision_score(relevant[q], similarity[q]) for q in range(20) if relevant[q].any()]
    picked = [metrics.average_precision_score(relevant[q], similarity[q]) for q in found]
    assert 7 not in found and len(found) == 6
    assert picked == sorted(picked, reverse=True)
    assert (picked[0], picked[-1]) == (max(average), min(average))


def test_no_report_is_on_the_page_of_retrieval(results):
    opened = {key: results["retrieval"][1]["settings"][key] for key in ("name", "directory", "builder")}
    settings = TaskSettings(**opened)
    reports = [record.sentences for record in settings.open("test")]
    page = write_report(results["retrieval"][0]).read_text()
    assert not any(sentence in page for sentences in reports for sentence in sentences if len(sentence) > 25)


def test_the_page_of_wording_shows_every_phrase(results):
    out, summary = results["robustness"]
    _, text = checked(out)
    for metric in ("auc", "iou"):
        for name, values in summary["spread"][metric].items():
            shown = f"{number(values['deviation']['mean'])} <small>{interval(interval_of(values, 'deviation'))}</small>"
            assert shown in re.search(rf"<tr><th>{name}</th>.*?</tr>", text).group()
            for phrase, entry in values["per_paraphrase"].items():
                row = re.search(rf"<tr><th><q>{re.escape(escape(phrase))}</q></th>.*?</tr>", text).group()
                assert f"{number(entry['mean'])} <small>{interval(interval_of(entry))}</small>" in row


def test_an_unknown_task_and_a_damaged_summary_are_told(tmp_path):
    (tmp_path / "summary.json").write_text('{"task": "segmentation", "metrics": {}}')
    with pytest.raises(UserError, match="unknown task 'segmentation'; there are localization, classification"):
        write_report(tmp_path)


# Tasks of a config, and the card


def test_a_config_may_list_tasks_which_enter_the_page_and_the_card(folder, tmp_path, monkeypatch, results):  # noqa: F811
    cards, loaded = [], []
    monkeypatch.setattr("afloc_jax.evaluation.run.load", lambda folder: loaded.append(folder) or load(folder))
    monkeypatch.setattr("afloc_jax.evaluation.run.update_card", lambda folder, card: cards.append(card))
    data = {"name": "phantom", "directory": results["retrieval"][1]["settings"]["directory"], "builder": SIZES}
    datasets = ({**data, "task": "retrieval"}, {**data, "task": "classification", "classes": ("edema",)})
    config = EvaluationSettings(datasets, bootstrap=10)
    (tmp_path / "model").symlink_to(folder)
    assert list(evaluate_datasets(config, tmp_path)) == ["phantom_retrieval", "phantom_classification"]
    evaluate_datasets(config, tmp_path)
    assert len(loaded) == 1  # kept the second time
    page, _ = checked(tmp_path)
    assert "phantom: retrieval" in page and "phantom: classification" in page
    assert cards[-1]["results"]["phantom_classification"]["task"] == "classification"
    assert cards[-1]["tables"][0]["rows"][0][:2] == ["phantom_classification", "24"]
    for wrong, words in (
        ({"task": "segmentation"}, r"evaluation.datasets\[0\]: unknown task 'segmentation'"),
        ({"task": "retrieval", "protocol": "afloc"}, "protocol: unknown key"),
        ({"task": "classification", "framing": "stretch"}, "framing = 'stretch': must be one of pad, crop"),
        ({"directory": ""}, r"evaluation.datasets\[0\].directory: missing"),
    ):
        with pytest.raises(UsageError, match=words):
            EvaluationSettings(({**data, **wrong},))


def test_evaluations_of_an_earlier_release_count_as_finished(results):
    """Its keys, of every task: written by the tree at 35475ad."""
    keys = {
        "task",
        "name",
        "directory",
        "raw",
        "builder",
        "split",
        "title",
        "validation_split",
        "classes",
        "compatible",
    }
    keys |= {"aggregation", "framing", "labels", "unlisted", "by_class", "per_class", "tops", "bootstrap"}
    keys |= {"prompts_sha256", "compatible"}
    for _, summary in results.values():
        assert summary["settings"].keys() == keys
        assert summary["settings"]["bootstrap"].keys() == {"resamples", "seed", "interval", "unit", "confidence"}


def test_the_card_has_a_table_for_each_task(results):
    text = render_card(FolderConfig(card={"tables": card_tables({task: found[1] for task, found in results.items()})}))
    auc = results["classification"][1]["metrics"]["auc"]["overall"]
    assert f"| classification | 24 | {auc['mean']:.3f} [{auc['lower']:.3f}, {auc['upper']:.3f}] |" in text
    assert "R@5, image to text" in text and "| robustness | 24 |" in text
    index = {
        entry["task"]: entry["metrics"] for entry in card_index({name: found[1] for name, found in results.items()})
    }
    assert {"type": "auc", "name": "AUC", "value": auc["mean"]} in index["classification"] and len(index) == 3
    assert "Localisation without annotations" not in text and "Not evaluated yet" not in text
    assert "Not evaluated yet" in render_card(FolderConfig())


def test_the_card_names_the_levels_that_were_trained_and_no_softmax_that_was_not():
    loss = {"region_pooling": "logsumexp", "weights": {"report": 0.1, "sentence": 1.0, "word": 0.0}}
    text = render_card(FolderConfig(card={"recipe": {"loss": loss}}))
    assert "at two levels: sentences with a deep map, the report with the global image vector." in text
    assert "softmax" not in text and "weighted by a softmax" in render_card(FolderConfig())


# Parts


def test_the_roc_curve_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(1)
    labels, scores = rng.random(80) < 0.4, np.round(rng.random(80), 1)
    false, true = discrimination.roc_curve(labels, scores)
    expected = metrics.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(false, expected[0])
    np.testing.assert_allclose(true, expected[1])
    assert np.trapezoid(true, false) == pytest.approx(discrimination.auc(labels, scores)[0])
    assert len(discrimination.roc_curve(np.array([True, True]), np.zeros(2))[0]) == 0


def test_wilson_intervals_hold_their_share_and_stay_within_the_scale():
    for k, n in ((0, 5), (3, 10), (10, 10)):
        expected = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
        assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-3)


def test_small_charts_survive_what_is_absent_and_stay_light():
    assert interval_cell(Interval(np.nan, np.nan, np.nan)) == ""
    assert "whisker" not in interval_cell(Interval(0.5, np.nan, np.nan))
    assert spread_chart([SpreadRow("<a>", np.nan, {})], "none") == ""
    shown = spread_chart([SpreadRow("<a>", 0.5, {"<b>": 0.2, "c": 0.8})], "x")
    assert "&lt;a&gt;" in shown and "&lt;b&gt;: 0.200" in shown
    rng = np.random.default_rng(2)
    many = discrimination.roc_curve(rng.random(20_000) < 0.5, rng.random(20_000))
    assert len(roc_chart(many[0], many[1], "many")) < 12_000
