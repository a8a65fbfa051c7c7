"""Results of a sweep: what is read, seeds averaged, the order, names, axes."""

import json
import math
import re

import numpy as np
import pytest
import scipy.stats

from afloc_jax.evaluation.statistics.interval import Interval, of_few
from afloc_jax.evaluation.sweep.coordinates import HEIGHT, Axis, Path, coordinates
from afloc_jax.evaluation.sweep.overrides import leaves, short_names, text_of
from afloc_jax.evaluation.sweep.page import sweep_page
from afloc_jax.evaluation.sweep.results import Entry, Results
from afloc_jax.files import Path as FilePath


def write_run(folder, iou=None, loss=None, title="phantom"):
    """The files of a run as far as a sweep reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    if iou is not None:
        target = folder / "evaluation" / title
        target.mkdir(parents=True)
        overall = {"mean": iou, "lower": iou - 0.1, "upper": iou + 0.1}
        metrics = {"iou": {"overall": overall}, "pointing": {"overall": {"mean": iou * 2}}}
        (target / "summary.json").write_text(json.dumps({"title": "Phantoms", "metrics": metrics}))
    if loss is not None:
        (folder / "finished.json").write_text(json.dumps({"best_validation_loss": loss, "steps": 6}))
    lines = [{"step": step, "split": "train", "loss": 3.0 - step / 10} for step in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def results(tmp_path):
    """Two settings with seeds and one whose runs have no evaluation, in the order of a sweep."""
    entries = []
    for lr, scores in ((0.1, (0.2, 0.3)), (1.0, (0.5, 0.6)), (0.01, (None, None))):
        for seed, iou in enumerate(scores, start=1):
            folder = FilePath(tmp_path / f"lr{lr}_seed{seed}")
            write_run(folder, iou, loss=1 + lr if iou is not None else None)
            state = "finished" if iou is not None else "failed"
            entries.append(Entry(folder.name, folder, state, {"optimizer.lr": lr, "seed": seed}, "<b>of no use</b>"))
    return Results(entries)


def test_seeds_are_averaged_with_the_limits_of_student(results):
    best = results.settings[0]
    assert [setting.name for setting in results.settings] == ["lr1.0", "lr0.1", "lr0.01"]
    found = best.score("phantom", "iou")
    expected = scipy.stats.t.interval(0.95, 1, loc=0.55, scale=scipy.stats.sem([0.5, 0.6]))
    np.testing.assert_allclose([found.mean, found.lower, found.upper], [0.55, *expected])
    assert math.isnan(results.settings[2].score("phantom", "iou").mean)
    assert math.isnan(results.settings[2].loss.mean)


def test_few_values_have_limits_from_two_on():
    assert str(of_few([])) == "-" and str(of_few([2.0, math.nan])) == "2.000 [-, -]"
    rng = np.random.default_rng(3)
    values = rng.normal(size=5)
    expected = scipy.stats.t.interval(0.95, 4, loc=values.mean(), scale=scipy.stats.sem(values))
    np.testing.assert_allclose([of_few(values).lower, of_few(values).upper], expected)


def test_a_run_alone_keeps_the_interval_over_its_samples(tmp_path):
    folder = FilePath(tmp_path / "one")
    write_run(folder, 0.4)
    alone = Results([Entry("one", folder, "finished", {"seed": 1})])
    assert alone.settings[0].score("phantom", "iou") == Interval(0.4, pytest.approx(0.3), 0.5)
    assert not alone.seeded


def test_runs_are_sorted_by_the_main_metric_and_the_table_has_all_numbers(results):
    lines = results.to_csv().splitlines()
    assert lines[0] == "run,status,optimizer.lr,seed,best_validation_loss,steps,phantom/iou,phantom/pointing"
    assert lines[1] == "lr1.0_seed2,finished,1.0,2,2.0,6,0.6,1.2"
    assert lines[-1] == "lr0.01_seed2,failed,0.01,2,,,,"


def test_a_damaged_file_of_one_run_spoils_nothing(results, tmp_path):
    (tmp_path / "lr0.1_seed1" / "evaluation" / "phantom" / "summary.json").write_text('{"metrics": ')
    (tmp_path / "lr0.1_seed1" / "finished.json").write_text("[]")
    again = Results([run.entry for run in results.given])
    assert [setting.name for setting in again.settings] == ["lr1.0", "lr0.1", "lr0.01"]
    assert again.settings[1].score("phantom", "iou").mean == 0.3


def test_the_page_shows_settings_reasons_and_curves_and_escapes_them(results):
    page = sweep_page(results, "a <sweep>", ["phantom"])
    assert "<h1>a &lt;sweep&gt;</h1>" in page and "&lt;b&gt;of no use&lt;/b&gt;" in page and "<b>of no use" not in page
    assert page.count('<td class="plotted"') == 3 * 3  # two metrics and the loss of three settings
    assert page.count('class="line model"') == 2 * 2  # of two seeds, parallel coordinates and the training loss
    assert "not images of patients" in page and "3 settings, 6 runs:\n    4 finished, 2 failed." in page


def test_a_sweep_that_has_just_begun_has_a_page(tmp_path):
    entries = [Entry(f"lr{lr}", FilePath(tmp_path / f"lr{lr}"), "not finished", {"lr": lr}) for lr in (1, 2)]
    page = sweep_page(Results(entries), "new", ["mimic_cxr"])
    assert "2 settings, 2 runs:\n    0 finished, 2 not finished." in page and "radiographs of patients" in page


def test_names_of_overrides_are_as_short_as_tells_them_apart():
    keys = ["loss.weights.word", "model.word", "optimizer.lr"]
    assert short_names(keys) == {"loss.weights.word": "weights.word", "model.word": "model.word", "optimizer.lr": "lr"}
    assert leaves({"a.b": {"c": 1, "d": {"e": 2}}, "f": 3}) == {"a.b.c": 1, "a.b.d.e": 2, "f": 3}
    assert [text_of(value) for value in (True, 2.5e-05, [1, 2], "a" * 50)] == ["on", "2.5e-05", "1, 2", "a" * 39 + "…"]


def heights(values, **options):
    """Where the lines of two axes, of which the first has these values, begin, from 0 at the bottom to 1."""
    axes = [Axis("first", values, **options), Axis("second", [1.0] * len(values), measured=True)]
    svg = coordinates(axes, [Path("run", "model", 0) for _ in values], "label")
    starts = [float(y) for y in re.findall(r'<path class="line model" data-setting="0" d="M74\.0 ([\d.]+)C', svg)]
    low, high = HEIGHT - 14 - 8, 48 + 8
    return [(low - start) / (low - high) for start in starts]


def test_axes_are_linear_logarithmic_reversed_or_of_names():
    np.testing.assert_allclose(heights([1.0, 2.0, 5.0]), [0, 0.25, 1], atol=1e-3)
    np.testing.assert_allclose(heights([0.001, 0.01, 0.1]), [0, 0.5, 1], atol=1e-3)
    np.testing.assert_allclose(heights([0.001, 0.01, 0.1], measured=True), [0, 9 / 99, 1], atol=1e-3)
    np.testing.assert_allclose(heights([1.0, 2.0, 5.0], falling=True), [1, 0.75, 0], atol=1e-3)
    np.testing.assert_allclose(heights(["adam", "lion", "sgd"]), [1, 0.5, 0], atol=1e-3)
    np.testing.assert_allclose(heights([3, 3]), [0.5, 0.5], atol=1e-3)


def test_a_line_is_interrupted_where_a_run_has_no_value():
    axes = [
        Axis("lr", [1.0, 2.0]),
        Axis("loss", [math.nan, 1.0], measured=True),
        Axis("iou", [None, 0.5], measured=True),
    ]
    svg = coordinates(axes, [Path("a", "model", 0), Path("b", "prior", 1)], "label")
    first, second = re.findall(r'<path class="line \w+" data-setting="\d" d="([^"]*)"', svg)
    assert "C" not in first and second.count("C") == 2
