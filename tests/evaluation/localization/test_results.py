"""Summaries and files: the release's tables, the documented format, paired differences, bad calls."""

import csv
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import scipy.stats

from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.comparison.systems import compare_systems
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.published import published_scores
from afloc_jax.evaluation.localization.score_files import score_files
from afloc_jax.evaluation.localization.scores import score
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.localization.summary import PER_SAMPLE_COLUMNS, Resampled, summarise, write_results
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, limits
from afloc_jax.evaluation.statistics.interval import Interval
from afloc_jax.evaluation.truth.heatmap_files import HeatmapFile
from afloc_jax.evaluation.truth.pictures import Pictures
from afloc_jax.evaluation.truth.read import read_truth
from afloc_jax.evaluation.truth.sample import Truth
from afloc_jax.heatmaps import sharpened
from data_pipelines.images import Geometry

WHOLE = ProtocolOptions(margin=0)
QUICK = Bootstrap(20)


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def golden_maps(goldens, tmp_path):
    """The reference heat maps as a user would hand them in."""
    truths = read_truth(goldens / "grounding_coco.json")
    path = tmp_path / "maps.npz"
    np.savez(path, **{t.key: m for t, m in zip(truths, np.load(goldens / "localization.npz")["heatmaps"], strict=True)})
    return path


def test_the_compatible_table_equals_the_official_one_to_three_decimals(goldens, golden_maps, tmp_path):
    metrics = score_files(
        goldens / "grounding_coco.json", golden_maps, tmp_path / "out", LocalizationSettings(compatible=True)
    )["metrics"]
    official = read_csv(goldens / "official_metric.csv")
    assert len(official) == 6
    for row in official:
        by_threshold = row["threshold"] != "mean"
        shown = f"{float(row['threshold']):g}" if by_threshold else ""
        iou = metrics["iou"]
        mean = iou["per_threshold"][shown]["mean"] if by_threshold else iou["overall"]["mean"]
        assert round(mean, 3) == float(row["iou_cat"])
        assert round(metrics["cnr"]["overall"]["mean"], 3) == float(row["cnr_cat"])
        for name in ("Pneumothorax", "Pleural Effusion", "Pneumonia", "Edema"):
            per_threshold = iou["per_category_per_threshold"][name]
            value = per_threshold[shown] if by_threshold else iou["per_category"][name]["mean"]
            assert round(value, 3) == float(row[f"iou_{name}"])
            assert round(metrics["cnr"]["per_category"][name]["mean"], 3) == float(row[f"cnr_{name}"])


@pytest.mark.parametrize("metric", ["iou", "cnr"])
def test_compatible_intervals_equal_the_official_ones_within_resampling_noise(goldens, metric):
    truths = read_truth(goldens / "grounding_coco.json")
    scores = score(truths, np.load(goldens / "localization.npz")["heatmaps"], ProtocolOptions(compatible=True))
    # The level of a percentile from 1,000 resamples has a standard error of sqrt(0.025 * 0.975 / 1000) = 0.5 %. Limits
    # of 25 runs with other seeds show what that means for these data, where a limit may jump between a few values.
    runs = [Resampled(scores, Bootstrap(1000, seed)).table(metric).to_json() for seed in range(25)]
    for row in read_csv(goldens / f"official_test_{metric}_summary_results.csv"):
        own = [run["per_category"][row["name"]] if row["name"] else run["overall"] for run in runs]
        for limit in ("lower", "upper"):
            values = [interval[limit] for interval in own]
            slack = 0.01
            assert min(values) - slack <= float(row[limit]) <= max(values) + slack, (row["name"], limit)
        assert float(row["mean"]) == pytest.approx(own[0]["mean"], abs=0.015)  # theirs is the mean of the resamples


