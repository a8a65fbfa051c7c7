"""Scores in original pixels: against the official procedure in plain NumPy, on files and on records."""

import json
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from reference import numpy_chexlocalize as reference

from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.localization.chexlocalize import otsu_mask
from afloc_jax.evaluation.localization.evaluate import evaluate
from afloc_jax.evaluation.localization.protocols import get_protocol
from afloc_jax.evaluation.localization.samples import parts_of
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.models.settings import ModelSettings
from configs.afloc import get_config
from data_pipelines.images import Geometry, encode_png
from data_pipelines.records import Finding, Record
from data_pipelines.regions import run_lengths

CLASSES = ("Edema", "Lung Lesion", "Pneumothorax")


def test_otsu_is_that_of_plain_numpy():
    rng = np.random.default_rng(0)
    kinds = (
        lambda: rng.integers(0, 256, (31, 17)),
        lambda: rng.normal(120, 50, (40, 40)),
        lambda: np.where(
            rng.random((25, 30)) < rng.random(), rng.normal(60, 9, (25, 30)), rng.normal(180, 30, (25, 30))
        ),
        lambda: rng.choice([0, 255, 90], (12, 12)),
        lambda: np.full((9, 9), rng.integers(0, 256)),
        lambda: cv2.GaussianBlur((rng.random((50, 50)) < 0.03) * 255.0, (0, 0), 4) * 20,
    )
    for number in range(600):
        levels = np.clip(kinds[number % len(kinds)](), 0, 255).astype(np.uint8)
        scaled = levels / np.float32(255)
        np.testing.assert_array_equal((255 * scaled).astype(np.uint8), levels)
        np.testing.assert_array_equal(otsu_mask(scaled), levels > reference.otsu(levels))


def made_up(seed, images, square_maps, first=0):
    """Truth that lists the images with a finding alone, and maps: {image: {class: array}}, in original pixels.

    Maps of every third image are also given on the padded square, from which they must be enlarged.
    """
    rng = np.random.default_rng(seed)
    truth, maps, squares = {}, {}, {}
    for number in range(first, first + images):
        name = f"patient{number}_study1_view1_frontal"
        height, width = (int(n) for n in rng.integers(70, 130, 2))
        masks, maps[name] = {}, {}
        for kind, label in enumerate(CLASSES):
            mask = np.zeros((height, width), bool)
            if (
                number % 5 and (number + kind) % 3 == 0 and not (kind == 2 and seed == 0)
            ):  # no validation image has the last class
                y, x = rng.integers(0, height - 40), rng.integers(0, width - 30)
                mask[y : y + 35, x : x + 20 + 5 * kind] = True
            masks[label] = mask
            peak = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 3 + 4 * kind) * rng.uniform(0.2, 2.5)
            heatmap = (peak + 0.3 * rng.random((height, width))).astype(np.float32)
            if number % 7 == 3:
                heatmap[:] = 0.4
            maps[name][label] = heatmap
            if square_maps and number % 3 == 0:
                square = cv2.GaussianBlur(rng.random((224, 224)).astype(np.float32), (0, 0), 9)
                squares[name, label] = square
                maps[name][label] = reference.in_original_pixels(square, height, width)
        if any(mask.any() for mask in masks.values()):
            truth[name] = masks
    return truth, maps, squares


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def write(folder, split, truth, maps, squares=(), without=()):
    content = {image: {name: rle(mask) for name, mask in classes.items()} for image, classes in truth.items()}
    (folder / f"{split}.json").write_text(json.dumps(content))
    arrays = {f"{image}\t{name.lower()}": m for image, of_image in maps.items() for name, m in of_image.items()}
    arrays |= {f"{image}\t{name.lower()}": m for (image, name), m in dict(squares).items() if image in truth}
    np.savez(folder / f"{split}.npz", **{key: m for key, m in arrays.items() if key.split("\t")[0] not in without})


def call(folder, *options):
    files = ["--truth", "test.json", "--heatmaps", "test.npz"]
    files += ["--validation_truth", "val.json", "--validation_heatmaps", "val.npz"]
    files = [str(folder / name) if "." in name else name for name in files]
    out = folder / "out"
    how = ["--protocol", "chexlocalize", "--bootstrap", "10", "--out", str(out), *options]
    assert main(["score", *files, *how]) == 0
    return json.loads((out / "summary.json").read_text())


@pytest.fixture
def folder(tmp_path):
    """Validation and test files as a user hands them in; the truths and maps in original pixels beside them."""
    validation, test = made_up(0, 24, square_maps=False), made_up(1, 26, square_maps=True, first=100)
    write(tmp_path, "val", *validation)
    write(tmp_path, "test", *test)
    return tmp_path, validation, test


