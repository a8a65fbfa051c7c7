"""Comparison of two result folders: what meets, what is tested, what is refused."""

import csv
import json

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics

from afloc_jax.cli import main
from afloc_jax.errors import UserError
from afloc_jax.evaluation.comparison.compare import OVERALL, compare
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap

QUICK = Bootstrap(resamples=300)


def write(folder, columns, rows):
    folder.mkdir(exist_ok=True)
    with open(folder / "per_sample.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return folder


def write_values(folder, values, thresholds=("0.1", "0.2")):
    """`values` [n, thresholds] of n samples, every third one of category b; two samples a patient."""
    columns = ("id", "patient", "category", "metric", "threshold", "value")
    rows = [
        (f"s{i}", f"p{i // 2}", "ab"[i % 3 == 0], "iou", threshold, "" if np.isnan(value) else value)
        for i, row in enumerate(values)
        for threshold, value in zip(thresholds, row, strict=True)
    ]
    return write(folder, columns, rows)


def write_probabilities(folder, labels, scores, threshold=0.5):
    rows = [
        (f"s{i}", f"p{i // 2}", "ab"[c], int(labels[i, c]), scores[i, c], threshold, int(scores[i, c] >= threshold))
        for i in range(len(labels))
        for c in range(2)
    ]
    return write(folder, ("id", "patient", "category", "label", "probability", "threshold", "predicted"), rows)


def by(result, metric, category):
    return next(row for row in result.rows if (row.metric, row.category) == (metric, category))


@pytest.fixture
def two(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.random((60, 2))
    return a, a - rng.normal(0.05, 0.1, (60, 2))


def test_differences_are_those_of_the_samples(two, tmp_path):
    a, b = two
    result = compare(write_values(tmp_path / "a", a), write_values(tmp_path / "b", b), tmp_path / "out", QUICK)
    difference, of_b = (a - b).mean(axis=1), np.arange(60) % 3 == 0
    row = by(result, "iou", "b")
    assert row.n == 20 and row.difference == pytest.approx(difference[of_b].mean())
    assert row.p_wilcoxon == pytest.approx(scipy.stats.wilcoxon(difference[of_b]).pvalue)
    overall = by(result, "iou", OVERALL)
    assert overall.difference == pytest.approx((difference[of_b].mean() + difference[~of_b].mean()) / 2)
    assert overall.lower < overall.difference < overall.upper
    assert overall.a - overall.b == pytest.approx(overall.difference)
    families = [[r for r in result.rows if (r.category == OVERALL) == kind] for kind in (True, False)]
    for family in families:
        expected = scipy.stats.false_discovery_control([r.p for r in family])
        assert [r.p_bh for r in family] == pytest.approx(expected)
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written["rows"] == result.to_json()["rows"] and len(written["rows"]) == len(result.rows)
    table = list(csv.DictReader((tmp_path / "out" / "comparison.csv").read_text().splitlines()))
    assert [float(line["difference"]) for line in table] == [r.difference for r in result.rows]
    assert "| iou | all categories | 60 |" in (tmp_path / "out" / "comparison.md").read_text()


def test_the_other_way_round_has_the_other_sign_and_the_same_p(two, tmp_path):
    a, b = (write_values(tmp_path / name, values) for name, values in zip("ab", two, strict=True))
    first, second = compare(a, b, None, QUICK), compare(b, a, None, QUICK)
    for one, other in zip(first.rows, second.rows, strict=True):
        assert one.difference == pytest.approx(-other.difference)
        assert one.lower == pytest.approx(-other.upper)
        assert one.p == other.p


def test_a_system_beside_itself_does_not_differ(two, tmp_path):
    folder = write_values(tmp_path / "a", two[0])
    for row in compare(folder, folder, None, QUICK).rows:
        assert (row.difference, row.lower, row.upper) == (0, 0, 0)
        assert row.p == row.p_holm == row.p_wilcoxon == 1


def test_a_value_that_one_side_lacks_counts_for_neither(two, tmp_path):
    a, b = two[0].copy(), two[1]
    a[1, 0], a[2] = np.nan, np.nan
    result = compare(write_values(tmp_path / "a", a), write_values(tmp_path / "b", b), None, QUICK)
    kept = np.where(np.isnan(a), np.nan, b)
    difference = np.array([np.nanmean(x - y) if np.isfinite(x).any() else np.nan for x, y in zip(a, kept, strict=True)])
    row = by(result, "iou", "a")
    assert row.n == 39 and row.difference == pytest.approx(np.nanmean(difference[np.arange(60) % 3 > 0]))


def test_patients_drawn_together_widen_the_interval_of_twins(tmp_path):
    half = np.random.default_rng(5).normal(0.1, 0.3, 40)
    twins = np.repeat(half, 2)[:, None]
    a = write_values(tmp_path / "a", twins, ("",))
    b = write_values(tmp_path / "b", np.zeros((80, 1)), ("",))
    by_sample = by(compare(a, b, None, Bootstrap(300, unit="sample")), "iou", OVERALL)
    by_patient = by(compare(a, b, None, Bootstrap(300, unit="patient")), "iou", OVERALL)
    default = compare(a, b, None, QUICK)
    assert by(default, "iou", OVERALL) == by_patient and default.bootstrap["unit"] == "patient"
    assert (by_sample.units, by_patient.units) == (80, 40)
    assert by_patient.upper - by_patient.lower > 1.2 * (by_sample.upper - by_sample.lower)
    assert by_patient.p > by_sample.p


def test_probabilities_are_compared_by_auc_accuracy_and_brier(tmp_path):
    rng = np.random.default_rng(1)
    labels = rng.random((80, 2)) < 0.4
    scores = [np.round(np.clip(w * labels + (1 - w) * rng.random((80, 2)), 0, 1), 3) for w in (0.5, 0.1)]
    a, b = (write_probabilities(tmp_path / name, labels, s) for name, s in zip("ab", scores, strict=True))
    result = compare(a, b, None, Bootstrap(300, unit="sample"))
    for c, name in enumerate("ab"):
        row = by(result, "auc", name)
        expected = [metrics.roc_auc_score(labels[:, c], s[:, c]) for s in scores]
        assert (row.a, row.b, row.test) == (pytest.approx(expected[0]), pytest.approx(expected[1]), "DeLong")
        squares = [metrics.brier_score_loss(labels[:, c], s[:, c]) for s in scores]
        assert by(result, "brier", name).difference == pytest.approx(squares[0] - squares[1])
        right = [metrics.accuracy_score(labels[:, c], s[:, c] >= 0.5) for s in scores]
        assert by(result, "accuracy", name).a == pytest.approx(right[0])
    assert by(result, "auc", OVERALL).test == "bootstrap"
    assert by(compare(a, b, None, QUICK), "auc", "a").test == "bootstrap"  # patients share images


def test_samples_without_a_partner_are_named(two, tmp_path, capsys):
    a, b = write_values(tmp_path / "a", two[0]), write_values(tmp_path / "b", two[1][:58])
    assert main(["compare", str(a), str(b), "--out", str(tmp_path / "out"), "--bootstrap", "50"]) == 0
    said = capsys.readouterr().out
    assert "Without a partner: 4 of A, 0 of B" in said and "s58 / a / iou / 0.1" in said


def test_what_cannot_be_compared_is_refused(two, tmp_path):
    a = write_values(tmp_path / "a", two[0])
    other = write_values(tmp_path / "other", two[0], ("0.3", "0.4"))
    with pytest.raises(UserError, match=r"no sample of .* is in .*iou / 0.1 against .*iou / 0.3"):
        compare(a, other)
    labels = np.ones((4, 2), bool)
    with pytest.raises(UserError, match="one kind"):
        compare(a, write_probabilities(tmp_path / "c", labels, np.ones((4, 2))))
    with pytest.raises(UserError, match="label of s0 / a differs"):
        compare(tmp_path / "c", write_probabilities(tmp_path / "d", ~labels, np.ones((4, 2))))
    with pytest.raises(UserError, match="that an evaluation wrote"):
        compare(a, tmp_path / "none")
    with pytest.raises(UserError, match="not per-sample scores"):
        compare(a, write(tmp_path / "e", ("x", "y"), [(1, 2)]))
    twice = write(tmp_path / "f", ("id", "category", "metric", "value"), [("s", "a", "iou", 1)] * 2)
    with pytest.raises(UserError, match="row 3: s / a / iou comes twice"):
        compare(a, twice)
    words = write(tmp_path / "g", ("id", "category", "metric", "value"), [("s", "a", "iou", "high")])
    with pytest.raises(UserError, match="row 2: s / a / iou holds no number"):
        compare(a, words)


def test_a_summary_that_tells_of_other_data_is_a_note(two, tmp_path):
    folders = [write_values(tmp_path / name, values) for name, values in zip("ab", two, strict=True)]
    for folder, digest, protocol in zip(folders, ("1", "2"), ("afloc", "grounding"), strict=True):
        content = {"provenance": {"data_sha256": digest}, "protocol": protocol}
        (folder / "summary.json").write_text(json.dumps(content))
    notes = compare(*folders, None, QUICK).notes
    assert "data differ" in notes[0] and "'afloc' in A and 'grounding' in B" in notes[1]