def test_files_have_the_documented_form(goldens, golden_maps, tmp_path):
    out = tmp_path / "deep" / "out"
    summary = score_files(goldens / "grounding_coco.json", golden_maps, out)
    files = ["examples.json", "examples.npz", "per_sample.csv", "summary.json", "summary.md"]
    assert sorted(path.name for path in out.iterdir()) == files
    written = json.loads((out / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert (written["protocol"], written["n"], written["compatible"]) == ("afloc", 19, False)
    assert set(written["metrics"]) == {"iou", "dice", "cnr", "pointing", "stability"}
    for name, table in written["metrics"].items():
        assert set(table["overall"]) == {"mean", "lower", "upper"}
        assert set(table["per_category"]) == {"Edema", "Pleural Effusion", "Pneumonia", "Pneumothorax"}
        thresholds = ["0.1", "0.2", "0.3", "0.4", "0.5"] if name in ("iou", "dice") else []
        assert list(table["per_threshold"]) == thresholds
        for interval in (table["overall"], *table["per_category"].values(), *table["per_threshold"].values()):
            assert interval["lower"] <= interval["mean"] <= interval["upper"]
    rows = read_csv(out / "per_sample.csv")
    assert len(rows) == 19 * (5 + 5 + 1 + 1 + 1)
    assert {(row["metric"], row["threshold"]) for row in rows} == {
        *((metric, f"0.{k}") for metric in ("iou", "dice") for k in range(1, 6)),
        ("cnr", ""),
        ("pointing", ""),
        ("stability", ""),
    }
    values = [float(row["value"]) for row in rows if row["metric"] == "iou" and row["category"] == "Edema"]
    assert np.mean(values) == pytest.approx(written["metrics"]["iou"]["per_category"]["Edema"]["mean"])
    assert "| Edema* | 4 | 0.692 [" in (out / "summary.md").read_text()
    assert len(written["provenance"]["heatmaps"]["sha256"]) == 64


def table_of(pairs, options=WHOLE):
    """Scores of (category, mask, heat map) triples."""
    truths = [Truth(f"s{k}", "phrase", name, np.asarray(mask, np.uint8)) for k, (name, mask, _) in enumerate(pairs)]
    return score(truths, [np.asarray(heatmap, float) for _, _, heatmap in pairs], options)


def lesion(seed=0, size=12):
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size))
    row, column = rng.integers(0, size - 5, 2)
    mask[row : row + 4, column : column + 5] = 1
    return mask, mask + 0.6 * rng.standard_normal((size, size))


def test_categories_count_alike_whatever_their_size():
    perfect, empty = lesion()[0], np.zeros((12, 12))
    scores = table_of([("a", perfect, perfect)] * 5 + [("b", perfect, 1 - perfect)])
    iou = summarise(scores, Bootstrap(50)).metrics["iou"].to_json()
    assert iou["per_category"]["a"]["mean"] == 1 and iou["per_category"]["b"]["mean"] == 0
    assert iou["overall"] == {"mean": 0.5, "lower": 0.5, "upper": 0.5}  # no variance within the categories
    scores = table_of([("a", perfect, perfect), ("b", empty, perfect)])
    summary = summarise(scores, Bootstrap(50)).to_json()
    assert summary["metrics"]["iou"]["overall"]["mean"] == 1  # nothing of b was scored
    assert summary["metrics"]["iou"]["per_category"]["b"] == {"mean": None, "lower": None, "upper": None}
    assert summary["not_scored"] == {"a": 0, "b": 1}


def test_nothing_scored_at_all_is_null_and_not_a_crash(tmp_path):
    scores = table_of([("a", np.zeros((12, 12)), lesion()[1])] * 2)
    summary = summarise(scores, QUICK, {"itself": scores})
    write_results(tmp_path, scores, summary)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["metrics"]["cnr"]["overall"] == {"mean": None, "lower": None, "upper": None}
    rows = read_csv(tmp_path / "per_sample.csv")
    assert {row["value"] for row in rows} == {""}
    assert {row["note"] for row in rows} == {"no truth in the scored region"}


def test_an_empty_prediction_lowers_the_default_score_and_is_skipped_in_compatible_mode():
    mask, _ = lesion()
    pairs = [("a", mask, mask), ("a", mask, np.zeros((12, 12)))]
    default = summarise(table_of(pairs), Bootstrap(200)).to_json()
    assert default["metrics"]["iou"]["overall"]["mean"] == 0.5
    assert default["empty_predictions"] == dict.fromkeys(("0.1", "0.2", "0.3", "0.4", "0.5"), 1)
    release = summarise(table_of(pairs, ProtocolOptions(margin=0, compatible=True)), Bootstrap(200))
    compatible = release.to_json()
    iou = compatible["metrics"]["iou"]
    assert iou["overall"]["mean"] == 1
    assert iou["overall"]["lower"] == 0  # for its intervals the release takes a skipped value as 0
    assert iou["per_threshold"]["0.1"] == {"mean": 1, "lower": 1, "upper": 1}
    assert compatible["empty_predictions"] == default["empty_predictions"]
    assert "Empty predictions, skipped: 1 at 0.1" in release.to_markdown()


