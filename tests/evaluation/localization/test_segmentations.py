"""Files of CheXlocalize: its own sample and official numbers, false alarms, benchmarks, and calls of `score`."""

import csv
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.localization.protocols import get_protocol
from afloc_jax.evaluation.localization.score_files import score_files
from afloc_jax.evaluation.localization.segmentations import score_segmentations
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.localization.summary import summarise
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from afloc_jax.evaluation.truth.read import read_truth

PROTOCOL = get_protocol("chexlocalize")


@pytest.fixture
def sample_files(shared_data):
    folder = shared_data / "chexlocalize_sample"
    return folder / "gt_segmentations_val.json", folder / "gradcam_segmentations_val_sample.json"


def own_definitions(truth_file, predicted_file):
    """{(image, class): (IoU over all, IoU over true positives, first predicted pixel inside, share inside)}."""
    truth, predicted = (json.loads(path.read_text()) for path in (truth_file, predicted_file))
    values = {}
    for image, classes in truth.items():
        for name, rle in classes.items():
            mask = coco_mask.decode(rle).astype(bool)
            found = coco_mask.decode(predicted[image][name]).astype(bool)
            union = (mask | found).sum()
            iou = (mask & found).sum() / union if union else np.nan
            true_positive = iou if mask.any() and found.any() else np.nan
            first = float(mask[np.unravel_index(found.argmax(), found.shape)]) if mask.any() else np.nan
            share = mask[found].mean() if mask.any() else np.nan
            values[image, name] = (iou, true_positive, first, share)
    return values


@pytest.mark.parametrize("compatible", [False, True])
def test_the_gradcam_sample_scores_as_its_own_definitions_say(sample_files, compatible):
    truths = read_truth(sample_files[0], negatives=True)
    scores = score_segmentations(truths, *sample_files, replace(PROTOCOL.options, compatible=compatible))
    expected = own_definitions(*sample_files)
    assert len(truths) == len(expected) == 20
    assert sum(truth.present for truth in truths) == 4
    for n, truth in enumerate(truths):
        iou, true_positive, first, share = expected[truth.image, truth.category]
        np.testing.assert_allclose(scores["iou"][n], iou, rtol=1e-12)
        np.testing.assert_allclose(scores["iou_true_positive"][n], true_positive, rtol=1e-12)
        np.testing.assert_allclose(scores["pointing"][n], first if compatible else share, rtol=1e-12)


def test_truth_scored_against_itself_is_perfect(sample_files):
    truths = read_truth(sample_files[0], negatives=True)
    scores = score_segmentations(truths, sample_files[0], sample_files[0], PROTOCOL.options)
    assert np.nanmin(scores["iou"]) == 1 and np.nanmin(scores["pointing"]) == 1
    assert np.isfinite(scores["iou"]).sum() == 4  # neither true nor predicted: no IoU


def test_what_the_benchmark_lacks_counts_as_predicted_empty(sample_files, tmp_path):
    content = json.loads(sample_files[0].read_text())
    first = next(iter(content))
    (tmp_path / "part.json").write_text(json.dumps({first: {"Cardiomegaly": content[first]["Cardiomegaly"]}}))
    scores = score_segmentations(
        read_truth(sample_files[0], negatives=True), sample_files[0], tmp_path / "part.json", PROTOCOL.options
    )
    assert sorted(scores["iou"][np.isfinite(scores["iou"])]) == [0, 0, 0, 1]
    (tmp_path / "other.json").write_text(json.dumps({"other": content[first]}))
    with pytest.raises(UserError, match="no image and class in common"):
        score_segmentations(read_truth(sample_files[0]), sample_files[0], tmp_path / "other.json", PROTOCOL.options)
    smaller = {"size": [2, 2], "counts": [0, 4]}
    (tmp_path / "small.json").write_text(json.dumps({first: {"Cardiomegaly": smaller}}))
    with pytest.raises(UserError, match=r"image 0, class 0: its mask is for \[2, 2\]"):
        score_segmentations(read_truth(sample_files[0]), sample_files[0], tmp_path / "small.json", PROTOCOL.options)