@pytest.mark.parametrize("missing", [False, True])
def test_compatible_scores_of_heat_maps_are_those_of_the_official_procedure(folder, missing):
    """Images of either file count; a listed image without maps has empty masks, and tunes nothing."""
    path, (val_truth, val_maps, _), (truth, maps, squares) = folder
    if missing:
        for split, (table, of_images) in {"val": (val_truth, val_maps), "test": (truth, maps)}.items():
            for name in list(table)[1:3]:
                del of_images[name]
            write(path, split, table, of_images, squares if split == "test" else (), set(table) - set(of_images))
    assert set(maps) - set(truth), "some images must have no finding"
    if missing:  # nor need a listed image list every class
        listed = next(masks for masks in list(truth.values())[3:] if not masks["Edema"].any())
        del listed["Edema"]
        write(path, "test", truth, maps, squares, set(truth) - set(maps))
    summary = call(path, "--compatible")
    assert summary["at"] == "original"
    for name in CLASSES:
        point = reference.official_point(name, val_truth, val_maps)
        ours = summary["operating_points"][name]
        assert (ours["mask_threshold"], ours["confidence_threshold"]) == point
        expected = reference.official_scores(name, truth, maps, point)
        metrics = (summary["metrics"][metric]["per_category"][name]["mean"] for metric in ("iou", "iou_true_positive"))
        assert tuple(metrics) == pytest.approx(expected[:2], abs=5e-7)
        hit = summary["metrics"]["pointing"]["per_category"][name]["mean"]
        assert hit == pytest.approx(expected[2], abs=5e-7)
    assert summary["operating_points"]["Pneumothorax"]["chosen_on"] == "first of each list"
    assert ("missing_heatmaps" in summary) == missing


def test_default_scores_at_original_size_are_those_of_plain_loops(folder):
    path, (val_truth, val_maps, _), (truth, maps, _) = folder
    summary = call(path, "--at", "original")
    samples, tuning = (
        [
            (name, table.get(image, {}).get(name, np.zeros(m.shape, bool)), m)
            for image, of in found.items()
            for name, m in of.items()
        ]
        for table, found in ((truth, maps), (val_truth, val_maps))
    )
    for name in CLASSES[:2]:
        candidates = [k / 10 for k in range(9)]
        point = reference.operating_point([one for one in tuning if one[0] == name], candidates)
        ours = summary["operating_points"][name]
        assert (ours["mask_threshold"], ours["confidence_threshold"]) == point
        own = [one for one in samples if one[0] == name]
        values = {"iou": reference.mean(reference.gated_iou(one, *point) for one in own)}
        values["pointing"] = np.mean([mask[m == m.max()].mean() for _, mask, m in own if mask.any()])
        for metric, value in values.items():
            assert summary["metrics"][metric]["per_category"][name]["mean"] == pytest.approx(value, abs=5e-7)
    assert summary["presence"]["overall"]["negatives"] == sum(not mask.any() for _, mask, _ in samples)
    square = call(path)
    assert square["at"] == "square" and call(path, "--at", "square", "--compatible")["at"] == "square"
    assert square["metrics"]["iou"]["overall"]["mean"] != summary["metrics"]["iou"]["overall"]["mean"]


def test_pictures_tell_the_size_of_images_that_the_truth_does_not_list(folder):
    """Their maps of the square then lose the padding, whose large values are no confidence."""
    path, _, (truth, maps, _) = folder
    name = next(image for image in maps if image not in truth)
    geometry = Geometry(*maps[name]["Edema"].shape)
    padded = np.full((224, 224), 9.0, np.float32)
    geometry.inner(padded)[...] = cv2.GaussianBlur(np.random.default_rng(3).random((224, 224)), (0, 0), 9)[
        : geometry.inner_height, : geometry.inner_width
    ]
    placed = reference.in_original_pixels(padded, geometry.height, geometry.width)
    (path / "pictures").mkdir()
    for image, of_image in maps.items():  # the validation images are not there: their maps have the original size
        cv2.imwrite(str(path / "pictures" / f"{image}.png"), np.zeros(of_image["Edema"].shape, np.uint8))
    confidences = []
    for heatmap, options in ((padded, ["--images", str(path / "pictures")]), (placed, []), (padded, [])):
        write(path, "test", truth, {**maps, name: {**maps[name], "Edema": heatmap}})
        summary = call(path, "--compatible", *options)
        confidences.append((summary["confidence_saturated"], summary["metrics"]["iou"]["overall"]["mean"]))
    assert confidences[0] == confidences[1] and confidences[2][0] == confidences[0][0] + 1


