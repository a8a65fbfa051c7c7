"""The CheXlocalize protocol against plain loops, and data made to mislead it."""

import csv
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from reference import numpy_chexlocalize as reference

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.comparison.compare import compare
from afloc_jax.evaluation.localization.chexlocalize import CONFIDENCE_THRESHOLDS, confidence_of
from afloc_jax.evaluation.localization.presence import presence_table
from afloc_jax.evaluation.localization.protocol import Samples
from afloc_jax.evaluation.localization.protocols import get_protocol
from afloc_jax.evaluation.localization.samples import parts_of
from afloc_jax.evaluation.localization.summary import summarise, write_results
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, bca_limits
from afloc_jax.evaluation.statistics.discrimination import auc
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
            expected = reference.operating_point(own, CONFIDENCE_THRESHOLDS)
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
    weak = ("edema", mask, mask * 0.5)
    scores = PROTOCOL.score(as_samples([positive, negative_, weak]), as_samples([positive, negative_]))
    assert scores.points["edema"].confidence_threshold == 0.5
    np.testing.assert_array_equal(scores["iou"], [1, np.nan, 0])
    outcomes = [scores.outcome(n, "iou", 0) for n in range(3)]
    assert outcomes == ["", "true negative", "confidence below the threshold"]
    # Compatible: it is not enough where the threshold is chosen, and enough where the threshold is applied.
    released = get_protocol("chexlocalize", compatible=True)
    chosen = released.score(as_samples([positive, weak]), as_samples([positive, negative_]))
    assert chosen.points["edema"].confidence_threshold == 0  # at 0.5 nothing would be left
    applied = released.score(
        as_samples([positive, weak]), as_samples([("edema", mask, mask * 1.1), (*negative_[:2], mask)])
    )
    assert applied.points["edema"].confidence_threshold == 0.5
    np.testing.assert_array_equal(applied["iou"], [1, 0])


def test_maps_of_a_small_scale_keep_their_masks():
    validation, test = split(0, strength=1.0), split(60)

    def weak(table):
        return [(name, mask, 0.02 * heatmap) for name, mask, heatmap in table]

    for protocol in (PROTOCOL, get_protocol("chexlocalize", compatible=True)):
        scores = protocol.score(as_samples(weak(test)), as_samples(weak(validation)))
        assert {point.confidence_threshold for point in scores.points.values()} == {0.0}
        assert np.nanmean(scores["iou"]) > 0.1


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
        confidence,
        present,
        present,
        areas,
        areas,
        category,
        ["a", "b"],
        Bootstrap(30, seed=2, interval="percentile"),
        patients,
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
    columns = (confidence, present, present, areas, areas, category, ["a", "b"])
    assert presence_table(*columns, Bootstrap(400)) == table  # the default
    assert presence_table(*columns, Bootstrap(400, interval="percentile")).overall.auc.lower != found.lower


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
