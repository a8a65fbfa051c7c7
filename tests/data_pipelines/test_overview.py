"""The overview counts what is there and finds leaks that were put in on purpose."""

import random
import re

import numpy as np
import pytest
from raw_folders import SECRET, pairs_folder, radiograph

from afloc_jax.cli import main
from data_pipelines.building.account import BuildReport
from data_pipelines.images import encode_png
from data_pipelines.overview import write_overview
from data_pipelines.overview.measure import Distribution, distribution, measure
from data_pipelines.overview.page import histogram, label_rows
from data_pipelines.overview.text_overlap import overlapping, runs_of_words
from data_pipelines.records import Finding, Record

SENTENCE = (
    "the heart is not enlarged and the lungs are clear of focal consolidation while a small left pleural effusion"
    " persists with adjacent atelectasis and the right costophrenic angle is sharp"
)
LONG = SENTENCE.split()


def record(number, patient="", words=(), view="PA", findings=(), labels=None, seed=None):
    image = radiograph(number if seed is None else seed, 64, 64)
    sentences = [" ".join(words)] if words else []
    return Record(f"r{number}", image, sentences, 0, patient, view, 64, 64, list(findings), labels=labels or {})


def finding(label, rows):
    mask = np.zeros((64, 64), bool)
    mask[:rows] = True
    return Finding(label, "prompt", encode_png(mask))


def test_counts_lengths_labels_and_findings():
    train = [record(0, "a", ["no", "edema"], labels={"edema": 0}), record(1, "a", ["edema"], "AP", labels={"edema": 1})]
    test = [record(2, "b", findings=[finding("edema", 32), finding("edema", 16)], labels={"edema": -1}), record(3)]
    found = measure({"train": train, "test": test})
    assert found.records == {"train": 2, "test": 2} and found.patients == {"train": 1, "test": 1}
    assert found.without_patient == {"train": 0, "test": 1} and found.with_text == {"train": 2, "test": 0}
    assert found.words == [2, 1] and found.sentences == [1, 1] and found.views == {"PA": 3, "AP": 1}
    assert found.labels["edema"] == {0: 1, 1: 1, -1: 1} and found.findings == {"edema": [0.5, 0.25]}
    assert not found.leaks and found.duplicates == 0
    assert distribution([1, 2, 3]) == Distribution(3, 2.0, 1.1, 2.0, pytest.approx(2.9))


def test_leaks_put_in_on_purpose_are_found():
    train = [record(0, "a"), record(1, "b", LONG), record(2, "c"), record(3, "d", seed=2)]
    changed = [*LONG[:-1], "blunted"]
    test = [record(4, "a"), record(5, "e", changed), record(6, "f", seed=0), record(7, "g", ["no", "edema"])]
    found = measure({"train": train, "test": test})
    assert found.patients_across == 1 and found.leaks
    assert (found.duplicates, found.duplicates_across) == (4, 2)  # 0 and 6 across, 2 and 3 within a split
    assert found.texts_across == {"train": 1, "test": 1} and found.long_texts == {"train": 1, "test": 1}


def test_near_identical_texts_equal_a_comparison_of_all_pairs():
    rng = random.Random(0)
    vocabulary = [f"w{k}" for k in range(200)]
    texts, groups = [], []
    for _ in range(60):
        words = rng.choices(vocabulary, k=40)
        for _ in range(2):
            copy = list(words)
            for _ in range(rng.randrange(3)):
                copy[rng.randrange(40)] = "x"
            texts.append(" ".join(copy))
            groups.append(rng.choice(["train", "test"]))
    texts += ["", ""]
    groups += ["train", "test"]
    sets = [set(runs_of_words(text).tolist()) for text in texts]
    expected = {
        i for i in range(len(texts)) for j in range(len(texts))
        if texts[i] and texts[j] and groups[i] != groups[j] and len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= 0.9
    }  # fmt: skip
    assert overlapping(texts, groups) == expected and 10 < len(expected) < 100


def test_the_page_shows_pictures_and_no_text(tmp_path):
    records = [record(k, f"p{k}", SECRET.split(), findings=[finding("edema", 9)]) for k in range(90)]
    splits = {"train": records[:60], "test": records[60:]}
    report = BuildReport(93, {"train": 60, "test": 30}, dropped={"x": 3})
    write_overview(tmp_path / "page.html", "a <set>", splits, report)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<figure>") == 40 and "a &lt;set&gt;" in page and "No patient and no image" in page
    assert "<dt>X</dt><dd>3</dd>" in page
    assert not re.search(r"https?://", page) and SECRET not in page
    write_overview(tmp_path / "one.html", "one", {"train": records[:1]})
    assert (tmp_path / "one.html").read_text().count("<figure>") == 1


def test_the_page_says_where_the_splits_are_not_clean(tmp_path):
    write_overview(tmp_path / "page.html", "leaky", {"train": [record(0, "a")], "test": [record(1, "a", seed=0)]})
    page = (tmp_path / "page.html").read_text()
    assert "The splits are not clean" in page and "No patient and no image" not in page
    assert (
        len(re.findall(r'<div class="bad"><dt>[^<]*</dt><dd>1</dd>|<div class="bad"><dt>[^<]*</dt><dd>2</dd>', page))
        == 2
    )


def test_bars_of_labels_are_shares_of_all_records_and_the_frequent_come_first(tmp_path):
    labels = [{"edema": 1, "mass": 0}, {"edema": 1}, {"edema": -1, "mass": 1}, {}]
    records = [record(k, f"p{k}", labels=of) for k, of in enumerate(labels)]
    rows = label_rows(measure({"train": records}))
    assert [row.name for row in rows] == ["edema", "mass"]
    assert rows[0].parts == [("present", 50), ("uncertain", 25)]
    assert rows[1].title == "present 1, uncertain 0, absent 1, unknown 2"
    many = [record(0, "p", labels={f"label {k:02d}": 1 for k in range(35)})]
    write_overview(tmp_path / "page.html", "many", {"train": many})
    page = (tmp_path / "page.html").read_text()
    assert "<summary>5 more labels</summary>" in page and page.count("<tr><th>label ") == 35


def test_histograms_hold_every_report_and_say_when_they_are_cut():
    values = [*range(1, 200), 5000]
    words = histogram("words", values)
    assert sum(bar.count for bar in words.bars) == 200 and words.cut
    assert max(bar.height for bar in words.bars) == 100 and len(words.bars) <= 25
    assert not histogram("sentences", [1, 2, 3]).cut


def test_the_command_reads_prepared_records(tmp_path, capsys):
    pairs_folder(tmp_path / "raw", 20)
    out = str(tmp_path / "out")
    assert main(["prepare", "pairs", "--raw", str(tmp_path / "raw"), "--out", out]) == 0
    assert "no leak between splits" in capsys.readouterr().out
    (left,) = (tmp_path / "out").glob("pairs-*/overview.html")  # preparing leaves the page
    page = tmp_path / "page.html"
    assert main(["overview", "pairs", "--data", out, "--out", str(page)]) == 0
    assert "no leak between splits" in capsys.readouterr().out and "Images whose pixels" in page.read_text()
    assert left.read_text() == page.read_text()
    left.unlink()
    assert main(["prepare", "pairs", "--raw", str(tmp_path / "raw"), "--out", out, "--no_overview"]) == 0
    assert not left.exists()
    assert main(["overview", "masks", "--data", out, "--out", str(page)]) == 1