@pytest.mark.parametrize("protocol", ["afloc", "grounding"])
def test_protocols_of_the_square_refuse_original_pixels_in_one_line(folder, capsys, protocol):
    path, *_ = folder
    capsys.readouterr()
    files = ["--truth", str(path / "test.json"), "--heatmaps", str(path / "test.npz"), "--out", str(path / "out")]
    assert main(["score", *files, "--protocol", protocol, "--at", "original"]) == 2
    told = capsys.readouterr().err.strip()
    assert "is for protocol chexlocalize" in told and "\n" not in told
    with pytest.raises(UsageError, match="is for protocol chexlocalize"):
        get_protocol(protocol, at="original")


def test_a_map_of_neither_size_and_one_that_is_not_finite_are_refused_by_sample(folder, capsys):
    path, _, (truth, maps, _) = folder
    first = next(iter(truth))
    for wrong, message in (
        (np.zeros((5, 9), np.float32), "has shape (5, 9); expected (224, 224) or "),
        (np.full(maps[first]["Edema"].shape, np.nan), "has values that are NaN or infinite"),
        (np.full(maps[first]["Edema"].shape, 1e300), "NaN or infinite values"),
    ):
        broken = {**maps, first: {**maps[first], "Edema": wrong}}
        write(path, "test", truth, broken)
        capsys.readouterr()
        files = [str(path / name) for name in ("test.json", "test.npz", "val.json", "val.npz", "broken")]
        flags = ["--truth", "--heatmaps", "--validation_truth", "--validation_heatmaps", "--out"]
        given = [part for pair in zip(flags, files, strict=True) for part in pair]
        assert main(["score", "--protocol", "chexlocalize", "--at", "original", *given]) == 1
        told = capsys.readouterr().err.strip().split("\n")
        assert message in told[-1] and f"{first}#Edema" in told[-1]
        assert not (path / "broken").exists()


@pytest.mark.parametrize("form", ["csv", "coco"])
def test_tables_of_masks_and_boxes_give_the_scores_of_the_same_run_lengths(folder, form):
    """In each form of truth the findings lie in the same original pixels; here they are rectangles."""
    path, (val_truth, *_), (truth, *_) = folder
    expected = call(path, "--at", "original")["metrics"]
    for split, table in (("val", val_truth), ("test", truth)):
        masks = [(image, name, mask) for image, of in table.items() for name, mask in of.items()]
        (path / "masks").mkdir(exist_ok=True)
        if form == "csv":
            lines = ["image,mask,finding"]
            for number, (image, name, mask) in enumerate(masks):
                file = f"{split}{number}.png" if mask.any() else ""
                cv2.imwrite(str(path / "masks" / file), mask * np.uint8(255)) if file else None
                lines.append(f"{image},{file},{name}")
            (path / f"{split}.csv").write_text("\n".join(lines) + "\n")
        else:
            ids = {image: number for number, image in enumerate(table)}
            sizes = {image: mask.shape for image, _, mask in masks}
            content = {
                "images": [{"id": k, "path": i, "height": sizes[i][0], "width": sizes[i][1]} for i, k in ids.items()],
                "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES)],
                "annotations": [
                    {"image_id": ids[image], "category_id": CLASSES.index(name), "bbox": box_around(mask)}
                    for image, name, mask in masks if mask.any()
                ],
            }  # fmt: skip
            (path / f"{split}.json").write_text(json.dumps(content))
    suffix = {"csv": "csv", "coco": "json"}[form]
    files = ["--truth", f"test.{suffix}", "--heatmaps", "test.npz"]
    files += ["--validation_truth", f"val.{suffix}", "--validation_heatmaps", "val.npz"]
    given = [str(path / name) if "." in name else name for name in files]
    how = ["--protocol", "chexlocalize", "--at", "original", "--bootstrap", "10", "--out", str(path / form)]
    assert main(["score", *given, *how]) == 0
    metrics = json.loads((path / form / "summary.json").read_text())["metrics"]
    if form == "csv":
        assert metrics == expected
    for name, table in expected["pointing"]["per_category"].items():  # COCO has no negatives, which it does not need
        assert metrics["pointing"]["per_category"][name]["mean"] == table["mean"]


