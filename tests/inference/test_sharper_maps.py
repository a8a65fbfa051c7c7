"""Sharpened maps and pruned prompts: from Python, by the command, in an evaluation."""

import json
import re

import cv2
import numpy as np
import pytest

from afloc_jax.cli import main
from afloc_jax.errors import UsageError
from afloc_jax.heatmaps import sharpened
from afloc_jax.inference.prompt_reading import read_prompt
from afloc_jax.inference.pruning import LEXICON, pruned
from data_pipelines.tokens import learn_tokenizer


@pytest.mark.parametrize(
    ("prompt", "kept", "dropped"),
    [
        ("small left pleural effusion", "left pleural effusion", ["small"]),
        ("mild to moderate edema", "edema", ["mild to moderate"]),
        ("right basal nodule is unchanged", "right basal nodule", ["is unchanged"]),
        ("new nodule. stable", "nodule. stable", ["new"]),  # a sentence of such words alone stays
        ("unchanged", "unchanged", []),
        ("renewed small-bowel gas", "renewed small-bowel gas", []),  # parts of words are no words
        ("there is a large left pneumothorax", "a left pneumothorax", ["there is", "large"]),
    ],
)
def test_pruning_drops_words_that_do_not_localise(prompt, kept, dropped):
    assert pruned(prompt) == (kept, tuple(dropped))


def test_the_lexicon_names_no_finding_side_or_zone():
    words = {line.strip() for line in LEXICON.read_text().splitlines() if line.strip() and line[0] != "#"}
    assert len(words) > 50 and words >= {"small", "mild", "unchanged"}
    finding = r"left|right|bilateral|upper|lower|middle|basal|apical|no|not|without|effusion|edema|nodule"
    assert not [word for word in words if re.search(rf"\b(?:{finding})\b", word)]


def test_a_reading_says_what_was_dropped():
    tokenizer = learn_tokenizer(["small left effusion"])
    reading = read_prompt("Small LEFT effusion.", tokenizer, 24, prune=True)
    assert (reading.text, reading.dropped) == ("left effusion", ("small",))
    assert reading.plain["dropped_words"] == ["small"]
    assert "dropped_words" not in read_prompt("Small LEFT effusion.", tokenizer, 24).plain


def test_pruned_prompts_and_sharpened_maps_from_python(model, pictures):
    square = model.square_of(pictures[0])[0]
    plain = model.localize([pictures[0]], ["small left effusion", "left effusion"])[0]
    asked = model.localize([pictures[0]], ["small left effusion"], sharpen=True, prune=True)[0][0]
    np.testing.assert_allclose(asked.square, sharpened(plain[1].square), rtol=1e-5, atol=1e-6)
    assert asked.prompt == "left effusion" and asked.given == "small left effusion"
    assert not np.array_equal(plain[0].square, plain[1].square)
    chosen = model.with_maps(sharpen=True, prune=True)
    np.testing.assert_allclose(chosen.heatmaps_of_squares(square[None], ["small left effusion"])[0], asked.square, 1e-5)
    assert chosen.untrained().heatmap_settings.sharpen and not model.heatmap_settings.sharpen and not model.prune
    assert chosen.with_maps(sharpen=False).heatmap_settings == model.heatmap_settings


def test_the_command_says_what_it_dropped_and_that_it_sharpened(folder, pictures, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), pictures[0])
    call = ["localize", str(folder), str(tmp_path / "a.png"), "--prompt", "small effusion", "--prompt", "edema"]
    assert main([*call, "--out", str(tmp_path / "plain")]) == 0
    assert main([*call, "--out", str(tmp_path / "out"), "--sharpen", "--prune"]) == 0
    plain, content = (json.loads((tmp_path / name / "localize.json").read_text()) for name in ("plain", "out"))
    assert (plain["sharpen"], plain["prune"], content["sharpen"], content["prune"]) == (False, False, True, True)
    first, second = content["images"][0]["prompts"]
    assert (first["given"], first["prompt"], first["dropped_words"]) == ("small effusion", "effusion", ["small"])
    assert "dropped_words" not in second
    plain_map, map = (np.load(tmp_path / name / "a.1.heatmap.npy") for name in ("plain", "out"))
    assert np.unravel_index(map.argmax(), map.shape) == np.unravel_index(plain_map.argmax(), map.shape)
    assert not np.allclose(map, plain_map)


def test_windows_are_joined_by_their_mean(model):
    side, rng = model.image_size, np.random.default_rng(5)
    square = cv2.resize(rng.integers(0, 256, (40, 40), dtype=np.uint8), (2 * side, 2 * side))
    total, times = np.zeros((2 * side, 2 * side)), np.zeros((2 * side, 2 * side))
    for y in (0, side // 2, side):
        for x in (0, side // 2, side):
            here = slice(y, y + side), slice(x, x + side)
            total[here] += model.heatmaps_of_squares(square[None, *here], ["edema"])[0]
            times[here] += 1
    chosen = model.with_maps(windows=3)
    found = chosen.heatmaps_of_pairs(square[None], np.array([0, 0]), ["nodule", "edema"])
    np.testing.assert_allclose(found[1], total / times, rtol=1e-4, atol=1e-5)
    small = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)
    assert chosen.heatmaps_of_squares(small[None], ["edema"]).shape == (1, side, side)
    sharp = chosen.with_maps(sharpen=True).heatmaps_of_squares(square[None], ["edema"])[0]
    np.testing.assert_allclose(sharp, sharpened(found[1]), rtol=1e-4, atol=1e-5)


def test_windows_are_cut_from_the_image_itself_and_boxes_come_back(model, pictures):
    (found,) = model.localize([pictures[2]], ["edema"], windows=3)[0]
    assert found.square.shape == (448, 448) and found.geometry.side == 448 and found.heatmap.shape == (300, 41)
    boxes = found.boxes
    assert ((boxes[:, :2] >= 0) & (boxes[:, :2] + boxes[:, 2:] <= (41, 300))).all()
    plain = model.localize([pictures[2]], ["edema"])[0][0]
    assert found.similarity == pytest.approx(plain.similarity, abs=0.05), "that of the whole image"
    for wrong in (0, 10):
        with pytest.raises(UsageError, match="windows per side"):
            model.with_maps(windows=wrong)
