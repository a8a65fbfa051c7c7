"""The evaluation runner and the report page: what they leave, and that the page stands alone."""

import base64
import json
import math
import re
from html import escape

import cv2
import numpy as np
import pytest

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.localization.evaluate import evaluate
from afloc_jax.evaluation.localization.examples import choose_examples
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.samples import read_truths
from afloc_jax.evaluation.localization.scores import score
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.page import write_report
from afloc_jax.evaluation.report.charts import curve_chart, interval_chart, nice_ticks, smooth
from afloc_jax.evaluation.report.numbers import interval, interval_of, number, signed
from afloc_jax.evaluation.run import evaluate_datasets
from afloc_jax.evaluation.statistics.interval import Interval
from afloc_jax.evaluation.tasks import EvaluationSettings
from afloc_jax.evaluation.truth.sample import Drawing, Truth
from afloc_jax.inference.overlays import outline_path, overlay, unit_scale
from configs.afloc import get_config
from tests.evaluation.discs import SIZE, SOURCE, TRAIN, Checker, Reader, record

QUICK = LocalizationSettings(bootstrap=10)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What a run leaves, with one resumed step, one broken last line, and a NaN."""
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "config.json").write_text(json.dumps(get_config().to_dict()))
    lines = []
    for split, every in (("train", 1), ("validation", 5)):
        for step in range(0, 40, every):
            levels = {f"loss/{level}": 3.0 / (1 + step) for level in ("report", "sentence", "word")}
            row = {"step": step, "split": split, "loss": 9.0 / (1 + step), **levels}
            lines.append(json.dumps(row | ({"learning_rate": 1e-4, "grad_norm": None} if split == "train" else {})))
    lines += [json.dumps({"step": 39, "split": "train", "loss": 0.5}), '{"step": 40, "spl']
    (workdir / "metrics.jsonl").write_text("\n".join(lines))
    out = workdir / "evaluation" / "discs"
    settings = LocalizationSettings(bootstrap=100, title="Discs & rings <i>")
    evaluate(Reader(), SOURCE, out, settings, prior_source=TRAIN)
    write_report(workdir)
    return workdir


@pytest.fixture(scope="module")
def page(workdir):
    return (workdir / "report" / "index.html").read_text()


# The runner


def test_a_model_that_knows_the_place_beats_both_baselines_on_the_same_samples(workdir):
    summary = json.loads((workdir / "evaluation" / "discs" / "summary.json").read_text())
    assert summary["n"] == 5 + 2 * 5 + 4
    assert summary["n_per_category"] == {"edema": 9, "nodule": 10}
    assert summary["metrics"]["pointing"]["overall"]["mean"] == 1.0
    for name in ("location_prior", "untrained"):
        baseline = summary["baselines"][name]
        for metric in ("pointing", "iou", "dice", "cnr"):
            difference = baseline["difference"][metric]["overall"]
            expected = summary["metrics"][metric]["overall"]["mean"] - baseline["metrics"][metric]["overall"]["mean"]
            assert difference["mean"] == pytest.approx(expected)
            assert difference["lower"] > 0
    assert summary["baselines"]["location_prior"]["from"] == "mean mask of the category in 6 training masks"
    assert summary["provenance"]["weights_sha256"] == "ab" * 32
    assert {"code", "device", "versions", "data_sha256", "created"} <= set(summary["provenance"])


def test_the_map_of_another_image_and_the_name_of_the_class_stand_beside_the_scores(workdir):
    """The reader finds nothing in another image, and looks into the corner if the prompt names no place."""
    baselines = json.loads((workdir / "evaluation" / "discs" / "summary.json").read_text())["baselines"]
    assert list(baselines) == ["location_prior", "prompt_prior", "shuffled_image", "class_name", "untrained"]
    for name in ("shuffled_image", "class_name"):
        assert baselines[name]["metrics"]["pointing"]["overall"]["mean"] < 0.2
        assert baselines[name]["difference"]["pointing"]["overall"]["lower"] > 0.5
    # no prompt is seen five times, and no edema in training: the priors are the same
    assert baselines["prompt_prior"]["samples_of_rare_prompts"] == 19
    assert "for 19 of 19 samples, whose prompt is seen fewer than 5 times" in baselines["prompt_prior"]["from"]
    assert baselines["prompt_prior"]["metrics"] == baselines["location_prior"]["metrics"]


def test_the_prior_baseline_is_the_mean_mask_of_the_training_split(tmp_path):
    summary = evaluate(Reader(), SOURCE, tmp_path, QUICK, prior_source=TRAIN)
    mean = np.mean([r.findings[0].mask for r in TRAIN], axis=0)
    truths = read_truths(SOURCE, Drawing()).truths
    expected = score(truths, [mean] * len(truths), ProtocolOptions())  # edema has no training mask: all masks
    found = summary["baselines"]["location_prior"]["metrics"]["iou"]["per_category"]
    for c, category in enumerate(expected.categories):
        assert found[category]["mean"] == pytest.approx(np.nanmean(expected["iou"][expected.category_index == c]))


def test_without_training_masks_the_prior_is_made_of_the_other_images(tmp_path):
    for prior_source in (None, [record(0, [])]):
        summary = evaluate(Reader(), SOURCE, tmp_path, QUICK, prior_source=prior_source)
        assert "other evaluation images" in summary["baselines"]["location_prior"]["from"]


def test_each_image_is_encoded_once_however_many_findings_it_has(tmp_path):
    reader = Reader()
    evaluate(reader, SOURCE, tmp_path, QUICK)
    examples = len(json.loads((tmp_path / "examples.json").read_text()))
    # in each of three rounds: with their own prompts, those of another image, and the names of classes
    assert reader.images_seen - examples == 3 * sum(bool(r.findings) for r in SOURCE)


def test_examples_are_the_best_median_and_worst_by_overlap():
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[20:40, 20:40] = 1
    truths = [Truth(f"s{i}", "p", "one" if i < 7 else "two" if i < 9 else "three", mask) for i in range(10)]
    maps = [np.roll(cv2.GaussianBlur(mask * 1.0, (0, 0), 4), shift, axis=1) for shift in (3, 9, 1, 7, 5, 0, 8, 2, 4, 6)]
    assert choose_examples(score(truths, maps)) == [
        (5, "best"), (4, "median"), (1, "worst"), (9, "best"), (7, "best"), (8, "worst")
    ]  # fmt: skip


def test_training_masks_of_another_size_are_named(tmp_path):
    small = record(0, ["nodule"])
    small.findings[0].mask = np.ones((32, 32), bool)
    with pytest.raises(UserError, match=r"\(32, 32\).*\(64, 64\)"):
        evaluate(Reader(), SOURCE, tmp_path, QUICK, prior_source=[small])
    assert not list(tmp_path.iterdir())


def test_data_without_findings_and_unknown_settings_are_told(tmp_path):
    with pytest.raises(UserError, match="no annotated finding"):
        evaluate(Reader(), [record(0, [])], tmp_path)
    with pytest.raises(UsageError, match=r"splitt: unknown key; did you mean split\?"):
        LocalizationSettings.read({"name": "phantom", "directory": "d", "splitt": "test"})
    with pytest.raises(UsageError, match="unknown protocol"):
        LocalizationSettings.read({"name": "phantom", "directory": "d", "protocol": "other"})


def test_data_sets_of_a_config_are_evaluated_once_and_enter_the_model_card(tmp_path, monkeypatch):
    calls = []

    def open_source(name, directory, split, *, raw="", builder=None, cache="", reading=None):
        calls.append((name, split))
        if split == "train":
            raise UserError("no split 'train'")
        return SOURCE

    cards = []
    monkeypatch.setattr("data_pipelines.prepared.open_source", open_source)
    monkeypatch.setattr("afloc_jax.evaluation.run.load", lambda folder: Reader())
    monkeypatch.setattr("afloc_jax.evaluation.run.weights_hash", lambda folder: "ab" * 32)
    monkeypatch.setattr("afloc_jax.evaluation.run.update_card", lambda folder, card: cards.append(card))
    entry = {"name": "masks", "directory": "d"}
    datasets = ({**entry, "title": "Eyes"}, entry, entry, {**entry, "split": "validation"})
    config = EvaluationSettings(datasets, bootstrap=10)
    first = evaluate_datasets(config, tmp_path)
    assert list(first) == ["Eyes", "masks", "masks_test", "masks_validation"]
    assert len(calls) == 8
    assert cards[-1]["results"]["Eyes"]["n"] == 19
    assert evaluate_datasets(config, tmp_path) == json.loads(json.dumps(first))
    assert len(calls) == 8  # nothing opened again
    monkeypatch.setattr("afloc_jax.evaluation.run.weights_hash", lambda folder: "cd" * 32)
    evaluate_datasets(config, tmp_path)
    assert len(calls) == 16  # other weights, other results


# The page


def test_the_page_is_well_formed_and_asks_for_nothing_from_elsewhere(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.fetched == []
    assert not {"script", "link", "iframe", "img"} & set(checker.tags)
    assert "http" not in page
    assert "@import" not in page and "url(" not in page


def test_the_page_opens_with_four_numbers_and_three_maps_and_ends_with_hashes(page, workdir):
    head, _, body = page.partition("<main>")
    checker = Checker()
    checker.feed(page)
    assert sorted(checker.places) == sorted(checker.ids) == ["origin", "results1", "settings", "training"]
    assert re.findall(r'class="label"[^>]*>([^<]+)<', head) == ["Pointing game", "IoU", "Dice", "CNR"]
    assert re.findall(r'class="rank \w+">([^<]+)<', head) == ["best of all", "a usual one", "worst of all"]
    arrays = np.load(workdir / "evaluation" / "discs" / "examples.npz")
    described = json.loads((workdir / "evaluation" / "discs" / "examples.json").read_text())
    highest = max(one["iou"] for one in described)
    assert any(f"<q>{escape(one['prompt'])}</q>" in head for one in described if one["iou"] == highest)
    assert head.count("data:image/jpeg") == 3 < len(arrays["images"])
    assert "SHA-256" not in body.partition('id="origin"')[0]
    assert ("ab" * 32)[:12] in body.partition('id="origin"')[2]


def test_numbers_on_the_page_are_those_of_the_summary(page, workdir):
    summary = json.loads((workdir / "evaluation" / "discs" / "summary.json").read_text())
    text = re.sub(r"\s+", " ", page)
    for metrics in (summary["metrics"], summary["baselines"]["location_prior"]["metrics"]):
        for values in metrics.values():
            overall = values["overall"]
            assert f"{number(overall['mean'])} <small>{interval(interval_of(overall))}</small>" in text
    difference = summary["baselines"]["untrained"]["difference"]["iou"]["overall"]
    assert f"<td>{signed(difference['mean'])} <small>" in text


@pytest.mark.parametrize(
    ("value", "shown", "with_sign"),
    [(0.12345, "0.123", "+0.123"), (-0.0004, "0.000", "0.000"), (-1.5, "−1.500", "−1.500"), (None, "–", "–")],  # noqa: RUF001
)
def test_numbers_have_a_true_minus_and_no_minus_zero(value, shown, with_sign):
    assert number(value) == shown
    assert signed(value) == with_sign


def test_titles_and_prompts_are_escaped(page):
    assert "Discs &amp; rings &lt;i&gt;" in page
    assert "<i>rings" not in page
    assert re.search(r"<q>nodule at \d+ \d+ &lt;b&gt;&amp;</q>", page)


def test_example_pictures_are_the_evaluated_images(page, workdir):
    pictures = re.findall(r'href="data:image/jpeg;base64,([^"]+)"', page.partition("<main>")[2])
    arrays = np.load(workdir / "evaluation" / "discs" / "examples.npz")
    assert len(pictures) == 2 * len(arrays["images"]) == 12
    for i, image in enumerate(arrays["images"]):
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(pictures[2 * i]), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert np.abs(decoded.astype(int) - image).mean() < 4


def test_the_later_line_of_a_resumed_step_counts(page):
    assert "ends at 0.50, best validation 0.25" in page  # step 39 was logged as 9 / 40 first
    assert page.count("best validation") == 4


def test_a_run_without_evaluation_or_metrics_still_has_a_page(tmp_path):
    with pytest.raises(UserError, match="give a run's workdir"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text('{"name": "early"}')
    text = write_report(tmp_path).read_text()
    assert "has not been evaluated yet" in text
    assert "No metrics were logged" in text
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON at line 1; remove it"):
        write_report(tmp_path)


# Parts


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 900, [0, 250, 500, 750]), (-0.3, 0.3, [-0.2, 0, 0.2]), (5, 5, [5])],
)
def test_ticks_are_round_numbers_within_the_range(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


def test_the_running_mean_leaves_nan_out_and_shortens_at_the_ends():
    values = np.array([1.0, np.nan, 3.0, 5.0, 7.0])
    np.testing.assert_allclose(smooth(values, 3), [1, 2, 4, 5, 6])
    np.testing.assert_allclose(smooth(values, 1), values)


def test_charts_survive_one_point_nan_and_nothing():
    line = {"name": "x", "kind": "train", "steps": [0], "values": [1.0]}
    assert curve_chart([line], "one").startswith("<svg")
    assert curve_chart([{**line, "values": [float("nan")]}], "none") == ""
    nothing = Interval(math.nan, math.nan, math.nan)
    empty = {"name": "a", "model": nothing, "others": [("prior", nothing)]}
    assert interval_chart([empty], "none") == ""
    negative = {
        "name": "<a>",
        "model": Interval(-1.0, -2.0, 0.5),
        "others": [("prior", Interval(0.2, math.nan, math.nan))],
    }
    chart = interval_chart([negative, empty], "cnr")
    assert "&lt;a&gt;" in chart
    assert not re.search(r"nan|inf", chart.split("<text")[0])


def test_a_flat_map_leaves_the_image_as_it_is_and_the_peak_is_brightest(unchecked):
    image = np.full((20, 30), 100, np.uint8)
    np.testing.assert_array_equal(overlay(image, np.full((20, 30), 7.0)), 100)
    heat = np.zeros((20, 30))
    heat[5, 6] = 1
    drawn = overlay(image, heat)
    assert drawn[5, 6].astype(int).sum() > drawn[0, 0].astype(int).sum()
    np.testing.assert_array_equal(drawn[0, 0], 100)
    assert unit_scale(np.array([[-2.0, 6.0]])).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match="differ in size"):
        overlay(image, heat.T)


def test_outlines_have_a_ring_for_every_part_and_hole():
    mask = np.zeros((40, 40), bool)
    mask[2:20, 2:20] = True
    mask[8:12, 8:12] = False
    mask[30:35, 30:35] = True
    path = outline_path(mask)
    assert path.count("M") == path.count("Z") == 3
    assert outline_path(np.zeros((5, 5), bool)) == ""
