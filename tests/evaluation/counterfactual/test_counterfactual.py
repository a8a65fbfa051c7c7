"""Counterfactuals on maps made by hand, on which every answer is known, beside plain NumPy."""

import csv
import itertools
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from afloc_jax.cli import main
from afloc_jax.errors import UserError
from afloc_jax.evaluation.counterfactual.evaluate import Table, aucs, evaluate_counterfactuals
from afloc_jax.evaluation.counterfactual.metrics import KINDS, METRICS, MOVES
from afloc_jax.evaluation.counterfactual.moves import mass_of, moves, peak_of, right_place
from afloc_jax.evaluation.counterfactual.questions import Question, half_of, is_lateral, lying_in, questions_of
from afloc_jax.evaluation.counterfactual.settings import CounterfactualSettings
from afloc_jax.evaluation.labelled import read_labelled
from afloc_jax.evaluation.localization.samples import read_truths
from afloc_jax.evaluation.page import write_report
from afloc_jax.evaluation.run import card_tables
from afloc_jax.evaluation.statistics.jackknife import LeftOut
from afloc_jax.evaluation.truth.sample import Drawing
from afloc_jax.models.settings import ModelSettings
from configs.afloc import get_config
from data_pipelines.records import Finding, Record
from tests.evaluation.discs import Checker
from tests.inference.conftest import folder, model  # noqa: F401 (fixtures)

SIZE = 32  # of which the protocol scores the middle 28
PLACES = {"left": (22, 16), "right": (9, 16), "upper": (16, 8), "lower": (16, 23)}  # x, y of words


def disc(x: int, y: int, radius: int = 3) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def finding(label: str, prompt: str, *places: tuple[int, int]) -> Finding:
    mask = np.any([disc(*place) for place in places], axis=0)
    return Finding(label, prompt, cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes())


def record(index: int, *findings: Finding, view: str = "PA", labels: dict[str, int] | None = None) -> Record:
    """An image whose pixels are its index."""
    image = np.full((SIZE, SIZE), index, np.uint8)
    return Record(f"r{index}", image, [], 0, f"p{index}", view, SIZE, SIZE, list(findings), labels=labels or {})


LEFT, RIGHT = PLACES["left"], PLACES["right"]
SOURCE = [
    record(0, finding("effusion", "small left effusion", LEFT)),
    record(1, finding("effusion", "left effusion", LEFT), finding("effusion", "right effusion", RIGHT)),
    record(2, finding("nodule", "nodule in the right upper lobe", (9, 8))),
    record(3, finding("nodule", "left nodule", LEFT), finding("effusion", "bilateral effusions", LEFT, RIGHT)),
    record(4),
    record(5, finding("nodule", "left lower nodule", (22, 23)), view="LL"),
]


class Reader:
    """Stands for a model, of the images above. Its peak follows the words, and is lower where the answer is no.

    With `deaf`, it does not hear words: the peak stays at the first finding of the image.
    """

    batch_size = 4
    weights_sha256 = "ab" * 32
    config = SimpleNamespace(architecture=ModelSettings.read(get_config().model))

    def __init__(self, deaf: bool = False):
        self.deaf = deaf

    def map(self, index: int, prompt: str) -> np.ndarray:
        shown = SOURCE[index].findings
        x, y = PLACES["left"] if self.deaf else (16, 16)
        for word, (cx, cy) in PLACES.items():
            if word in prompt.lower() and not self.deaf:
                x, y = (cx, y) if word in ("left", "right") else (x, cy)
        height = 1.0 if any(finding.prompt in prompt for finding in shown) and "no " not in prompt else 0.4
        rows, columns = np.mgrid[:SIZE, :SIZE]
        return (height * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 20) + 0.01 * index).astype(np.float32)

    def heatmaps_of_pairs(self, images, rows, prompts, *, compatible=False):
        assert len(images) == len({image[0, 0] for image in images}), "every image is encoded once"
        return np.stack([self.map(int(images[row][0, 0]), prompt) for row, prompt in zip(rows, prompts, strict=True)])

    def embed_squares(self, squares):
        return SimpleNamespace(whole=np.stack([self.vector(f"image {square[0, 0]}") for square in squares]))

    def embed_prompts(self, prompts, *, compatible=False):
        return np.stack([self.vector(prompt) for prompt in prompts])

    def heatmaps_of_squares(self, images, prompts, *, compatible=False):
        return np.stack([self.map(int(image[0, 0]), prompt) for image, prompt in zip(images, prompts, strict=True)])

    @staticmethod
    def vector(text: str) -> np.ndarray:
        return np.random.default_rng(list(text.encode())).normal(size=6).astype(np.float32)


