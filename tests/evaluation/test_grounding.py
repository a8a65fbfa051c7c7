"""Phrase grounding against the release's numbers without a margin, and truth that is boxes."""

import json

import numpy as np
import pytest

from afloc_jax.evaluation.protocols import Samples, get_protocol
from afloc_jax.evaluation.scoring import score_files
from afloc_jax.evaluation.statistics import Bootstrap
from afloc_jax.evaluation.truth import boxes_of, read_truth

PROTOCOL = get_protocol("grounding")


def test_samples_equal_the_release_without_its_margin(goldens):
    data = np.load(goldens / "localization.npz")
    truths = read_truth(goldens / "grounding_coco.json", boxes=True, compatible=True)
    scores = PROTOCOL.score(Samples(truths, data["heatmaps"]), compatible=True)
    expected = data["per_sample"][data["per_sample"][:, 0] == 0]
    np.testing.assert_allclose(scores["iou"], expected[:, 2:7], rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores["cnr"], expected[:, 7], rtol=0, atol=1e-6)


def test_cnr_is_that_of_the_raw_map_and_pointing_sees_the_border(goldens):
    data = np.load(goldens / "localization.npz")
    truths = read_truth(goldens / "grounding_coco.json", boxes=True)
    scores = PROTOCOL.score(Samples(truths, data["heatmaps"]))
    for n, (truth, raw) in enumerate(zip(truths, data["heatmaps"].astype(np.float64), strict=True)):
        inside, outside = raw[truth.mask > 0], raw[truth.mask == 0]
        cnr = (inside.mean() - outside.mean()) / np.sqrt(inside.var() + outside.var())
        assert scores["cnr"][n] == pytest.approx(cnr, rel=1e-9)
        assert scores["pointing"][n] == (truth.mask.flat[raw.argmax()] > 0)


def test_a_box_is_taken_before_the_segmentation_it_encloses(tmp_path):
    content = {
        "images": [{"id": 1, "path": "a.png", "height": 224, "width": 224}],
        "categories": [{"id": 1, "name": "Edema"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 30, 40, 50],
             "segmentation": [[20, 30, 60, 30, 20, 80]], "label_text": "a"},
            {"id": 2, "image_id": 1, "category_id": 1, "segmentation": [[20, 30, 60, 30, 20, 80]], "label_text": "b"},
        ],
    }  # fmt: skip
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    boxed, drawn = read_truth(path, boxes=True)
    assert boxed.mask.sum() == 40 * 50 and boxed.mask[30:80, 20:60].all()
    assert abs(int(drawn.mask.sum()) - 40 * 50) < 100  # the box around the triangle
    triangle, _ = read_truth(path)
    assert triangle.mask.sum() < 1100
    np.savez(tmp_path / "m.npz", **{"a.png\ta": boxed.mask * 1.0, "a.png\tb": drawn.mask * 1.0})
    summary = score_files(path, tmp_path / "m.npz", tmp_path / "out", "grounding", bootstrap=Bootstrap(20))
    assert (summary["protocol"], summary["margin"]) == ("grounding", 0)
    assert summary["metrics"]["iou"]["overall"]["mean"] == 1
    assert summary["metrics"]["pointing"]["overall"]["mean"] == 1


def test_boxes_enclose_each_connected_part_and_count_where_they_meet():
    mask = np.zeros((12, 12), np.uint8)
    mask[1:4, 1] = mask[3, 1:5] = 1  # an L
    mask[8:10, 8:11] = 1
    boxes = boxes_of(mask)
    expected = np.zeros((12, 12), np.uint8)
    expected[1:4, 1:5] = 1
    expected[8:10, 8:11] = 1
    np.testing.assert_array_equal(boxes, expected)
    np.testing.assert_array_equal(boxes_of(expected), expected)