@pytest.mark.parametrize("compatible", [False, True])
def test_predictions_on_images_that_the_truth_does_not_list_give_the_official_numbers(goldens, tmp_path, compatible):
    folder = goldens / "chexlocalize_synthetic"
    expected = json.loads((folder / "expected.json").read_text())
    assert main([
        "score", "--protocol", "chexlocalize", "--truth", str(folder / "gt_segmentations.json"), "--segmentations",
        str(folder / "segmentations.json"), "--out", str(tmp_path), *(["--compatible"] if compatible else []),
    ]) == 0  # fmt: skip
    summary = json.loads((tmp_path / "summary.json").read_text())
    with open(tmp_path / "per_sample.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for metric in ("iou", "iou_true_positive"):
        means = summary["metrics"][metric]["per_category"]
        assert {name: round(table["mean"], 6) for name, table in means.items()} == expected[metric]
        scored = Counter(row["category"] for row in rows if row["metric"] == metric and row["value"])
        assert scored == expected[f"{metric}_n"]
    assert len({row["image"] for row in rows}) > expected["listed_images"]


def write_masks(path, table):
    """An RLE JSON of {image: {class: mask}}."""

    def rle(mask):
        encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}

    content = {image: {name: rle(mask) for name, mask in classes.items()} for image, classes in table.items()}
    path.write_text(json.dumps(content))
    return path


def test_an_image_without_a_class_has_empty_masks(tmp_path):
    some, none = {"Edema": np.ones((4, 4), bool)}, {"Edema": np.zeros((4, 4), bool)}
    truth = write_masks(tmp_path / "gt.json", {"a": some, "b": some, "c": {}})
    found = write_masks(tmp_path / "p.json", {"a": some, "b": {}, "c": some, "d": none})
    scores = score_segmentations(read_truth(truth, negatives=True), truth, found, PROTOCOL.options)
    ious = dict(zip((sample.image for sample in scores.truths), scores["iou"], strict=True))
    assert np.isnan(ious.pop("d")) and ious == {"a": 1, "b": 0, "c": 0}


def test_a_benchmark_pays_for_false_alarms_on_images_that_neither_the_truth_nor_the_system_lists(tmp_path):
    disc, none = np.eye(30) > 0, np.zeros((30, 30), bool)
    truth = write_masks(
        tmp_path / "truth.json", {"a": {"Edema": disc, "Mass": none}, "b": {"Edema": none, "Mass": disc}}
    )
    perfect = {"a": {"Edema": disc}, "b": {"Mass": disc}}
    system = write_masks(tmp_path / "system.json", {**perfect, "c": {"Edema": disc}})
    reader = {**perfect, "c": {"Edema": none}, "d": {"Edema": disc, "Gout": disc}, "e": {"Mass": disc, "Edema": disc}}
    reader = write_masks(tmp_path / "reader.json", reader)
    settings = LocalizationSettings(protocol="chexlocalize", bootstrap=20)
    summary = score_files(truth, None, tmp_path / "out", settings, segmentations=system, benchmarks=[reader])
    assert summary["n_per_category"] == {"Edema": 3, "Mass": 2}
    assert sum(summary["outcomes"]["false positives"].values()) == 1
    own, other = summary["metrics"]["iou"], summary["baselines"]["reader"]["metrics"]["iou"]
    assert own["per_category"]["Edema"]["mean"] == 1 / 2  # a; c is a false alarm
    assert other["per_category"]["Edema"]["mean"] == 1 / 3 and other["per_category"]["Mass"]["mean"] == 1 / 2
    difference = summary["baselines"]["reader"]["difference"]["iou"]["per_category"]
    assert difference["Edema"]["mean"] == pytest.approx(1 / 6) and difference["Mass"]["mean"] == 1 / 2
    assert "| Edema* | 5 |" in (tmp_path / "out" / "summary.md").read_text()  # a, b, c, d, e


