"""Phrase grounding against the release's numbers without a margin, and truth that is boxes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from afloc_jax.evaluation.localization.evaluate import evaluate
from afloc_jax.evaluation.localization.protocol import Samples
from afloc_jax.evaluation.localization.protocols import get_protocol
from afloc_jax.evaluation.localization.samples import parts_of
from afloc_jax.evaluation.localization.score_files import score_files
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.truth.read import read_truth
from afloc_jax.evaluation.truth.sample import Drawing, boxes_of
from afloc_jax.models.settings import ModelSettings
from configs.afloc import get_config
from data_pipelines.images import Geometry
from data_pipelines.regions import Box

PROTOCOL = get_protocol("grounding")
SETTINGS = LocalizationSettings(protocol="grounding", bootstrap=20)


def test_samples_equal_the_release_without_its_margin(goldens):
    data = np.load(goldens / "localization.npz")
    truths = read_truth(goldens / "grounding_coco.json", Drawing(compatible=True, boxes=True))
    scores = get_protocol("grounding", compatible=True).score(Samples(truths, data["heatmaps"]))
    expected = data["per_sample"][data["per_sample"][:, 0] == 0]
    np.testing.assert_allclose(scores["iou"], expected[:, 2:7], rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores["cnr"], expected[:, 7], rtol=0, atol=1e-6)


def test_cnr_is_that_of_the_raw_map_and_pointing_sees_the_border(goldens):
    data = np.load(goldens / "localization.npz")
    truths = read_truth(goldens / "grounding_coco.json", Drawing(boxes=True))
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
    boxed, drawn = read_truth(path, Drawing(boxes=True))
    assert boxed.mask.sum() == 40 * 50 and boxed.mask[30:80, 20:60].all()
    assert abs(int(drawn.mask.sum()) - 40 * 50) < 100  # the box around the triangle
    triangle, _ = read_truth(path)
    assert triangle.mask.sum() < 1100
    np.savez(tmp_path / "m.npz", **{"a.png\ta": boxed.mask * 1.0, "a.png\tb": drawn.mask * 1.0})
    summary = score_files(path, tmp_path / "m.npz", tmp_path / "out", SETTINGS)
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


SIZES = {"files/p10/p1/s1/a.jpg": (400, 300), "files/p10/p2/s2/b.jpg": (250, 500)}
BOXES = {  # image, category, phrase -> boxes that overlap, that touch, that are thinner than a pixel of the square
    ("files/p10/p1/s1/a.jpg", "Edema", "Patchy edema"): [[20, 30, 120, 90], [100, 80, 100, 150]],
    ("files/p10/p1/s1/a.jpg", "Pneumonia", "left base"): [[10, 20, 50, 100], [60, 20, 50, 50]],
    ("files/p10/p2/s2/b.jpg", "Edema", "a line"): [[100, 60, 1, 120], [300, 100, 60, 60]],
}


class Annotated:
    """The same boxes as prepared records hold them: their union as a mask, and the boxes themselves."""

    content_hash = ""

    def __init__(self):
        self.records = []
        for path, (height, width) in SIZES.items():
            geometry, findings = Geometry(height, width), []
            for (image, label, prompt), boxes in BOXES.items():
                if image == path:
                    mask = np.any([Box(*box).on_square(geometry) for box in boxes], axis=0)
                    findings.append(SimpleNamespace(label=label, prompt=prompt, mask=mask, boxes=boxes))
            pixels = np.random.default_rng(height).integers(0, 256, (224, 224)).astype(np.uint8)
            self.records.append(
                SimpleNamespace(id=path, image=pixels, geometry=geometry, findings=findings, patient="", labels={})
            )

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


@pytest.fixture
def coco(tmp_path):
    images = {path: number for number, path in enumerate(SIZES)}
    regions = [(*about, box) for about, boxes in BOXES.items() for box in boxes]
    annotations = [
        {"id": number, "image_id": images[path], "category_id": label, "bbox": box, "label_text": text}
        for number, (path, label, text, box) in enumerate(regions)
    ]
    content = {
        "images": [{"id": images[p], "path": p, "height": h, "width": w} for p, (h, w) in SIZES.items()],
        "categories": [{"id": name, "name": name} for name in ("Edema", "Pneumonia")],
        "annotations": annotations,
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return tmp_path / "truth.json"


@pytest.mark.parametrize("compatible", [False, True])
@pytest.mark.parametrize("protocol", ["afloc", "grounding"])
def test_records_are_scored_as_the_truth_file_they_were_made_from(coco, tmp_path, protocol, compatible):
    source, chosen = Annotated(), get_protocol(protocol, compatible=compatible)
    truths = parts_of(chosen, [source])[0].truths
    expected = read_truth(coco, chosen.drawing)
    by_key = {truth.key: truth.mask for truth in truths}
    assert len(by_key) == 3 and max(mask.max() for mask in by_key.values()) == 2
    for truth in expected:
        np.testing.assert_array_equal(by_key[truth.key], truth.mask)
    rng = np.random.default_rng(5)
    maps = {truth.key: rng.normal(size=(224, 224)) + 0.5 * (truth.mask > 0) for truth in expected}
    np.savez(tmp_path / "maps.npz", **maps)

    class Model:
        batch_size, weights_sha256 = 2, ""
        config = SimpleNamespace(architecture=ModelSettings.read(get_config().model))

        def heatmaps_of_pairs(self, images, rows, prompts, *, compatible=False):
            def of(prompt):  # nothing for the name of a class, which is no key
                found = [m for key, m in maps.items() if key.endswith(f"\t{prompt.lower()}")]
                return found[0] if found else np.zeros((224, 224))

            return np.array([of(prompt) for prompt in prompts])

        def heatmaps_of_squares(self, images, prompts, *, compatible=False):
            return self.heatmaps_of_pairs(images, range(len(prompts)), prompts)

    settings = LocalizationSettings(bootstrap=20, protocol=protocol, compatible=compatible)
    ours = evaluate(Model(), source, tmp_path / "ours", settings, untrained=Model())
    theirs = score_files(coco, tmp_path / "maps.npz", tmp_path / "theirs", settings)
    for metric in ("iou", "dice", "cnr", "pointing"):
        assert ours["metrics"][metric] == theirs["metrics"][metric], metric


def test_of_a_finding_without_boxes_the_connected_parts_have_them():
    source = Annotated()
    for record in source.records:
        for finding in record.findings:
            finding.boxes = ()
    truths = parts_of(PROTOCOL, [source])[0].truths
    union = (source[0].findings[0].mask > 0).astype(np.uint8)
    np.testing.assert_array_equal(truths[0].mask, boxes_of(union))
    assert truths[0].mask.sum() > union.sum(), "two overlapping boxes became the one around both"
