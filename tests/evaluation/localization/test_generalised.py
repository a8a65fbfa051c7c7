"""Protocol generalised against plain NumPy, on a stand-in for a model, and for boxes of anybody."""

import itertools
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.localization.evaluate import evaluate
from afloc_jax.evaluation.localization.generalised import THRESHOLDS, box_iou, matched
from afloc_jax.evaluation.localization.protocol import Samples
from afloc_jax.evaluation.localization.protocols import get_protocol
from afloc_jax.evaluation.localization.samples import parts_of
from afloc_jax.evaluation.localization.score_files import score_files
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.page import write_report
from afloc_jax.evaluation.truth.sample import Truth
from tests.evaluation.discs import SOURCE, Reader

PROTOCOL = get_protocol("generalised")
SETTINGS = LocalizationSettings(protocol="generalised", bootstrap=10)


def plain_iou(a, b):
    """By counting cells of a fine grid."""
    grid = np.zeros((2, 400, 400), bool)
    for mask, (x, y, w, h) in zip(grid, (a, b), strict=True):
        mask[round(y * 10) : round((y + h) * 10), round(x * 10) : round((x + w) * 10)] = True
    return (grid[0] & grid[1]).sum() / (grid[0] | grid[1]).sum()


def plain_matches(drawn, annotated):
    """The best of all ways to give every drawn box an annotated one or none."""
    fits = [[plain_iou(a, b) >= 0.5 for b in annotated] for a in drawn]
    choices = [*range(len(annotated)), *[None] * len(drawn)]
    ways = itertools.permutations(choices, len(drawn))
    return max(sum(j is not None and fits[i][j] for i, j in enumerate(way)) for way in ways)


def boxes_near(rng, count):
    return np.round(np.concatenate([rng.uniform(0, 6, (count, 2)), rng.uniform(4, 9, (count, 2))], axis=1), 1)


@pytest.mark.parametrize("seed", range(12))
def test_boxes_are_matched_as_the_best_of_all_ways(seed):
    rng = np.random.default_rng(seed)
    drawn, annotated = boxes_near(rng, int(rng.integers(0, 4))), boxes_near(rng, int(rng.integers(0, 4)))
    assert matched(drawn, annotated) == plain_matches(drawn, annotated)
    if len(drawn) and len(annotated):
        expected = [[plain_iou(a, b) for b in annotated] for a in drawn]
        np.testing.assert_allclose(box_iou(drawn, annotated), expected, atol=1e-9)


def test_one_annotated_box_takes_one_of_two_that_fit():
    assert matched(np.array([[0.0, 0, 10, 10], [0, 0, 10, 9]]), np.array([[0.0, 0, 10, 10]])) == 1


def drawn_map(*boxes):
    heatmap = np.zeros((40, 40), np.float32)
    for x, y, width, height, value in boxes:
        heatmap[y : y + height, x : x + width] = value
    return heatmap


def truth(name, *boxes, category="nodule"):
    mask = drawn_map(*((*box, 1) for box in boxes)).astype(np.uint8)
    return Truth(name, name, category, mask, name, 40, 40, present=bool(boxes))


def test_values_follow_from_the_formulas_and_the_threshold_from_validation_alone():
    truths = [
        truth("two", (2, 2, 10, 10), (20, 20, 10, 10)),  # one of two is drawn, and one elsewhere
        truth("one", (5, 5, 10, 10)),  # drawn as it is
        truth("missed", (5, 5, 10, 10), category="edema"),  # a constant map
        truth("empty", category="edema"),
        truth("wrong", category="nodule"),
    ]
    maps = [
        drawn_map((2, 2, 10, 10, 1), (30, 2, 5, 5, 0.9)),
        drawn_map((5, 5, 10, 10, 1), (30, 30, 8, 8, 0.5)),  # the second is below the threshold
        drawn_map(),
        drawn_map(),
        drawn_map((1, 1, 3, 3, 1)),
    ]
    tuning = [truth("a", (5, 5, 10, 10)), truth("b")]
    tuning_maps = [drawn_map((0, 0, 30, 30, 0.59), (5, 5, 10, 10, 1)), drawn_map()]
    scores = PROTOCOL.score(Samples(truths, maps), Samples(tuning, tuning_maps))
    assert scores.chosen == 0.2 and len(scores.validation) == len(THRESHOLDS)  # 0.59 is 0.18 on [-1, 1]
    assert scores.validation["0.1"] == 0.5 and scores.validation["0.2"] == 1.0
    np.testing.assert_allclose(scores["f1"], [0.5, 1, 0, 1, 0])
    np.testing.assert_allclose(scores["f1_exact"], [0, 1, 0, 1, 0])
    np.testing.assert_allclose(scores["f1_present"], [0.5, 1, 0, np.nan, np.nan])
    np.testing.assert_allclose(scores["n_acc"], [np.nan, np.nan, np.nan, 1, 0])
    np.testing.assert_allclose(scores["t_acc"], [1, 1, 0, np.nan, np.nan])


