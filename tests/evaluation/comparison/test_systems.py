"""Tables of other systems: what is computed, against NumPy, SciPy and scikit-learn, and what is refused."""

import csv
import json
import re

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics

from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.comparison.failure import Failure
from afloc_jax.evaluation.comparison.result import OVERALL
from afloc_jax.evaluation.comparison.systems import compare_systems
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
from tests.evaluation.comparison.test_comparison import by, write_values
from tests.links import ROOT

QUICK = Bootstrap(resamples=200)
VALUES = ("system", "id", "image", "patient", "category", "metric", "threshold", "value")
PROBABILITIES = ("system", "id", "image", "patient", "category", "threshold", "label", "probability")
SYSTEMS = ("gloria", "afloc", "kaf-ground")


def write(path, columns, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def table_of(iou, hits, patient=lambda i: f"p{i}"):
    """Rows of [systems, n, thresholds] IoU and [systems, n] hits; every third sample is of category b."""
    rows = []
    for s, system in enumerate(SYSTEMS[: len(iou)]):
        for i in range(iou.shape[1]):
            about = (system, f"s{i}", f"i{i}", patient(i), "ab"[i % 3 == 0])
            rows += [(*about, "iou", threshold, iou[s, i, t]) for t, threshold in enumerate(("0.1", "0.2"))]
            rows.append((*about, "pointing", "", int(hits[s, i])))
    return rows


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    iou = np.clip(rng.normal(0.3, 0.2, (1, 60, 1)) + rng.normal([[[0.0]], [[0.05]], [[0.1]]], 0.1, (3, 60, 2)), 0, 1)
    return iou, rng.random((3, 60)) < [[0.5], [0.6], [0.8]]


def mean_of(result, system, metric, category):
    return next(m for m in result.means if (m.system, m.metric, m.category) == (system, metric, category))


def test_means_and_differences_are_those_of_numpy(values, tmp_path):
    iou, hits = values
    result = compare_systems([write(tmp_path / "t.csv", VALUES, table_of(iou, hits))], tmp_path / "out", QUICK)
    assert (result.systems, result.against, result.matched) == (list(SYSTEMS), "gloria", 180)
    of_b, per_sample = np.arange(60) % 3 == 0, iou.mean(axis=2)
    for s, system in enumerate(SYSTEMS):
        parts = [per_sample[s, of_b].mean(), per_sample[s, ~of_b].mean()]
        assert mean_of(result, system, "iou", "b").mean == pytest.approx(parts[0])
        overall = mean_of(result, system, "iou", OVERALL)
        assert overall.mean == pytest.approx(np.mean(parts)) and overall.lower < overall.mean < overall.upper
        assert mean_of(result, system, "pointing", "a").mean == pytest.approx(hits[s, ~of_b].mean())
    for s, difference in zip((1, 2), result.differences, strict=True):
        assert (difference.system, difference.against) == (SYSTEMS[s], "gloria")
        row = by(difference, "iou", "b")
        assert row.difference == pytest.approx((per_sample[s] - per_sample[0])[of_b].mean())
        assert row.a == pytest.approx(mean_of(result, SYSTEMS[s], "iou", "b").mean)
    rows = [row for one in result.differences for row in one.rows if row.category != OVERALL]
    assert [row.p_bh for row in rows] == pytest.approx(scipy.stats.false_discovery_control([row.p for row in rows]))
    written = json.loads((tmp_path / "out/comparison.json").read_text())
    assert len(written["means"]) == 3 * 2 * 3 and len(written["differences"][0]["rows"]) == 2 * 3
    lines = list(csv.DictReader((tmp_path / "out/comparison.csv").read_text().splitlines()))
    assert {(line["system"], line["against"]) for line in lines} == {("afloc", "gloria"), ("kaf-ground", "gloria")}
    assert len(list(csv.DictReader((tmp_path / "out/means.csv").read_text().splitlines()))) == 18
    text = (tmp_path / "out/comparison.md").read_text()
    assert "| iou | all categories | 60 | 0." in text
    few = [row for row in table_of(iou, hits) if int(row[1][1:]) < 45]
    fewer = compare_systems([write(tmp_path / "few.csv", VALUES, few)], None, QUICK).to_markdown()
    assert fewer.count("| iou | b | 15* |") == 3 and "| iou | a | 30 |" in fewer  # its mean, and both differences


def test_mcnemar_is_that_of_scipy_and_by_patient_where_samples_share_one(values, tmp_path):
    iou, hits = values
    failure = Failure.parse("iou<0.25")
    single = compare_systems([write(tmp_path / "t.csv", VALUES, table_of(iou, hits))], None, QUICK, "", [failure])
    fails = iou.mean(axis=2) < 0.25
    for metric, outcomes in (("pointing", hits), ("iou<0.25", fails)):
        row = by(single.differences[1], metric, OVERALL)
        only = [int((outcomes[2] & ~outcomes[0]).sum()), int((outcomes[0] & ~outcomes[2]).sum())]
        assert [row.only_a, row.only_b] == only and sum(only) > 5
        assert row.p_mcnemar == pytest.approx(scipy.stats.binomtest(only[0], sum(only)).pvalue)
    assert by(single.differences[1], "iou", OVERALL).only_a is None
    for overall in (True, False):  # Holm, for the two pairs and two metrics together
        family = [r for one in single.differences for r in one.rows if (r.category == OVERALL) == overall]
        tested = sorted((r for r in family if r.only_a is not None), key=lambda r: r.p_mcnemar)
        assert len(tested) == (4 if overall else 8)
        steps = [r.p_mcnemar * (len(tested) - k) for k, r in enumerate(tested)]
        assert [r.p_mcnemar_holm for r in tested] == pytest.approx(np.minimum(np.maximum.accumulate(steps), 1))
        assert all(np.isnan(r.p_mcnemar_holm) for r in family if r.only_a is None)
    pairs = table_of(iou, hits, lambda i: f"p{i // 2}")
    paired = compare_systems([write(tmp_path / "p.csv", VALUES, pairs)], None, QUICK)
    row = by(paired.differences[1], "pointing", OVERALL)
    net = (hits[2].astype(int) - hits[0]).reshape(30, 2).sum(axis=1)
    signs = np.random.default_rng(1).choice([-1, 1], (200_000, 30))
    assert paired.bootstrap["unit"] == "patient" and row.units == 30
    assert row.p_mcnemar == pytest.approx((abs(signs @ net) >= abs(net.sum())).mean(), abs=0.004)
    by_sample = compare_systems([tmp_path / "p.csv"], None, Bootstrap(200, unit="sample"))
    assert by(by_sample.differences[1], "pointing", OVERALL).p_mcnemar == pytest.approx(
        by(single.differences[1], "pointing", OVERALL).p_mcnemar
    )


def test_probabilities_have_the_auc_of_scikit_learn(tmp_path):
    rng = np.random.default_rng(2)
    labels = rng.random((80, 2)) < 0.4
    scores = [np.round(w * labels + (1 - w) * rng.random((80, 2)), 3) for w in (0.2, 0.4)]
    rows = [
        (system, f"s{i}", "", "", "ab"[c], 0.5, int(labels[i, c]), scores[s][i, c])
        for s, system in enumerate(SYSTEMS[:2])
        for i in range(80)
        for c in range(2)
    ]
    result = compare_systems([write(tmp_path / "t.csv", PROBABILITIES, rows)], None, QUICK)
    for c, name in enumerate("ab"):
        expected = [metrics.roc_auc_score(labels[:, c], one[:, c]) for one in scores]
        assert [mean_of(result, system, "auc", name).mean for system in SYSTEMS[:2]] == pytest.approx(expected)
        row = by(result.differences[0], "auc", name)
        assert row.difference == pytest.approx(expected[1] - expected[0]) and row.test == "DeLong"
        right = [(one[:, c] >= 0.5) == labels[:, c] for one in scores]
        accuracy = by(result.differences[0], "accuracy", name)
        only = [(right[1] & ~right[0]).sum(), (right[0] & ~right[1]).sum()]
        assert [accuracy.only_a, accuracy.only_b] == only
        assert accuracy.p_mcnemar == pytest.approx(scipy.stats.binomtest(int(only[0]), int(sum(only))).pvalue)
        brier = metrics.brier_score_loss(labels[:, c], scores[0][:, c])
        assert mean_of(result, "gloria", "brier", name).mean == pytest.approx(brier)
    assert "No patient is named, so that intervals and tests draw samples." in result.notes
    similarities = [(*row[:5], "", row[6], 4 * row[7] - 1) for row in rows]
    ranked = compare_systems([write(tmp_path / "r.csv", PROBABILITIES, similarities)], None, QUICK)
    assert {row.metric for row in ranked.differences[0].rows} == {"auc"} and "no Brier score" in ranked.notes[-1]
    assert by(ranked.differences[0], "auc", "a").difference == by(result.differences[0], "auc", "a").difference


def test_other_samples_are_left_out_and_counted(values, tmp_path, capsys):
    rows = table_of(*values)
    kept = [row for row in rows if row[:2] not in (("afloc", "s1"), ("gloria", "s3"))]
    call = ["compare", str(write(tmp_path / "t.csv", VALUES, kept)), "--out", str(tmp_path / "out")]
    assert main([*call, "--bootstrap", "50", "--against", "afloc", "--failure", "iou<0.1"]) == 0
    said = capsys.readouterr().out
    assert "174 scores are shared by all 3 systems" in said
    assert "3 scores of gloria are left out" in said and "6 scores of kaf-ground are left out" in said
    assert "A: gloria, B: afloc." in said and "| iou<0.1 | all categories | 58 |" in said
    fewer = compare_systems([tmp_path / "t.csv"], None, QUICK)
    of_both = [i for i in range(60) if i not in (1, 3)]
    expected = np.mean([values[0][2, i].mean() for i in of_both if i % 3])
    assert mean_of(fewer, "kaf-ground", "iou", "a").mean == pytest.approx(expected)


def test_a_result_folder_is_one_more_system(values, tmp_path):
    iou, hits = values
    own = write_values(tmp_path / "ours", iou[2])
    table = write(tmp_path / "t.csv", VALUES, [row for row in table_of(iou[:2], hits) if row[5] == "iou"])
    result = compare_systems([own, table], None, QUICK)
    assert result.systems == ["ours", "gloria", "afloc"] and result.against == "ours"
    assert result.bootstrap["unit"] == "patient"  # named by the folder, two samples each
    expected = (iou[1] - iou[2]).mean(axis=1)[np.arange(60) % 3 == 0].mean()
    assert by(result.differences[1], "iou", "b").difference == pytest.approx(expected)


def test_the_page_is_one_file_that_escapes_names(values, tmp_path):
    rows = [("<b>x" if row[0] == "gloria" else row[0], *row[1:]) for row in table_of(*values)]
    failure = Failure.parse("iou<0.1")
    compare_systems([write(tmp_path / "t.csv", VALUES, rows)], tmp_path / "out", QUICK, "", [failure])
    page = (tmp_path / "out/comparison.html").read_text()
    assert "&lt;b&gt;x" in page and "<b>x" not in page
    assert page.count("<svg") == 6 and "McNemar" in page and "iou&lt;0.1" in page
    assert not re.search(r"(src|href)=|@import|url\(|<script", page)


def test_two_folders_have_the_page_too(values, tmp_path):
    folders = [str(write_values(tmp_path / name, one)) for name, one in zip("ab", values[0], strict=False)]
    assert main(["compare", *folders, "--out", str(tmp_path / "out"), "--bootstrap", "50"]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"comparison.{ending}" for ending in ("csv", "html", "json", "md")]
    page = (tmp_path / "out/comparison.html").read_text()
    assert "all categories" in page and "What the images show is not stated" in page


def test_the_first_lines_say_what_the_images_of_a_folder_are(values, tmp_path):
    own = write_values(tmp_path / "ours", values[0][2])
    (own / "summary.json").write_text(json.dumps({"settings": {"name": "phantom"}}))
    table = write(tmp_path / "t.csv", VALUES, [row for row in table_of(*values) if row[5] == "iou"])
    compare_systems([own, table], tmp_path / "out", QUICK)
    header = (tmp_path / "out/comparison.html").read_text().partition("<header>")[2].partition("</header>")[0]
    assert "Images: drawings of chests" in header
    assert "Images: drawings of chests" in (tmp_path / "out/comparison.md").read_text()


GOOD = """system,id,image,patient,category,metric,threshold,value
one,CANARY1,i1,p1,edema,iou,0.1,0.5
one,CANARY2,i2,p2,edema,iou,0.1,0.25
two,CANARY1,i1,p1,edema,iou,0.1,0.75
two,CANARY2,i2,p2,edema,iou,0.1,1
"""
GOOD_LABELS = """system,id,category,label,probability
one,CANARY1,edema,1,0.5
one,CANARY2,edema,0,0.25
two,CANARY1,edema,1,0.75
two,CANARY2,edema,0,1
"""


@pytest.mark.parametrize(
    ("good", "old", "new", "words"),
    [
        (GOOD, ",value\n", ",score\n", "row 1: no column value; a table of systems has the columns"),
        (GOOD, "system,", "model,", "row 1: no column system"),
        (GOOD, "id,image", "image,image", "row 1, column image: comes twice"),
        (GOOD, "image,patient", "image,image", "row 1, column image: comes twice"),
        (GOOD_LABELS, "label", "truth", "row 1: no column label"),
        (GOOD, "0.25", "CANARY", "row 3, column value: is not a number"),
        (GOOD, "0.25", "", "row 3, column value: is not a number"),
        (GOOD, "0.25", "1_0", "row 3, column value: is not a number"),
        (GOOD, "0.25", "nan", "row 3, column value: is not a finite number"),
        (GOOD, "0.25", "1e999", "row 3, column value: is not a finite number"),
        (GOOD, "0.1,0.25", "CANARY,0.25", "row 3, column threshold: is not a number"),
        (GOOD, "CANARY2,i2,p2,edema,iou,0.1,0.25", "CANARY1,i1,p1,edema,iou,.10,0.25", "as in row 2; keep one"),
        (GOOD, "one,CANARY2", "one,", "row 3, column id: is empty"),
        (GOOD, "two,CANARY2,i2,p2", "two,CANARY2,i2,CANARY", "row 5, column patient: differs from another row"),
        (GOOD, "two,CANARY2,i2", "two,CANARY2,CANARY", "row 5, column image: differs from another row"),
        (
            GOOD,
            "p2,edema,iou,0.1,0.25",
            'p2,"CANARY,iou,0.1,0.25',
            "row 3, column category: the quote",
        ),
        (GOOD, "i2,p2,edema,iou,0.1,0.25", 'i2,p2",edema,iou,0.1,0.25', "row 3, column patient: the quote of a cell"),
        (GOOD, "edema,iou,0.1,0.25", '"ed"ema,iou,0.1,0.25', "row 3, column category: the quote of a cell"),
        (GOOD, "edema,iou,0.1,0.25", "edema, CANARY,iou,0.1,0.25", "row 3, column value: the row has 9 cells"),
        (GOOD, ",0.25", "", "row 3, column threshold: the row has 7 cells"),
        (GOOD_LABELS, "0,0.25", "2,0.25", "row 3, column label: is neither 0 nor 1"),
        (GOOD_LABELS, "0,0.25", ",0.25", "row 3, column label: is neither 0 nor 1"),
        (GOOD_LABELS, "0,0.25", "0,CANARY", "row 3, column probability: is not a number"),
        (GOOD_LABELS, "two,CANARY2,edema,0", "two,CANARY2,edema,1", "row 5, column label: differs"),
        (GOOD, "two,", "one,", "row 4, column id: the same system, id, category, metric and threshold as in row 2"),
        (GOOD, "two,CANARY", "two,OTHER", "0 scores are shared by all 2 systems, which have 2, 2"),
        (GOOD, GOOD[GOOD.index("two") :], "", "holds one system"),
        (GOOD, GOOD[GOOD.index("one") :], "", "row 2: there is no sample"),
        (GOOD, GOOD, "", "row 1: has no header; its first row must name the columns"),
        (GOOD, "CANARY1", "CAN\udcffARY1", "is not UTF-8 text (byte 63)"),
    ],
)
def test_a_bad_table_is_one_line_that_names_the_place_and_no_cell(good, old, new, words, tmp_path, capsys):
    assert old in good
    path = tmp_path / "t.csv"
    path.write_bytes(good.replace(old, new).encode(errors="surrogateescape"))
    assert main(["compare", str(path), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and "CANARY" not in said and "OTHER" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("good", [GOOD, GOOD_LABELS])
def test_the_good_tables_of_these_tests_are_good(good, tmp_path):
    (tmp_path / "t.csv").write_text("\ufeff" + good.replace("edema", '"a ""b"", c"').replace("\n", "\r\n") + "\r\n")
    result = compare_systems([tmp_path / "t.csv"], None, QUICK)
    assert {mean.category for mean in result.means} == {'a "b", c'}


def test_wrong_calls(tmp_path, capsys):
    path = tmp_path / "t.csv"
    path.write_text(GOOD)
    for extra, words in (
        (["--against", "three"], "none of the 2 systems has that name"),
        (["--failure", "dice<0.1"], "no metric dice"),
        ([str(path)], "of the same name"),
    ):
        assert main(["compare", str(path), *extra, "--out", str(tmp_path / "out")]) in (1, 2)
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["compare", str(path), "--failure", "iou"])
    assert "such as 'iou<0.1'" in capsys.readouterr().err
    for text in ("iou<", "<0.1", "iou=0.1", "iou<x", "iou<nan"):
        with pytest.raises(UsageError):
            Failure.parse(text)
    (tmp_path / "l.csv").write_text(GOOD_LABELS)
    other = GOOD_LABELS.replace("one", "three").replace("two", "four").replace("1,edema,1", "1,edema,0")
    (tmp_path / "m.csv").write_text(other)
    with pytest.raises(UserError, match="one kind"):
        compare_systems([path, tmp_path / "m.csv"], None, QUICK)
    with pytest.raises(UsageError, match="a failure needs a metric"):
        compare_systems([tmp_path / "l.csv"], None, QUICK, "", [Failure.parse("auc<0.5")])
    with pytest.raises(UserError, match="labels differ between systems for 1 of 2"):
        compare_systems([tmp_path / "l.csv", tmp_path / "m.csv"], None, QUICK)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("iou<0.1", [1, 0, 0]), ("iou <= 0.1", [1, 1, 0]), ("iou>0.1", [0, 0, 1]), ("iou>=1e-1", [0, 1, 1])],
)
def test_a_failure_is_below_or_above_its_limit(text, expected):
    assert Failure.parse(text).holds(np.array([[0.05, 0.1, 0.2]])).tolist() == [expected]


def test_the_example_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/comparison.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(compile(re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0], "comparison.md", "exec"), {})
    call = re.search(r"^afloc (compare systems.csv .*)$", page, re.MULTILINE)
    assert main([word.strip("'") for word in call[1].split()]) == 0
    assert "| pointing | " in capsys.readouterr().out and (tmp_path / "comparison/comparison.html").is_file()