def paired_difference(system, other, bootstrap):
    return Resampled(system, bootstrap).minus(Resampled(other, bootstrap))


def test_a_paired_difference_is_sharper_than_two_separate_intervals():
    pairs = [("ab"[k % 2], *lesion(k)) for k in range(40)]
    first = table_of(pairs)
    second = table_of([(name, mask, heatmap + 0.05 * mask) for name, mask, heatmap in pairs])
    same = paired_difference(first, first, Bootstrap(100))
    assert same["iou"].overall == Interval(0, 0, 0)
    difference = paired_difference(second, first, Bootstrap())["cnr"].overall
    own, other = (summarise(s, Bootstrap()).metrics["cnr"].overall for s in (second, first))
    assert difference.mean == pytest.approx(own.mean - other.mean)
    assert difference.lower > 0
    assert own.lower < other.upper  # the separate intervals overlap: they could not have told


def test_a_baseline_stands_beside_the_scores_with_its_difference(tmp_path):
    pairs = [("ab"[k % 2], *lesion(k)) for k in range(10)]
    scores = table_of(pairs)
    prior = table_of([(name, mask, np.ones((12, 12))) for name, mask, _ in pairs])
    summary = summarise(scores, QUICK, {"location prior": prior})
    write_results(tmp_path, scores, summary, {"location prior": prior})
    written = json.loads((tmp_path / "summary.json").read_text())["baselines"]["location prior"]
    assert written["metrics"]["iou"]["overall"]["mean"] == 0
    assert written["difference"]["iou"]["overall"]["mean"] == pytest.approx(summary.metrics["iou"].overall.mean)
    assert "## Baseline: location prior" in (tmp_path / "summary.md").read_text()
    compared = compare_systems([tmp_path, tmp_path / "baselines.csv"], against="location prior")
    found = [row for row in compared.differences[0].rows if (row.metric, row.category) == ("iou", "a")]
    expected = written["difference"]["iou"]["per_category"]["a"]["mean"]
    assert [row.difference for row in found] == [pytest.approx(expected)] and expected > 0.1
    write_results(tmp_path, scores, summarise(scores, QUICK))
    assert not (tmp_path / "baselines.csv").exists(), "what an earlier call wrote does not stay"


def test_a_difference_of_other_samples_is_refused():
    with pytest.raises(ValueError, match="same samples"):
        paired_difference(table_of([("a", *lesion())]), table_of([("a", *lesion())] * 2), QUICK)
    with pytest.raises(ValueError, match="same options"):
        paired_difference(table_of([("a", *lesion())]), table_of([("a", *lesion())], ProtocolOptions()), QUICK)


def test_failed_scoring_says_why_and_writes_nothing(goldens, golden_maps, tmp_path):
    truth, out = goldens / "grounding_coco.json", tmp_path / "out"
    with pytest.raises(UsageError, match="unknown protocol 'best'; this program knows afloc"):
        score_files(truth, golden_maps, out, LocalizationSettings(protocol="best"))
    maps = dict(np.load(golden_maps))
    broken = {**maps, list(maps)[4]: np.full((224, 224), np.nan)}
    np.savez(tmp_path / "nan.npz", **broken)
    with pytest.raises(UserError, match=r"map of files/p10/2.jpg#1 has values that are NaN or infinite"):
        score_files(truth, tmp_path / "nan.npz", out)
    assert not out.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the results"):
        score_files(truth, golden_maps, tmp_path / "file")