class Judge(Reader):
    """A reader that judges whether the disc of the prompt is in the image."""

    calibration = SimpleNamespace()

    def maps_and_presence(self, images, rows, prompts):
        maps = self.heatmaps_of_pairs(images, rows, prompts)
        return maps, [0.9 if heatmap.max() > 0.5 else 0.2 for heatmap in maps]


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    out = tmp_path_factory.mktemp("judged")
    return evaluate(Judge(), SOURCE, out, SETTINGS, validation_source=SOURCE), out


def test_absent_findings_are_asked_by_prompts_of_the_data_set():
    (part,) = parts_of(PROTOCOL, [SOURCE])
    lacking = [(SOURCE[row], t) for row, t in zip(part.rows, part.truths, strict=True) if not t.present]
    assert list(part.rows) == sorted(part.rows) and len(lacking) == 8 + 9  # as many lack a nodule, or have edema
    own = {finding.prompt for one in SOURCE for finding in one.findings}
    for image, sample in lacking:
        assert sample.category not in [finding.label for finding in image.findings]
        assert sample.label_text in own and sample.label_text.startswith(sample.category)
    again = parts_of(PROTOCOL, [SOURCE])[0]
    assert [t.label_text for t in again.truths] == [t.label_text for t in part.truths]


def test_a_model_that_sees_and_judges_beats_one_that_does_neither(judged):
    summary, _ = judged
    overall = {name: table["overall"]["mean"] for name, table in summary["metrics"].items()}
    assert overall["t_acc"] == 1 and overall["f1_present"] == 1
    assert 0.8 < overall["n_acc"] < 1, "some prompts name the place of the other class's disc"
    assert summary["protocol"] == "generalised" and set(summary["boxes"]) == {"edema", "nodule"}
    assert summary["boxes"]["nodule"]["with_box"] == 10
    untrained = summary["baselines"]["untrained"]["metrics"]
    assert untrained["n_acc"]["overall"]["mean"] == 0 and untrained["f1_present"]["overall"]["mean"] < 0.5
    assert {"every_prompt", "location_prior", "shuffled_image"} <= set(summary["baselines"])


def test_the_page_has_a_section_on_boxes(judged):
    _, out = judged
    write_report(out)
    page = (out / "report" / "index.html").read_text()
    assert "None, one or several boxes" in page and "N-acc" in page and "Every prompt" in page


def test_a_model_without_calibration_and_calls_that_do_not_fit_are_refused(tmp_path):
    blind = Reader()
    blind.calibration = None
    with pytest.raises(UserError, match="not calibrated; run: afloc calibrate"):
        evaluate(blind, SOURCE, tmp_path, SETTINGS, validation_source=SOURCE)
    with pytest.raises(UsageError, match="none of the published release"):
        get_protocol("generalised", compatible=True)
    with pytest.raises(UsageError, match="--at original is for protocol chexlocalize"):
        get_protocol("generalised", at="original")
    with pytest.raises(UsageError, match="need protocol generalised"):
        score_files(tmp_path / "t.json", None, tmp_path / "out", boxes=tmp_path / "b.csv")
    everything = [SimpleNamespace(**{**vars(one), "labels": {}}) for one in SOURCE[1::4]]  # nodule and edema in all
    with pytest.raises(UserError, match="no image is known to lack a finding"):
        parts_of(PROTOCOL, [everything])


