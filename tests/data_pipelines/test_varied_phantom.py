"""Varied phantoms: reproducible, apart from the others, their masks exact and their reports true."""

import re
from functools import cache

import cv2
import numpy as np
import pytest

from afloc_jax.errors import UsageError, UserError
from data_pipelines.builders.phantom import Phantom, generate
from data_pipelines.builders.phantom.contact_sheet import main as contact_sheet
from data_pipelines.builders.phantom.film import compressed, framed, lettered, warp
from data_pipelines.builders.phantom.findings import KINDS, VARIED_KINDS
from data_pipelines.builders.phantom.generate import draw
from data_pipelines.builders.phantom.phantom_dataset_builder import Builder
from data_pipelines.builders.phantom.render import brightness

GROUND_GLASS = "ground glass opacity"


@cache
def phantoms() -> list[Phantom]:
    return [generate(7, "train", index, 0.5, varied=True) for index in range(150)]


def test_the_same_arguments_give_the_same_bits_and_others_than_without_variety():
    first, second = (generate(3, "test", 11, varied=True) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    assert first.sentences == second.sentences
    for one, other in zip(first.findings, second.findings, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
    assert np.abs(first.image.astype(int) - generate(3, "test", 11).image).mean() > 5


def test_films_differ_more_widely_than_those_of_the_other_phantoms():
    varied = np.stack([phantom.image for phantom in phantoms()]).astype(float)
    others = np.stack([generate(7, "train", index).image for index in range(60)]).astype(float)
    assert varied.shape[1:] == (224, 224) and phantoms()[0].image.dtype == np.uint8
    assert varied.std(axis=0).mean() > 1.3 * others.std(axis=0).mean()
    ranges = [np.ptp(np.percentile(image, (2, 98))) for image in varied]
    assert min(ranges) > 60


@pytest.mark.parametrize("label", [GROUND_GLASS, "consolidation"])
def test_an_opacity_brightens_its_mask_and_hardly_anything_else(label):
    inside, beyond = [], []
    for index in range(16):
        chest, _, _ = draw(11, "train", index, varied=True)
        change = VARIED_KINDS[label](chest, np.random.default_rng(index))
        difference = brightness(chest, [change]) - brightness(chest, [])
        near = cv2.dilate(change.mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        inside.append(difference[change.mask].mean())
        beyond.append(np.abs(difference[~near]).mean())
    assert min(inside) > 0.02
    assert np.mean(inside) > 20 * np.mean(beyond)


def test_ground_glass_leaves_vessels_to_be_seen_and_consolidation_does_not():
    kept = {GROUND_GLASS: [], "consolidation": []}
    for index in range(24):
        chest, _, _ = draw(11, "train", index, varied=True)
        for label, shares in kept.items():
            change = VARIED_KINDS[label](chest, np.random.default_rng(index))
            vessels = chest.vessels * (chest.vessels > 0.1)
            there = change.mask & (vessels > 0)
            if there.sum() > 30:
                bare = brightness(chest, [change])
                chest.vessels = chest.vessels - vessels
                shares.append((bare - brightness(chest, [change]))[there].mean() / vessels[there].mean())
                chest.vessels = chest.vessels + vessels
    assert np.mean(kept[GROUND_GLASS]) > 1.4 * np.mean(kept["consolidation"])


def test_reports_name_ground_glass_where_it_is_and_deny_it_only_where_it_is_not():
    named = denied = 0
    for phantom in phantoms():
        present = any(finding.label == GROUND_GLASS for finding in phantom.findings)
        said = [sentence for sentence in phantom.sentences if re.search(r"ground glass", sentence)]
        denials = [sentence for sentence in said if sentence.startswith("no ")]
        assert bool(denials) <= (not present)
        assert (len(said) > len(denials)) == present
        named, denied = named + present, denied + bool(denials)
    assert named > 30 and denied > 10


def test_the_side_and_the_height_in_the_words_are_those_in_the_picture():
    checked = 0
    for phantom in phantoms():
        for finding in phantom.findings:
            if finding.label not in (GROUND_GLASS, "consolidation"):
                continue
            columns = np.nonzero(finding.mask)[1]
            share = (columns > 112).mean()
            assert finding.side in finding.prompt
            if finding.side == "bilateral":
                assert 0.02 < share < 0.98, finding.prompt
            else:
                assert (share > 0.5) == (finding.side == "left"), finding.prompt
            assert finding.zone in ("upper", "mid", "lower", "retrocardiac")
            checked += 1
    assert checked > 60


def test_masks_are_bent_with_their_image():
    image = np.zeros((224, 224), np.float32)
    cv2.circle(image, (90, 120), 40, 1.0, -1)
    for seed in range(8):
        bent, mask = warp([image, image > 0.5], np.random.default_rng(seed))
        assert mask.dtype == bool
        assert ((bent > 0.5) ^ mask).mean() < 0.001
        assert abs(mask.sum() - (image > 0.5).sum()) < 0.4 * mask.sum()


def test_bars_do_not_reach_the_lungs_and_letters_stay_near_the_corners():
    lungs = np.zeros((224, 224), np.float32)
    lungs[40:180, 30:190] = 1
    image, bars = np.full((224, 224), 100, np.uint8), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        with_bars = framed(image, lungs, rng)
        assert (with_bars[lungs > 0] == 100).all()
        bars += (with_bars != 100).any()
        letters = lettered(image, rng)
        assert (letters[40:176, 90:150] == 100).all()
        assert np.abs(compressed(image, rng).astype(int) - 100).max() <= 2
    assert bars > 20
    assert (framed(image, np.zeros_like(lungs), np.random.default_rng(0)) == 100).all()


def test_records_hold_what_was_drawn_and_say_so(tmp_path):
    builder = Builder(data_dir=tmp_path, train=0, validation=0, test=5, seed=5, varied=1, workers=1)
    builder.download_and_prepare()
    assert dict(builder.info.metadata)["varied"] == 1
    source = builder.as_data_source("test")
    for index in range(5):
        drawn = generate(5, "test", index, varied=True)
        assert source[index]["image"] == drawn.image.tobytes()
        labels = zip(source[index]["labels"]["name"], source[index]["labels"]["value"], strict=True)
        present = {finding.label for finding in drawn.findings}
        assert {name.decode(): value for name, value in labels} == {kind: int(kind in present) for kind in VARIED_KINDS}
        assert source[index]["id"].decode() == f"phantom-varied-5-test-{index}"
    assert set(VARIED_KINDS) == {*KINDS, GROUND_GLASS}
    with pytest.raises(UserError, match=r"not with "):
        Builder(data_dir=tmp_path, train=0, validation=0, test=5, seed=5)
    with pytest.raises(UsageError, match="phantom: varied is 2, must be True or False"):
        Builder(data_dir=tmp_path, varied=2)


def test_the_contact_sheet_shows_them(tmp_path):
    assert contact_sheet(["--out", str(tmp_path / "sheet.png"), "--count", "2", "--columns", "2", "--varied"]) == 0
    assert cv2.imread(str(tmp_path / "sheet.png")).std() > 30