def test_bca_intervals_and_patients_reach_the_tables():
    """The mean over thresholds of one category, against scipy's BCa on the samples' own means."""
    scores = table_of([("a", *lesion(k)) for k in range(20)])
    values = scores["iou"].mean(axis=1)
    found = summarise(scores, Bootstrap(500, 4, "bca")).metrics["iou"].overall
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=500, method="BCa", rng=np.random.default_rng(4)
    ).confidence_interval
    assert (found.lower, found.upper) == pytest.approx((expected.low, expected.high), rel=1e-9)
    patients = [f"p{k // 2}" for k in range(20)]
    truths = [replace(truth, patient=name) for truth, name in zip(scores.truths, patients, strict=True)]
    by_patient = summarise(replace(scores, truths=tuple(truths)), Bootstrap(500, 4, unit="patient")).to_json()
    assert by_patient["bootstrap"]["unit"] == "patient"
    resampled = Bootstrap(500, 4).means(values[:, None], np.zeros(20, int), 1, np.array(patients))[0][0]
    found = by_patient["metrics"]["iou"]["overall"]
    assert (found["lower"], found["upper"]) == pytest.approx(limits(resampled.resampled))


def test_compatible_intervals_are_the_releases_alone():
    scores = table_of([("a", *lesion())] * 3, ProtocolOptions(margin=0, compatible=True))
    with pytest.raises(UsageError, match="leave one out"):
        summarise(scores, Bootstrap(50, interval="bca"))


def patients_of(path):
    return {row["id"]: row["patient"] for row in read_csv(path)}


def test_a_truth_file_may_name_patients_which_intervals_and_comparisons_then_draw(goldens, golden_maps, tmp_path):
    truth = json.loads((goldens / "grounding_coco.json").read_text())
    (tmp_path / "nameless.json").write_text(json.dumps(truth))
    for i, image in enumerate(truth["images"]):
        image["patient"] = i // 3  # a number is a name too
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    call = ["score", "--truth", str(tmp_path / "truth.json"), "--heatmaps", str(golden_maps), "--bootstrap", "50"]
    assert main([*call, "--unit", "patient", "--out", str(tmp_path / "a")]) == 0
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert (summary["bootstrap"]["unit"], summary["bootstrap"]["drawn"]) == ("patient", "from the whole table")
    expected = {image["path"]: str(i // 3) for i, image in enumerate(truth["images"])}
    found = patients_of(tmp_path / "a" / "per_sample.csv")
    assert all(patient == expected[sample.rpartition("#")[0]] for sample, patient in found.items())
    assert next(iter(read_csv(tmp_path / "a" / "per_sample.csv"))).keys() == dict.fromkeys(PER_SAMPLE_COLUMNS).keys()
    out = ["--out", str(tmp_path / "out"), "--bootstrap", "50"]
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "a"), "--unit", "patient", *out]) == 0
    settings = LocalizationSettings(bootstrap=50, unit="patient")
    with pytest.raises(UserError, match="19 of 19 samples name no patient"):
        score_files(tmp_path / "nameless.json", golden_maps, tmp_path / "b", settings)
    truth["images"][0]["patient"] = ["x"]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(UserError, match="`patient` must be text or a whole number"):
        score_files(tmp_path / "truth.json", golden_maps, tmp_path / "b")


def test_score_leaves_a_page_with_its_examples_on_the_images(goldens, golden_maps, tmp_path, capsys):
    truth = goldens / "grounding_coco.json"
    for image in json.loads(truth.read_text())["images"]:
        path = tmp_path / "images" / image["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((image["height"], image["width"]), 77, np.uint8))
    call = ["score", "--truth", str(truth), "--heatmaps", str(golden_maps), "--bootstrap", "20"]
    call += ["--out", str(tmp_path / "out"), "--title", "MS-CXR of another system"]
    assert main(call) == 0
    with np.load(tmp_path / "out" / "examples.npz") as kept:
        assert not kept["images"].any(), "without images the maps stand on black"
    assert main([*call, "--images", str(tmp_path / "images")]) == 0
    assert str(tmp_path / "out" / "report" / "index.html") in capsys.readouterr().out
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "MS-CXR of another system" in page and "AFLoc, released weights" in page
    described = json.loads((tmp_path / "out" / "examples.json").read_text())
    truths = {t.id: t for t in read_truth(truth)}
    maps = np.load(golden_maps)
    with np.load(tmp_path / "out" / "examples.npz") as kept:
        assert len(described) == len(kept["images"]) and kept["images"].max() > 70  # JPEG keeps 77 nearly
        for example, heatmap, mask in zip(described, kept["heatmaps"], kept["truths"], strict=True):
            np.testing.assert_array_equal(heatmap, maps[truths[example["id"]].key].astype(np.float32))
            np.testing.assert_array_equal(mask, truths[example["id"]].mask > 0)
    assert main([*call, "--images", str(tmp_path / "none")]) == 2
    assert "--images" in capsys.readouterr().err


def test_pictures_are_found_by_their_names_and_must_have_the_size_of_the_truth(tmp_path):
    (tmp_path / "patient1" / "study1").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "patient1" / "study1" / "view1_frontal.png"), np.full((30, 20), 9, np.uint8))
    pictures = Pictures(tmp_path)
    square = np.zeros((224, 224), np.uint8)
    truth = Truth("x", "a", "a", square, "patient1_study1_view1_frontal", 30, 20)
    assert (pictures.square(truth) == 9).sum() == 224 * Geometry(30, 20).inner_width
    with pytest.raises(UserError, match="20 x 30 pixels, the truth file says 21 x 30"):
        pictures.square(replace(truth, width=21))
    with pytest.raises(UserError, match="no image patient2"):
        pictures.square(replace(truth, image="patient2"))