@pytest.fixture
def films(tmp_path):
    """Two films: one with two boxes for a phrase, one without the finding."""
    content = {
        "images": [{"id": k, "path": f"{name}.png", "height": 400, "width": 300} for k, name in enumerate("ab")],
        "categories": [{"id": 1, "name": "Nodule"}],
        "annotations": [
            {"image_id": 0, "category_id": 1, "label_text": "Nodules", "bbox": [10, 20, 50, 60]},
            {"image_id": 0, "category_id": 1, "label_text": "Nodules", "bbox": [200, 300, 40, 40]},
            {"image_id": 1, "category_id": 1, "label_text": "Nodule left", "bbox": []},
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return tmp_path


def test_boxes_of_anybody_are_scored_from_tables_and_from_json(films):
    (films / "boxes.csv").write_text(
        "image,prompt,present,x,y,width,height,score\n"
        "a.png,nodules,0.9,12,22,50,60,1.5\n"
        "a.png,nodules,0.9,100,100,10,10,1.5\n"
    )
    (films / "boxes.json").write_text(json.dumps({"a.png": {"Nodules": [[12, 22, 50, 60], [100, 100, 10, 10]]}}))
    call = ["score", "--protocol", "generalised", "--truth", str(films / "truth.json"), "--bootstrap", "10"]
    assert main([*call, "--boxes", str(films / "boxes.csv"), "--out", str(films / "csv")]) == 0
    assert main([*call, "--boxes", str(films / "boxes.json"), "--out", str(films / "json")]) == 0
    one, other = (json.loads((films / name / "summary.json").read_text()) for name in ("csv", "json"))
    assert one["metrics"] == other["metrics"] and one["unused_boxes"] == 0
    overall = {name: table["overall"]["mean"] for name, table in one["metrics"].items()}
    assert overall == {"f1": 0.75, "f1_exact": 0.5, "f1_present": 0.5, "n_acc": 1.0, "t_acc": 1.0}
    assert one["boxes"]["Nodule"] == {"with_box": 1, "without_box": 1, "annotated": 2, "drawn": 2, "matched": 1}


def test_phrases_without_a_box_are_left_out_of_other_protocols(films):
    maps = {"a.png\tnodules": np.random.default_rng(0).random((224, 224))}
    np.savez(films / "maps.npz", **maps)
    summary = score_files(films / "truth.json", films / "maps.npz", films / "out", LocalizationSettings(bootstrap=5))
    assert summary["n"] == 1


def test_masks_become_boxes_and_rows_without_a_mask_have_none(tmp_path):
    mask = np.zeros((100, 80), np.uint8)
    mask[10:30, 10:40] = mask[60:80, 50:70] = 255
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    (tmp_path / "truth.csv").write_text("image,mask,finding,prompt\na,m.png,edema,edema\nb,,edema,mild edema\n")
    (tmp_path / "boxes.json").write_text(
        json.dumps({"a": {"edema": [[50, 60, 20, 20], [10, 10, 30, 20]]}, "b": {"mild edema": [[1, 1, 9, 9]]}})
    )
    found = score_files(tmp_path / "truth.csv", None, tmp_path / "out", SETTINGS, boxes=tmp_path / "boxes.json")
    assert found["metrics"]["f1_present"]["overall"]["mean"] == 1 and found["metrics"]["n_acc"]["overall"]["mean"] == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a.png": {"nodules": [[1, 2, 3]]}}, r"image 0, phrase 0: a box must be x, y, width, height"),
        ({"a.png": {"nodules": [[1, 2, 0, 3]]}}, "positive width and height"),
        ({"a.png": {"nodules": [[1, 2, float("nan"), 3]]}}, "positive width and height"),
        ({"a.png": {"nodules": 3}}, "must be a list"),
        ([1], "boxes come as a .csv, or as JSON"),
        ({"c.png": {"nodules": [[1, 2, 3, 4]]}}, "no image and phrase of it is in the truth"),
    ],
)
def test_a_damaged_file_of_boxes_is_refused_with_its_place(films, content, words):
    (films / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=words) as error:
        score_files(films / "truth.json", None, films / "out", SETTINGS, boxes=films / "boxes.json")
    assert "nodules" not in str(error.value)
