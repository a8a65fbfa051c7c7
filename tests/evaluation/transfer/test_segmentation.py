"""The segmentation probe against scikit-learn, OpenCV and plain NumPy, and from records to the page."""

import csv
import dataclasses

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.comparison.compare import compare
from afloc_jax.evaluation.page import write_report
from afloc_jax.evaluation.task import Models
from afloc_jax.evaluation.transfer.evaluate import evaluate_transfer
from afloc_jax.evaluation.transfer.segmentation import THRESHOLDS, Part, cell_losses, masks_of
from afloc_jax.evaluation.transfer.settings import PENALTIES, TransferSettings
from afloc_jax.evaluation.transfer.splits import TEST, TRAIN, VALIDATION, read_splits
from afloc_jax.heatmaps import cell_means, upsample
from data_pipelines.records import Finding, Record
from tests.evaluation.discs import Checker
from tests.inference.conftest import folder, model  # noqa: F401 (fixtures)

SIDE = 64
CLASSES = ("edema", "nodule")


def png(mask):
    return cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes()


def films(count, seed):
    """Squares with bright rectangles, of which those in the left half are edema and the others nodules."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        image, findings = rng.integers(0, 60, (SIDE, SIDE), dtype=np.uint8), []
        for label, left in (("Edema", 0), ("nodule", SIDE // 2)):
            if rng.random() < 0.7 or number == 0:
                y, x = rng.integers(0, 30), left + rng.integers(0, 8)
                mask = np.zeros((SIDE, SIDE), bool)
                mask[y : y + rng.integers(14, 30), x : x + rng.integers(12, 22)] = True
                image[mask] += np.uint8(120)
                findings.append(Finding(label, f"a {label}", png(mask)))
        patient = f"patient{seed}_{number // 2}"
        made.append(Record(f"film{seed}_{number}", image, [], 0, patient, "PA", SIDE, SIDE, findings))
    unseen = {"edema": 1, "nodule": 0}  # edema without a mask
    made[1] = dataclasses.replace(made[1], findings=[], labels=unseen)
    return [dataclasses.replace(film, labels=film.labels or labels_of(film)) for film in made]


def labels_of(film):
    shown = {finding.label.lower() for finding in film.findings}
    return {name: int(name in shown) for name in CLASSES}


@pytest.fixture(scope="module")
def sources():
    return {TRAIN: films(16, 1), VALIDATION: films(8, 2), TEST: films(12, 3)}


@pytest.fixture(scope="module")
def settings():
    return TransferSettings(name="films", target="masks", fractions=(0.5, 1.0), bootstrap=50, cells=10**6)


@pytest.fixture(scope="module")
def result(model, sources, settings, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("masks")
    return out, evaluate_transfer(Models(lambda: model), read_splits(sources, settings), out, settings)


def scores_of(out, head):
    with open(out / head / "per_sample.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {(row["metric"], row["category"], row["id"]): (float(row["value"]), row["threshold"]) for row in rows}


def test_means_of_cells_are_the_transpose_of_the_upsampling():
    rng = np.random.default_rng(0)
    cells, mask = rng.normal(size=(4, 4)), rng.random((32, 32)) < 0.3
    for input_size in (None, 16):  # equal tiles, and cells centred on a stride of 4
        weights = np.array(
            [[np.asarray(upsample(one.reshape(4, 4), 32, input_size)).sum() for one in np.eye(16)]]
        ).reshape(4, 4)
        found = cell_means(mask, (4, 4), input_size)
        expected = (np.asarray(upsample(cells, 32, input_size)) * mask).sum()
        assert (cells * weights * found).sum() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(cell_means(np.ones((2, 9, 9)), (3, 3)), 1)


def test_scores_are_those_of_a_plain_reference(model, sources, settings, result):  # noqa: F811
    """Logistic regression by scikit-learn on cells of which a share is positive, OpenCV's bilinear maps, counts."""
    out, found = result
    deep = {p: model.backbone_features(np.stack([f.image for f in s]), ("deep",))["deep"] for p, s in sources.items()}
    grid = deep[TRAIN].shape[1]
    assert model.heatmap_settings.cells == "tiles" and SIDE % grid == 0
    x = deep[TRAIN].reshape(-1, deep[TRAIN].shape[-1]).astype(np.float64)
    mean, scale = x.mean(axis=0), np.where(x.std(axis=0) > 1e-6 * x.std(axis=0).max(), x.std(axis=0), 1)
    ones = np.ones((SIDE, SIDE), np.float32)
    for c, name in enumerate(CLASSES):
        known = np.array([not (name == "edema" and i == 1) for i in range(len(sources[TRAIN]))])
        shares = []
        for film in sources[TRAIN]:
            mask, cells = masks_of(film, CLASSES)[c].astype(np.float64), np.zeros((grid, grid))
            for y in range(grid):  # each cell by the map that it alone makes
                for k in range(grid):
                    one = np.zeros((grid, grid), np.float32)
                    one[y, k] = 1
                    weight = cv2.resize(one, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
                    cells[y, k] = (weight * mask).sum() / (weight * ones).sum()
            shares.append(cells.ravel())
        rows, share = np.repeat(known, grid * grid), np.concatenate(shares)
        of = (x[rows] - mean) / scale
        penalty = found.chosen["model"]["100pct"]["penalty"]
        fit = LogisticRegression(C=1 / (penalty * len(of)), tol=1e-10, max_iter=10_000)
        weights = np.concatenate([share[rows], 1 - share[rows]])
        fit.fit(np.tile(of, (2, 1)), np.repeat([1, 0], len(of)), sample_weight=weights)
        logits = (deep[TEST] - mean) / scale @ fit.coef_[0] + fit.intercept_[0]
        scored = scores_of(out, "model_100pct")
        for i, film in enumerate(sources[TEST]):
            mask = masks_of(film, CLASSES)[c]
            assert (("dice", name, film.id) in scored) == mask.any()
            if mask.any():
                value, threshold = scored["dice", name, film.id]
                p = 1 / (1 + np.exp(-cv2.resize(logits[i], (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)))
                drawn = p > float(threshold)
                assert value == pytest.approx(2 * (drawn & mask).sum() / (drawn.sum() + mask.sum()), abs=0.02)
                overlap = (drawn & mask).sum() / (drawn | mask).sum()
                assert scored["iou", name, film.id][0] == pytest.approx(overlap, abs=0.02)


def test_validation_chooses_by_the_loss_of_cells_and_thresholds_by_dice(model, sources, settings, result):  # noqa: F811
    _, found = result
    splits = read_splits(sources, settings)
    part = Part.of(model, splits, VALIDATION)
    logits = np.random.default_rng(0).normal(size=(8, 2, 2, 4, 4)).astype(np.float32)
    expected = np.zeros(2)
    for h in range(2):
        for c in range(2):
            each = []
            for i, film in enumerate(sources[VALIDATION]):
                if np.isfinite(splits.labelled[VALIDATION].labels[i, c]):
                    p, t = 1 / (1 + np.exp(-logits[i, h, c])), cell_means(masks_of(film, CLASSES)[c], (4, 4))
                    each.append(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())
            expected[h] += np.mean(each) / 2
    np.testing.assert_allclose(cell_losses(logits, part), expected, rtol=1e-5)
    for of in found.chosen.values():
        for chosen in of.values():
            assert chosen["penalty"] in PENALTIES and 0 < chosen["validation Dice"] <= 1
            assert all(float(value) in THRESHOLDS for value in chosen["thresholds"].split(", "))


def test_intervals_draw_patients_and_the_model_is_compared_with_random_weights(result):
    out, found = result
    assert set(found.metrics) == {f"{metric} {share}" for metric in ("dice", "iou") for share in ("50pct", "100pct")}
    assert found.account.bootstrap["unit"] == "patient" and found.target == "masks"
    assert found.n_per_category == {"edema": 11, "nodule": 12}  # edema without a mask is unknown
    for system, metrics in found.systems.items():
        scored = scores_of(out, f"{system}_100pct")
        for name in CLASSES:
            values = [value for key, (value, _) in scored.items() if key[:2] == ("iou", name)]
            assert len(values) == found.positives[name]
            assert metrics["iou 100pct"].per_category[name].mean == pytest.approx(np.mean(values))
        overall = metrics["iou 100pct"].overall
        assert overall.lower < overall.mean < overall.upper
    difference = (
        found.metrics["dice 100pct"].overall.mean - found.baselines["untrained"].metrics["dice 100pct"].overall.mean
    )
    assert found.differences["dice 100pct"].overall.mean == pytest.approx(difference)
    assert found.metrics["dice 100pct"].overall.mean > 0.5  # bright rectangles can be seen with random weights


def test_the_page_and_compare_show_them(result, tmp_path):
    out, found = result
    page, checker = write_report(out).read_text(), Checker()
    checker.feed(page)
    assert checker.open == [] and "1 x 1 convolution" in page and "Dice, 50 %" in page
    assert f"{found.metrics['iou 100pct'].overall.mean:.3f}" in page
    compared = compare(out / "model_50pct", out / "model_100pct")
    assert {row.metric for row in compared.rows} == {"dice", "iou"}


def test_cells_are_drawn_of_each_record_and_do_not_depend_on_the_others(model, sources, settings):  # noqa: F811
    splits = read_splits(sources, settings)
    part = Part.of(model, splits, TRAIN)
    every, shares = part.learned(10**6, 0)
    grid = len(every) // 16
    few, few_shares = part.learned(16 * 5, 0)
    assert few.shape == (80, every.shape[1]) and few_shares.shape == (80, 2)
    at = np.sort(np.random.default_rng((0, 3)).permutation(grid)[:5])
    np.testing.assert_array_equal(few[15:20], every[3 * grid : 4 * grid][at])
    np.testing.assert_array_equal(few_shares[15:20], shares[3 * grid : 4 * grid][at])
    alone = Part.of(model, splits, TRAIN, np.array([3])).learned(5, 0)
    np.testing.assert_allclose(alone[0], few[15:20], atol=1e-6)
    assert np.isnan(shares[grid : 2 * grid, 0]).all() and not np.isnan(shares[:, 1]).any()


def test_masks_that_cannot_be_learned_are_refused_in_one_line(sources, settings):
    bare = {part: [dataclasses.replace(film, findings=[]) for film in some] for part, some in sources.items()}
    with pytest.raises(UserError, match="no class has a mask in each of train, validation, test"):
        read_splits(bare, settings)
    with pytest.raises(UserError, match="the test records hold no mask of 'nodule'; leave the class out"):
        read_splits({**sources, TEST: bare[TEST]}, dataclasses.replace(settings, classes=("nodule",)))
    [first, *others] = sources[TRAIN]
    lonely = [first, *(dataclasses.replace(film, findings=[], labels={"edema": 0, "nodule": 0}) for film in others)]
    shares = dataclasses.replace(settings, fractions=(0.1,), subset_seed=1)
    with pytest.raises(UserError, match=r"10 % of the labels .* hold no mask of 'edema'; take a larger share"):
        read_splits({**sources, TRAIN: lonely}, shares)
    with pytest.raises(UsageError, match="framing = 'crop': masks are those of padded squares"):
        TransferSettings(name="films", target="masks", framing="crop")