def test_a_point_inside_is_a_hit_and_a_missing_point_a_miss(sample_files, tmp_path):
    content = json.loads(sample_files[0].read_text())
    first = next(iter(content))
    rows, columns = np.nonzero(coco_mask.decode(content[first]["Cardiomegaly"]))
    inside = [float(columns[5]) + 0.4, float(rows[5]) + 0.4]
    points = {first: {"Cardiomegaly": [[-4, 1e7], inside], "Airspace Opacity": [[0, 0]]}}
    (tmp_path / "points.json").write_text(json.dumps(points))
    truths = read_truth(sample_files[0])
    scores = score_segmentations(truths, sample_files[0], tmp_path / "points.json", PROTOCOL.options)
    assert scores.metrics == ("pointing",)
    assert {t.category: v for t, v in zip(truths, scores["pointing"], strict=True)} == {
        "Cardiomegaly": 1, "Airspace Opacity": 0, "Enlarged Cardiomediastinum": 0, "Support Devices": 0
    }  # fmt: skip
    assert (
        sum(summarise(scores, Bootstrap(20)).to_json()["outcomes"]["missed"].values()) == 2
    )  # two classes have no point
    for broken in ([[1]], [["a", 2]], [[float("nan"), 2]], [[1e300, 2]]):
        (tmp_path / "points.json").write_text(json.dumps({first: {"Cardiomegaly": broken}}))
        with pytest.raises(UserError, match=r"image 0, class 0: its points must be"):
            score_segmentations(truths, sample_files[0], tmp_path / "points.json", PROTOCOL.options)


# Files


def test_score_takes_validation_files_negatives_from_the_maps_and_a_benchmark(sample_files, tmp_path, capsys):
    truth = json.loads(sample_files[0].read_text())
    maps = {}
    rng = np.random.default_rng(0)
    for image in [*truth, "healthy"]:
        for name in next(iter(truth.values())):
            maps[f"{image}\t{name.lower()}"] = rng.random((224, 224)).astype(np.float32)
    np.savez(tmp_path / "maps.npz", **maps)
    files = ["--truth", str(sample_files[0]), "--heatmaps", str(tmp_path / "maps.npz")]
    tuning = ["--validation_truth", str(sample_files[0]), "--validation_heatmaps", str(tmp_path / "maps.npz")]
    call = ["score", "--protocol", "chexlocalize", *files, "--out", str(tmp_path / "out")]
    assert main([*call, *tuning, "--benchmark", str(sample_files[1])]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["n"] == 30
    assert summary["operating_points"]["Cardiomegaly"]["positives"] == 1
    benchmark = summary["baselines"][sample_files[1].stem]
    assert benchmark["metrics"]["iou_true_positive"]["per_category"]["Cardiomegaly"]["mean"] == pytest.approx(0.3662062)
    own, other = (m["metrics"]["pointing"]["overall"]["mean"] for m in (summary, benchmark))
    assert benchmark["difference"]["pointing"]["overall"]["mean"] == pytest.approx(own - other)
    with open(tmp_path / "out" / "per_sample.csv", newline="") as file:
        healthy = [row for row in csv.DictReader(file) if row["image"] == "healthy"]
    assert len(healthy) == 40
    assert {row["note"].split("; ")[0] for row in healthy} <= {"false positive", "true negative"}
    assert "Thresholds, chosen on validation data" in (tmp_path / "out" / "summary.md").read_text()
    capsys.readouterr()
    assert main(call) == 2
    assert "--validation_truth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"heatmaps": None}, "one of them"),
        ({"segmentations": "s.json"}, "one of them"),
        ({"protocol": "afloc", "heatmaps": None, "segmentations": "s.json"}, "masks need protocol chexlocalize"),
        ({"protocol": "afloc", "validation": ("t", "m")}, "validation data are for heat maps"),
        ({"validation": ("t", "m"), "benchmarks": ["a/x.json", "b/x.json"]}, "same name"),
    ],
)
def test_calls_that_cannot_mean_anything_are_refused(tmp_path, keywords, message):
    call = {"truth": "t.json", "heatmaps": "m.npz", **keywords}
    settings = LocalizationSettings(protocol=call.pop("protocol", "chexlocalize"))
    with pytest.raises(UsageError, match=message):
        score_files(out=tmp_path / "out", settings=settings, **call)