def test_keys_that_differ_in_case_alone_are_refused(tmp_path):
    np.savez(tmp_path / "maps.npz", **{"a\tEdema": np.zeros((4, 4)), "a\tedema": np.ones((4, 4))})
    with pytest.raises(UserError, match="1 keys differ from another in case alone, first: image a; phrases"):
        HeatmapFile(tmp_path / "maps.npz")


def test_thresholds_and_margin_are_those_of_the_call(goldens, golden_maps, tmp_path, capsys):
    call = ["score", "--truth", str(goldens / "grounding_coco.json"), "--heatmaps", str(golden_maps)]
    call += ["--bootstrap", "20", "--out", str(tmp_path / "out")]
    assert main([*call, "--thresholds=-0.5,0.3", "--margin", "0"]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["thresholds"], summary["margin"]) == ([-0.5, 0.3], 0)
    truths = read_truth(goldens / "grounding_coco.json")
    maps = np.load(goldens / "localization.npz")["heatmaps"]
    expected = summarise(score(truths, maps, ProtocolOptions((-0.5, 0.3), 0)), QUICK).to_json()["metrics"]
    assert summary["metrics"]["iou"] == expected["iou"]
    capsys.readouterr()
    for options, words in (
        (["--thresholds", "0.3,0.1"], "must ascend"),
        (["--margin", "200"], "must be in"),
        (["--protocol", "chexlocalize", "--margin", "3"], "leave --thresholds and --margin out"),
    ):
        assert main([*call, *options]) == 2
        assert words in capsys.readouterr().err


def test_histopathology_has_thresholds_of_its_own():
    def recorded(name, **options):
        return LocalizationSettings(name, "d", **options).recorded()["thresholds"]

    np.testing.assert_allclose(recorded("sicapv2"), np.arange(-10, 0) / 10)
    assert recorded("sicapv2", thresholds=[0.1]) == [0.1]
    assert recorded("sicapv2", protocol="grounding") is None
    assert recorded("rsna", thresholds=None) is None


def test_the_builder_of_a_published_set_names_its_rows():
    for builder, name in (("idrid", "Fundus"), ("ms_cxr", "MS-CXR"), ("rsna", "RSNA"), ("covid_rural", "COVID Rural")):
        found, rows = published_scores("", builder)
        assert found == name and "AFLoc" in rows


def test_maps_of_anybody_are_sharpened_as_the_file_has_them(goldens, golden_maps, tmp_path):
    truth, sharp = goldens / "grounding_coco.json", tmp_path / "sharp.npz"
    with np.load(golden_maps) as maps:
        np.savez(sharp, **{key: np.asarray(sharpened(maps[key])) for key in maps})
    said = score_files(truth, golden_maps, tmp_path / "flag", LocalizationSettings(sharpen=True, bootstrap=10))
    made = score_files(truth, sharp, tmp_path / "made", LocalizationSettings(bootstrap=10))
    plain = score_files(truth, golden_maps, tmp_path / "plain", LocalizationSettings(bootstrap=10))
    assert said["sharpen"] and "sharpen" not in plain and said["metrics"] == made["metrics"]
    assert said["metrics"]["iou"] != plain["metrics"]["iou"]
    assert said["metrics"]["pointing"] == plain["metrics"]["pointing"], "peaks stay"