def asked(source=SOURCE, **options):
    part = read_truths(source, Drawing())
    return part, questions_of(part, read_labelled(source, **options), range(len(part.truths)))


def evaluated(out, reader=None, source=SOURCE, **options):
    settings = CounterfactualSettings(bootstrap=40, **options)
    summary = evaluate_counterfactuals(reader or Reader(), source, out, settings).to_json()
    with open(out / "per_sample.csv", newline="") as file:
        rows = {(row["id"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    return summary, rows


def mean(metrics, key, category="effusion"):
    return metrics[key]["per_category"][category]["mean"]


# What is asked


def test_halves_are_those_of_a_frontal_image():
    left, upper = half_of("side", 0, 5), half_of("zone", 0, 5)
    assert left.tolist() == [[False, False, False, True, True]] * 5, "the patient's left is on the right"
    assert upper.tolist() == [[True] * 5, [True] * 5, [False] * 5, [False] * 5, [False] * 5]
    assert (half_of("side", 1, 5) == left[:, ::-1]).all() and (half_of("zone", 1, 5) == upper[::-1]).all()


def test_a_finding_lies_in_a_half_with_a_quarter_of_its_pixels():
    half = half_of("side", 0, 8)
    mask = np.zeros((8, 8), bool)
    mask[0, 1:5] = True  # one of four pixels
    other = np.zeros((8, 8), bool)
    other[1, 0:5] = True  # one of five
    assert lying_in([other], half) is None and lying_in([np.zeros((8, 8))], half) is None
    np.testing.assert_array_equal(lying_in([mask, other], half), mask & half)


def test_the_other_side_is_true_where_the_class_is_shown_on_both():
    part, questions = asked()
    sides = {part.truths[q.sample].id: q for q in questions.asked if q.kind == "side"}
    assert {name: (q.prompt, q.true) for name, q in sides.items()} == {
        "r0#0": ("small right effusion", False),
        "r1#0": ("right effusion", True),
        "r1#1": ("left effusion", True),
        "r2#0": ("nodule in the left upper lobe", False),
        "r3#0": ("right nodule", False),
    }
    assert questions.not_applicable["side"] == {"names both sides": 1, "is a lateral view": 1}
    zones = {part.truths[q.sample].id: q.prompt for q in questions.asked if q.kind == "zone"}
    assert zones == {"r2#0": "nodule in the right lower lobe", "r5#0": "left upper nodule"}
    assert questions.not_applicable["zone"] == {"names no zone": 5}
    assert [is_lateral(view) for view in ("LL", "Lateral", "left lateral", "PA", "AP_horizontal", "")] == [True] * 3 + [
        False
    ] * 3


def test_an_absent_finding_is_one_that_the_image_lacks_with_the_same_side():
    part, questions = asked()
    absent = {part.truths[q.sample].id: q.prompt for q in questions.asked if q.kind == "absent_finding"}
    assert absent["r0#0"] in ("left nodule", "left lower nodule")
    assert absent["r1#1"] == "nodule in the right upper lobe"
    assert absent["r2#0"] == "right effusion" and "effusion" in absent["r5#0"]
    assert "r3#0" not in absent, "the image shows both classes"
    assert questions.not_applicable["absent_finding"] == {"is not known to lack a class": 2}
    present = [replace(one, labels={f.label: 1 for f in one.findings}) for one in SOURCE]
    listed = asked(present)[1]
    assert [q for q in listed.asked if q.kind == "absent_finding"] == [], "what is not listed is unknown"
    assert len([q for q in asked(present, unlisted="absent")[1].asked if q.kind == "absent_finding"]) == 5


def test_another_image_is_of_another_patient_and_does_not_show_the_class():
    part, questions = asked()
    others = [q for q in questions.asked if q.kind == "other_image"]
    assert len(others) == 7
    for question in others:
        truth, other = part.truths[question.sample], SOURCE[question.row]
        assert question.prompt == truth.label_text and other.patient != truth.patient
        assert truth.category not in {f.label for f in other.findings}
    everywhere = [record(k, finding("nodule", "nodule", LEFT)) for k in range(3)]
    assert asked(everywhere)[1].not_applicable["other_image"] == {"has no other image without the class": 3}


# How maps move


def test_moves_are_distance_of_the_peaks_and_half_of_the_absolute_difference_of_mass():
    before, after = np.zeros((10, 10)), np.full((10, 10), 3.0)
    before[2, 3], after[8, 3], after[2, 9] = 2.0, 4.0, 3.5
    found = moves(before, after, before > 0, half_of("zone", 1, 10))
    assert found.peak_shift == pytest.approx(0.6)
    assert found.mass_shift == pytest.approx(1.0)
    assert (found.found, found.stays, found.right_place) == (1.0, 0.0, 1.0)
    true = moves(before, after, before > 0, before > 0, true=True)
    assert np.isnan([true.found, true.stays]).all() and true.right_place == 0.0
    assert moves(before, before, before > 0, None)[:2] == (0.0, 0.0)
    np.testing.assert_allclose(peak_of(np.ones((3, 3))), [1, 1])
    np.testing.assert_allclose(mass_of(np.ones((2, 2))), 0.25)


def test_the_right_place_is_the_other_finding_else_the_other_half_else_outside():
    left, right = disc(*LEFT), disc(*RIGHT)
    half = half_of("side", 1, SIZE)
    np.testing.assert_array_equal(right_place(Question(0, "side", "", 0, half), [left]), half)
    np.testing.assert_array_equal(right_place(Question(0, "side", "", 0, half, True), [left, right]), right & half)
    np.testing.assert_array_equal(right_place(Question(0, "negation", "", 0), [left, right]), ~(left | right))
    assert right_place(Question(0, "other_image", "", 1), [left]) is None


# The evaluation


def test_every_value_is_what_numpy_says(tmp_path):
    reader = Reader()
    summary, rows = evaluated(tmp_path, reader)
    part, questions = asked()
    assert summary["n"] == 7 and summary["n_per_category"] == {"effusion": 4, "nodule": 3}
    inner = slice(2, 30)
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    scores: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for q in questions.asked:
        truth, row = part.truths[q.sample], int(part.rows[q.sample])
        a, b = (reader.map(i, p)[inner, inner] for i, p in ((row, truth.label_text), (q.row, q.prompt)))
        cosines = []
        for i, prompt in ((row, truth.label_text), (q.row, q.prompt)):
            u, v = reader.vector(f"image {i}"), reader.vector(prompt)
            cosines.append(float(u @ v / np.sqrt((u @ u) * (v @ v))))
        (ya, xa), (yb, xb) = (np.unravel_index(m.argmax(), m.shape) for m in (a, b))
        p, r = (m.astype(np.float64) - m.min() for m in (a, b))
        mask = truth.mask[inner, inner] > 0
        expected = {
            "peak_shift": np.hypot(ya - yb, xa - xb) / 28,
            "mass_shift": np.abs(p / p.sum() - r / r.sum()).sum() / 2,
        }
        if not q.true:
            expected |= {"similarity_drop": cosines[0] - cosines[1], "found": mask[ya, xa], "stays": mask[yb, xb]}
            pair = (cosines[0], cosines[1], a.max(), b.max())
            scores.setdefault((q.kind, truth.category), []).append(pair)
        for name, value in expected.items():
            assert rows[truth.id, f"{q.kind} {name}"] == pytest.approx(float(value), abs=1e-6), (truth.id, q.kind, name)
            values.setdefault((q.kind, truth.category), {}).setdefault(name, []).append(float(value))
        assert rows[truth.id, f"{q.kind} similarity"] == pytest.approx(cosines[1], abs=1e-6)
        assert rows[truth.id, "present maximum"] == pytest.approx(a.max())
    for (kind, category), of_kind in values.items():
        for name, each in of_kind.items():
            entry = summary["metrics"][f"{kind} {name}"]["per_category"][category]
            assert entry["mean"] == pytest.approx(np.mean(each), abs=1e-6)
    for (kind, category), pairs in scores.items():
        columns = np.array(pairs).T
        truth = np.repeat([1, 0], len(pairs))
        for name, (a, b) in (("similarity", columns[:2]), ("maximum", columns[2:])):
            expected_auc = sklearn_metrics.roc_auc_score(truth, np.concatenate([a, b]))
            entry = summary["metrics"][f"{kind} auc_{name}"]["per_category"][category]
            assert entry["mean"] == pytest.approx(expected_auc)
    assert summary["true"]["side"] == 2
    assert summary["asked"]["side"] == {"effusion": 3, "nodule": 2}


def test_a_reader_moves_to_the_right_place_and_a_deaf_one_stays(tmp_path):
    heard = evaluated(tmp_path / "a")[0]["metrics"]
    deaf = evaluated(tmp_path / "b", Reader(deaf=True))[0]["metrics"]

    assert mean(heard, "side right_place") == 1.0 and mean(heard, "side stays") == 0.0
    assert mean(heard, "side auc_maximum") == 1.0
    assert mean(heard, "side peak_shift") == pytest.approx((LEFT[0] - RIGHT[0]) / 28)
    # Asked for the other side, its peak stays on the left: right by chance for "right effusion" alone, one of three.
    assert mean(deaf, "side right_place") == pytest.approx(1 / 3) and mean(deaf, "side stays") == 1.0
    assert mean(deaf, "side peak_shift") == 0.0
    assert mean(heard, "negation found") == pytest.approx(3 / 4), "a bilateral finding is asked in the middle"
    assert "other_image right_place" not in heard and "zone stays" in heard
    overall = heard["side right_place"]
    classes = [entry["mean"] for entry in overall["per_category"].values()]
    assert overall["overall"]["mean"] == pytest.approx(np.mean(classes))


def test_a_patient_is_drawn_whole_with_the_prompts_and_their_counterfactuals(tmp_path):
    """r1 has two findings, so patients are drawn; limits are percentiles of means, of AUC BCa."""
    summary, rows = evaluated(tmp_path)
    assert summary["bootstrap"]["unit"] == "patient" and summary["bootstrap"]["auc_interval"] == "bca"
    ids = list(dict.fromkeys(name for name, _ in rows))
    patients = list(dict.fromkeys(name.partition("#")[0] for name in ids))
    column = np.array([patients.index(name.partition("#")[0]) for name in ids])
    values = np.array([rows.get((name, "side mass_shift"), np.nan) for name in ids])
    effusion = np.array([name in ("r0#0", "r1#0", "r1#1", "r3#1") for name in ids])
    rng, means = np.random.default_rng(0), []
    drawn = rng.integers(0, len(patients), (40, len(patients)))
    for draw in drawn:
        weight = np.bincount(draw, minlength=len(patients))[column] * effusion * np.isfinite(values)
        if weight.sum():
            means.append((weight * np.nan_to_num(values)).sum() / weight.sum())
    found = summary["metrics"]["side mass_shift"]["per_category"]["effusion"]
    np.testing.assert_allclose([found["lower"], found["upper"]], np.percentile(means, [2.5, 97.5]), atol=1e-9)
    single = evaluated(tmp_path, unit="sample", interval="percentile")[0]["bootstrap"]
    assert (single["unit"], single["auc_interval"]) == ("sample", "percentile")


def test_examples_are_the_first_that_moved_and_the_first_that_did_not(tmp_path):
    reader = Reader(deaf=True)
    evaluated(tmp_path, reader)
    described = json.loads((tmp_path / "examples.json").read_text())
    sides = {one["moved"]: (one["id"], one["counterfactual"]) for one in described if one["kind"] == "side"}
    assert sides == {True: ("r1#1", "left effusion"), False: ("r0#0", "small right effusion")}
    with np.load(tmp_path / "examples.npz") as arrays:
        for k, one in enumerate(described):
            index = int(one["id"][1])
            np.testing.assert_allclose(arrays["heatmaps"][k, 0], reader.map(index, one["prompt"]))
            assert (arrays["images"][k, 1] == index).all() == (one["kind"] != "other_image")


def test_aucs_without_a_patient_are_those_of_the_others():
    """What BCa needs, beside scikit-learn on the samples that are left; n = 14 of 2 classes, 6 patients."""
    rng = np.random.default_rng(0)
    patients, category = rng.integers(0, 6, 14), np.arange(14) % 2
    scores = rng.normal(size=(14, 1 + len(KINDS), 2)).round(1)
    table = Table(np.empty((14, len(KINDS), len(MOVES))), scores, rng.random((14, len(KINDS))) < 0.8)
    found = aucs(table, category, 2)(LeftOut(patients, 6))
    for patient, c, k, s in itertools.product(range(6), range(2), range(len(KINDS)), range(2)):
        left = (patients != patient) & (category == c) & table.contrasted[:, k]
        truth = np.repeat([1, 0], left.sum())
        both = np.concatenate([scores[left, 0, s], scores[left, 1 + k, s]])
        assert found[patient, c, 2 * k + s] == pytest.approx(sklearn_metrics.roc_auc_score(truth, both))


def test_classes_are_chosen_and_unknown_ones_are_refused(tmp_path):
    summary, _ = evaluated(tmp_path, classes=["Nodule"])
    assert summary["n_per_category"] == {"nodule": 3}
    assert sum(summary["asked"]["absent_finding"].values()) == 2, "other classes may be what is absent"
    with pytest.raises(UserError, match="no finding of edema; there are effusion, nodule"):
        evaluated(tmp_path, classes=["edema"])
    with pytest.raises(UserError, match="no annotated finding"):
        evaluated(tmp_path, source=[record(4)])


def test_page_and_table_show_every_kind_and_count_what_does_not_apply(tmp_path):
    summary, _ = evaluated(tmp_path, title="Discs & <i>")
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    page, table = write_report(tmp_path).read_text(), (tmp_path / "summary.md").read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == [] and checker.fetched == [] and "Discs &amp; &lt;i&gt;: counterfactuals" in page
    for kind in KINDS:
        assert f"<h3>{kind.title}</h3>" in page and f"## {kind.title}" in table
    assert all(metric.title in page for metric in METRICS)
    for text in (page, table):
        assert "names both sides (1), is a lateral view (1)" in text and "2 of them true of the image" in text.replace(
            "are true", "true"
        )
    described = json.loads((tmp_path / "examples.json").read_text())
    assert {(one["kind"], one["moved"]) for one in described} >= {(kind.name, True) for kind in KINDS}
    assert page.count("data:image/jpeg") == 2 * len(described) and "<q>small right effusion</q>" in page
    assert "small right effusion" not in (tmp_path / "per_sample.csv").read_text(), "prompts may quote reports"


# A model on phantoms, from the command line


def test_a_model_is_asked_from_the_command_line_and_two_results_are_compared(folder, model, tmp_path, capsys):  # noqa: F811
    sizes = [flag for value in ("train=0", "validation=0", "test=16", "seed=0") for flag in ("--builder", value)]
    data = str(tmp_path / "data")
    call = ["evaluate", str(folder), "--task", "counterfactual", "--dataset", "phantom", "--data", data, *sizes]
    assert main([*call, "--bootstrap", "20", "--out", str(tmp_path / "a")]) == 0
    summary = json.loads((tmp_path / "a/summary.json").read_text())
    source = CounterfactualSettings(
        name="phantom", directory=data, builder={"train": 0, "validation": 0, "test": 16, "seed": 0}
    ).open("test")
    assert summary["n"] == sum(len(one.findings) for one in source)
    out = capsys.readouterr().out
    assert f"{summary['n']} samples" in out and "other_image auc_similarity" in out
    with open(tmp_path / "a/per_sample.csv", newline="") as file:
        rows = {(row["id"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    whole = {one.id: np.asarray(model.embed_squares(one.image[None]).whole)[0] for one in source}
    for one in source:
        for k, shown in enumerate(one.findings):
            text = np.asarray(model.embed_texts([shown.prompt]).report)[0]
            cosine = whole[one.id] @ text / np.linalg.norm(whole[one.id]) / np.linalg.norm(text)
            assert rows[f"{one.id}#{k}", "present similarity"] == pytest.approx(cosine, abs=1e-5)
            heatmap = model.heatmaps_of_squares(one.image[None], [shown.prompt])[0][14:-14, 14:-14]
            assert rows[f"{one.id}#{k}", "present maximum"] == pytest.approx(heatmap.max(), abs=1e-4)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    both = [str(tmp_path / name) for name in "ab"]
    assert main(["compare", *both, "--out", str(tmp_path / "same"), "--bootstrap", "20"]) == 0
    assert "0.000 [0.000, 0.000]" in capsys.readouterr().out


def test_the_card_has_a_table_of_counterfactuals(tmp_path):
    summary, _ = evaluated(tmp_path)
    (table,) = card_tables({"discs": summary})
    assert "The negation: AUC, similarity" in table["columns"]
    assert table["columns"][:3] == ["data set", "samples", "The other side: to the right place"]
    overall = summary["metrics"]["side right_place"]["overall"]["mean"]
    assert table["rows"][0][:2] == ["discs", "7"] and str(table["rows"][0][2]).startswith(f"{overall:.3f}")
