"""The CheXlocalize protocol against plain loops, the data set's own sample, and data made to mislead it."""

import csv
import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from reference import numpy_chexlocalize as reference

from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.comparison.compare import compare
from afloc_jax.evaluation.localization.chexlocalize import CONFIDENCE_THRESHOLDS, confidence_of
from afloc_jax.evaluation.localization.presence import presence_table
from afloc_jax.evaluation.localization.protocol import Samples
from afloc_jax.evaluation.localization.protocols import get_protocol
from afloc_jax.evaluation.localization.samples import parts_of
from afloc_jax.evaluation.localization.score_files import score_files
from afloc_jax.evaluation.localization.segmentations import score_segmentations
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.localization.summary import summarise, write_results
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, bca_limits
from afloc_jax.evaluation.statistics.discrimination import auc
from afloc_jax.evaluation.truth.read import read_truth
from afloc_jax.evaluation.truth.sample import Truth, negative

PROTOCOL = get_protocol("chexlocalize")
SIZE = 24


def sample(seed, name, present, strength=1.0):
    """(class, mask, map): a blurred version of the mask with noise; noise alone for a negative."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIZE, SIZE), bool)
    if present:
        row, column = rng.integers(0, SIZE - 10, 2)
        mask[row : row + 9, column : column + 8] = True
    heatmap = strength * cv2.GaussianBlur(mask.astype(np.float64), (0, 0), 1 + seed % 3)
    return name, mask, heatmap + 0.15 * rng.standard_normal((SIZE, SIZE))


def split(seed, names=("edema", "nodule"), n=24, strength=1.0):
    return [sample(seed + k, names[k % len(names)], present=k % 3 > 0, strength=strength) for k in range(n)]


def as_samples(table):
    truths = []
    for k, (name, mask, _) in enumerate(table):
        truth = negative(f"i{k}", name, mask.shape[0])
        if mask.any():
            truth = Truth(truth.id, name, name, mask.astype(np.uint8), f"i{k}")
        truths.append(truth)
    return Samples(truths, [heatmap for _, _, heatmap in table])


@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("seed", [0, 100, 200])
def test_thresholds_and_scores_equal_plain_loops(seed, compatible):
    validation, test = split(seed), split(seed + 50, n=31)
    scores = get_protocol("chexlocalize", compatible=compatible).score(as_samples(test), as_samples(validation))
    for name, point in scores.points.items():
        own = [one for one in validation if one[0] == name]
        if compatible:
            masks, maps = ({k: {name: one[part]} for k, one in enumerate(own)} for part in (1, 2))
            expected = reference.official_point(name, masks, maps)
        else:
            expected = reference.operating_point(own, (0.0, *CONFIDENCE_THRESHOLDS))
        assert (point.mask_threshold, point.confidence_threshold) == expected
    for n, one in enumerate(test):
        point = scores.points[one[0]]
        iou = reference.gated_iou(one, point.mask_threshold, point.confidence_threshold)
        np.testing.assert_allclose(scores["iou"][n], np.nan if iou is None else iou, rtol=1e-12)
        found = reference.confidence(one[2]) >= point.confidence_threshold
        np.testing.assert_allclose(scores["iou_true_positive"][n], iou if one[1].any() and found else np.nan)
        hit = float(one[1].flat[one[2].argmax()]) if one[1].any() else np.nan
        np.testing.assert_equal(scores["pointing"][n], hit)


def test_confidence_is_the_clipped_maximum_halved():
    assert [confidence_of(np.array([[-3.0, value]])) for value in (-1, 0, 0.5, 2, 9)] == [0, 0, 0.25, 1, 1]


def test_a_confidence_equal_to_the_threshold_is_enough():
    mask = np.zeros((SIZE, SIZE), bool)
    mask[4:9, 4:9] = True
    other = np.roll(mask, 8, axis=0)
    positive, negative_ = ("edema", mask, mask * 1.0), ("edema", mask & False, other * 0.9)  # confidences 0.5 and 0.45
    scores = PROTOCOL.score(as_samples([positive, negative_]), as_samples([positive, negative_]))
    assert scores.points["edema"].confidence_threshold == 0.5
    np.testing.assert_array_equal(scores["iou"], [1, np.nan])
    assert [scores.outcome(n, "iou", 0) for n in (0, 1)] == ["", "true negative"]


def test_maps_of_a_small_scale_keep_their_masks_unless_compatible():
    validation, test = split(0, strength=1.0), split(60)

    def weak(table):
        return [(name, mask, 0.02 * heatmap) for name, mask, heatmap in table]

    default = PROTOCOL.score(as_samples(weak(test)), as_samples(weak(validation)))
    assert {point.confidence_threshold for point in default.points.values()} == {0.0}
    assert np.nanmean(default["iou"]) > 0.1
    compatible = get_protocol("chexlocalize", compatible=True).score(
        as_samples(weak(test)), as_samples(weak(validation))
    )
    assert not compatible.predicted_pixels.any()
    assert np.nanmean(compatible["iou"]) == 0
    assert compatible.outcome(1, "iou", 0) == "confidence below the threshold"


def test_a_class_without_a_validation_positive_takes_the_thresholds_of_all_classes():
    validation = [*split(0, names=("edema",)), sample(5, "nodule", present=False)]
    scores = PROTOCOL.score(as_samples(split(70)), as_samples(validation))
    point, other = scores.points["nodule"], scores.points["edema"]
    assert (point.chosen_on, other.chosen_on) == ("all classes", "this class")
    assert point.mask_threshold == other.mask_threshold
    with pytest.raises(UserError, match="validation data show no finding"):
        PROTOCOL.score(as_samples(split(70)), as_samples([sample(1, "edema", present=False)]))


def test_test_data_never_choose_a_threshold():
    validation, test = split(0), split(80)
    flipped = [(name, mask, -heatmap) for name, mask, heatmap in test]
    points = [PROTOCOL.score(as_samples(t), as_samples(validation)).points for t in (test, flipped)]
    assert points[0] == points[1]
    with pytest.raises(UsageError, match="chooses its thresholds on validation data"):
        PROTOCOL.score(as_samples(test))


def test_the_summary_says_what_became_of_every_sample():
    scores = PROTOCOL.score(as_samples(split(50)), as_samples(split(0)))
    summary = summarise(scores, Bootstrap(50)).to_json()
    assert summary["protocol"] == "chexlocalize"
    assert sum(sum(of.values()) for of in summary["outcomes"].values()) == 24
    assert list(summary["metrics"]) == ["iou", "iou_true_positive", "dice", "pointing"]
    notes = [scores.outcome(n, "iou", 0) for n in range(24)]
    assert notes.count("false positive") == sum(summary["outcomes"]["false positives"].values())
    assert notes.count("true negative") == sum(summary["outcomes"]["true negatives"].values())
    presence = summary["presence"]["overall"]
    assert presence["positives"] == 16 and presence["negatives"] == 8
    assert presence["false_positive_area"] <= presence["false_positive_area_ungated"]


# Presence


def test_auc_counts_pairs_and_ties_half():
    rng = np.random.default_rng(0)
    confidence, present = rng.integers(0, 6, 60) / 5, rng.random(60) < 0.4
    pairs = [(p > n) + 0.5 * (p == n) for p in confidence[present] for n in confidence[~present]]
    assert auc(present, confidence)[0] == pytest.approx(np.mean(pairs))
    assert auc(present, -confidence)[0] == pytest.approx(1 - np.mean(pairs))
    assert np.isnan(auc(present | True, confidence)[0])


def test_presence_is_averaged_over_the_classes_that_can_be_told():
    confidence = np.array([0.9, 0.8, 0.7, 0.1, 0.5])
    present = np.array([True, False, True, False, True])
    accepted = confidence > 0.6
    area = np.where(accepted, 0.25, 0.0)
    category = np.array([0, 0, 0, 0, 1])
    table = presence_table(
        confidence, present, accepted, area, np.full(5, 0.25), category, ["edema", "only positives"], Bootstrap(200)
    )
    edema, other = table.per_category["edema"], table.per_category["only positives"]
    assert (edema.auc.mean, edema.sensitivity, edema.specificity) == (0.75, 1.0, 0.5)
    assert (edema.false_positive_area, edema.false_positive_area_ungated) == (0.125, 0.25)
    assert edema.auc.lower <= 0.75 <= edema.auc.upper
    assert np.isnan(other.auc.mean) and (other.sensitivity, other.specificity) == (0.0, None)
    assert table.overall.auc.mean == 0.75 and table.overall.sensitivity == 0.5


def test_presence_drawn_by_patient_equals_plain_resampling_of_patients():
    rng = np.random.default_rng(3)
    confidence, present, category = rng.random(40), rng.random(40) < 0.5, np.arange(40) % 2
    patients = rng.integers(0, 9, 40).astype(str)
    areas = np.zeros(40)
    table = presence_table(
        confidence, present, present, areas, areas, category, ["a", "b"], Bootstrap(30, seed=2), patients
    )
    names, means = list(dict.fromkeys(patients)), []
    for picked in np.random.default_rng(2).integers(0, len(names), (30, len(names))):
        rows = np.concatenate([np.flatnonzero(patients == names[k]) for k in picked])
        means.append(np.mean([auc(present[r], confidence[r])[0] for r in (rows[rows % 2 == c] for c in (0, 1))]))
    overall = table.overall.auc
    assert (overall.lower, overall.upper) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_presence_has_the_bca_limits_that_plain_jackknife_and_draws_give():
    rng = np.random.default_rng(4)
    present, category = rng.random(50) < 0.5, np.arange(50) % 2
    confidence, areas = rng.random(50) + 0.4 * present, np.zeros(50)
    how = Bootstrap(400, interval="bca")
    table = presence_table(confidence, present, present, areas, areas, category, ["a", "b"], how)
    aucs, draws, left_out = [], [], []
    for c in (0, 1):
        rows = np.flatnonzero(category == c)
        aucs.append(auc(present[rows], confidence[rows])[0])
        rng, weights = np.random.default_rng(0), np.zeros((400, len(rows)))
        for side in (present[rows], ~present[rows]):
            weights[:, side] = rng.multinomial(side.sum(), np.full(side.sum(), 1 / side.sum()), 400)
        draws.append(auc(present[rows], confidence[rows], weights))
    for c in (0, 1):
        for side in (True, False):
            members = np.flatnonzero((category == c) & (present == side))
            parts = []
            for left in members:
                rows = np.array([i for i in np.flatnonzero(category == c) if i != left])
                parts.append(np.mean([auc(present[rows], confidence[rows])[0], aucs[1 - c]]))
            left_out.append(np.array(parts))
    limits = bca_limits(np.mean(aucs), np.mean(draws, axis=0), tuple(left_out))
    found = table.overall.auc
    np.testing.assert_allclose([found.lower, found.upper], limits, atol=1e-12)
    plain = presence_table(confidence, present, present, areas, areas, category, ["a", "b"], Bootstrap(400))
    assert plain.overall.auc.lower != found.lower


def test_systems_with_other_operating_points_meet_sample_by_sample(tmp_path):
    test = split(50, n=30)
    folders = []
    for name, strength in (("a", 1.0), ("b", 0.6)):
        validation = [(c, mask, 0.3 + strength * heatmap**3) for c, mask, heatmap in split(7, strength=2.0)]
        scores = PROTOCOL.score(as_samples(test), as_samples(validation if name == "b" else split(7)))
        write_results(tmp_path / name, scores, summarise(scores, Bootstrap(20)))
        folders.append({name: point.mask_threshold for name, point in scores.points.items()})
    assert folders[0] != folders[1], "the two must have chosen differently"
    result = compare(tmp_path / "a", tmp_path / "b", None, Bootstrap(20))
    assert result.unmatched["a"].count == result.unmatched["b"].count == 0
    assert any("mask thresholds of its own validation data" in note for note in result.notes)
    with open(tmp_path / "a" / "per_sample.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["threshold"] for row in rows} == {""}
    told = {(row["category"], row["note"].split("; ")[-1]) for row in rows if row["metric"] == "iou"}
    assert told == {(name, f"mask threshold {value:g}") for name, value in folders[0].items()}


def test_an_image_that_is_labelled_but_not_annotated_is_no_negative():
    def record(name, labels, *findings):
        found = [SimpleNamespace(label=label, prompt="", mask=np.eye(8) > 0, boxes=()) for label in findings]
        return SimpleNamespace(id=name, image=np.zeros((8, 8), np.uint8), labels=labels, findings=found, patient="")

    source = [
        record("a", {"mass": 1, "effusion": 0}, "Mass"),
        record("b", {"mass": 1, "pleural effusion": 1}, "Effusion"),
        record("c", {"mass": 0, "effusion": -1}),
        record("d", {}),
    ]
    (part,) = parts_of(PROTOCOL, [source])
    truths, rows = part.truths, part.rows
    asked = [(source[row].id, truth.category, truth.present) for truth, row in zip(truths, rows, strict=True)]
    assert asked == [
        ("a", "Effusion", False),
        ("a", "Mass", True),
        ("b", "Effusion", True),
        ("c", "Mass", False),
        ("d", "Effusion", False),
        ("d", "Mass", False),
    ]


# The data set's own sample


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
    with pytest.raises(UserError, match=r"class cardiomegaly: its mask is for \[2, 2\]"):
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
    assert "| Edema | 5 |" in (tmp_path / "out" / "summary.md").read_text()  # a, b, c, d, e


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
        with pytest.raises(UserError, match="class cardiomegaly: its points must be"):
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