def box_around(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


# Records


class Painter:
    """Stands for a model: its maps are made from the class that is asked for and the image."""

    batch_size = 3
    weights_sha256 = "ab" * 32
    config = SimpleNamespace(architecture=ModelSettings.read(get_config().model))

    def __init__(self, strength=1.5):
        self.strength = strength

    def heatmaps_of_pairs(self, images, rows, prompts, *, compatible=False):
        return np.stack([self.paint(images[row], prompt) for row, prompt in zip(rows, prompts, strict=True)])

    def heatmaps_of_squares(self, images, prompts, *, compatible=False):
        return self.heatmaps_of_pairs(images, np.arange(len(images)), prompts)

    def paint(self, image, prompt):
        kind = 1 + [name.lower() in prompt.lower() for name in CLASSES].index(True)
        return cv2.GaussianBlur((image == 60 * kind).astype(np.float32), (0, 0), 3 + kind) * self.strength + image / 900

    def untrained(self):
        return Painter(0.0)


def records_of(truth, maps, runs=True):
    """Records as the builder makes them: each finding is seen in the image as a grey value of its class."""
    records = []
    for name, of_image in maps.items():
        geometry = Geometry(*next(iter(of_image.values())).shape)
        image, findings = np.zeros((224, 224), np.uint8), []
        for kind, label in enumerate(CLASSES, 1):
            mask = truth.get(name, {}).get(label, np.zeros((1, 1), bool))
            if mask.any():
                square = geometry.mask_to_square(mask)
                image[square] = 60 * kind
                counts = run_lengths(mask) if runs else ""
                findings.append(Finding(label, label, encode_png(square), runs=counts))
        size = {"height": geometry.height, "width": geometry.width}
        records.append(Record(name, image, [], 0, name[:9], "frontal", findings=findings, **size))
    return records


@pytest.mark.parametrize("compatible", [False, True])
def test_records_score_as_the_files_that_they_were_made_from(folder, tmp_path, compatible):
    path, (val_truth, val_maps, _), (truth, maps, _) = folder
    validation, source = records_of(val_truth, val_maps), records_of(truth, maps)
    settings = LocalizationSettings(protocol="chexlocalize", compatible=compatible, at="original", bootstrap=10)
    summary = evaluate(Painter(), source, path / "evaluated", settings, validation_source=validation)
    assert summary["settings"]["at"] == summary["at"] == "original"
    for split, table, records in (("val", val_truth, validation), ("test", truth, source)):
        painted = {record.id: {name: Painter().paint(record.image, name) for name in CLASSES} for record in records}
        placed = {  # of images that the truth does not list a file of maps tells the size alone
            record.id: {name: record.geometry.map_to_original(m) for name, m in painted[record.id].items()}
            for record in records
        }
        write(path, split, table, placed)
    files = call(path, "--at", "original", *(["--compatible"] if compatible else []))
    assert summary["n"] == files["n"] == 3 * len(source)
    assert summary["operating_points"] == files["operating_points"]
    for metric, table in files["metrics"].items():
        means = {name: entry["mean"] for name, entry in table["per_category"].items()}
        ours = {name: entry["mean"] for name, entry in summary["metrics"][metric]["per_category"].items()}
        assert ours == pytest.approx(means, abs=1e-12)
    assert all(difference >= 0 for difference in differences(summary, "iou"))


def differences(summary, metric):
    """How much better the model is than each baseline, which is scored in the same pixels."""
    return [baseline["difference"][metric]["overall"]["mean"] for baseline in summary["baselines"].values()]


def test_records_without_original_masks_are_named(folder):
    path, (val_truth, val_maps, _), (truth, maps, _) = folder
    settings = LocalizationSettings(protocol="chexlocalize", at="original", bootstrap=10)
    old = records_of(truth, maps, runs=False)
    with pytest.raises(UserError, match="prepare them again"):
        evaluate(Painter(), old, path / "out", settings, validation_source=records_of(val_truth, val_maps))
    square = replace(settings, at=None)
    assert "at" not in square.recorded()
    assert evaluate(Painter(), old, path / "out", square, validation_source=old)["at"] == "square"


def test_compatible_scores_do_not_read_labels():
    """The official code takes every image without a mask for a negative."""
    record = records_of({}, {"a": {"Edema": np.zeros((30, 40))}, "b": {"Edema": np.zeros((30, 40))}})
    found = records_of({"c": {"Edema": np.eye(40) > 0}}, {"c": {"Edema": np.zeros((40, 40))}})
    source = [replace(record[0], labels={"edema": 1}), record[1], *found]
    asked = [
        [truth.image for truth in parts_of(get_protocol("chexlocalize", compatible=how), [source])[0].truths]
        for how in (False, True)
    ]
    assert asked == [["b", "c"], ["a", "b", "c"]]
