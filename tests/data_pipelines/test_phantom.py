"""The built-in data set: reproducible, its masks exact, its reports true, its findings spread over the chest."""

import re
from collections import Counter, defaultdict
from functools import cache

import cv2
import numpy as np
import pytest

from afloc_jax.errors import UsageError, UserError
from data_pipelines.builders.phantom import CATEGORIES, Phantom, generate
from data_pipelines.builders.phantom.anatomy import heart_silhouette
from data_pipelines.builders.phantom.contact_sheet import main as contact_sheet
from data_pipelines.builders.phantom.findings import KINDS
from data_pipelines.builders.phantom.generate import draw
from data_pipelines.builders.phantom.phantom_dataset_builder import Builder
from data_pipelines.builders.phantom.render import render
from data_pipelines.builders.phantom.reporting import describe, prompt

COUNT = 300


@cache
def phantoms(split: str = "train", named: float = 0.0) -> list[Phantom]:
    return [generate(7, split, index, named) for index in range(COUNT)]


def test_the_same_arguments_give_the_same_bits():
    first, second = generate(3, "test", 11), generate(3, "test", 11)
    np.testing.assert_array_equal(first.image, second.image)
    assert first.sentences == second.sentences
    assert first.impression_count == second.impression_count
    for one, other in zip(first.findings, second.findings, strict=True):
        assert one.prompt == other.prompt
        np.testing.assert_array_equal(one.mask, other.mask)


def test_seed_split_and_index_each_change_the_phantom():
    images = [generate(*key).image for key in ((0, "train", 0), (1, "train", 0), (0, "test", 0), (0, "train", 1))]
    for i, one in enumerate(images):
        for other in images[:i]:
            assert np.abs(one.astype(int) - other).mean() > 5


@pytest.mark.parametrize("key", [(0, "exam", 0), (-1, "train", 0), (0, "train", -1)])
def test_an_impossible_phantom_is_refused(key):
    with pytest.raises(ValueError, match=r"split|negative"):
        generate(*key)


def test_images_and_masks_have_the_stored_shape_and_use_the_range_of_grey():
    for phantom in phantoms()[:60]:
        assert phantom.image.shape == (224, 224)
        assert phantom.image.dtype == np.uint8
        assert phantom.view in ("PA", "AP")
        low, high = np.percentile(phantom.image, (2, 98))
        assert high - low > 120
        for finding in phantom.findings:
            assert finding.mask.shape == (224, 224)
            assert finding.mask.dtype == bool
            assert finding.mask.sum() >= 40


def test_findings_are_balanced_and_some_chests_are_normal():
    counts = Counter(len(phantom.findings) for phantom in phantoms())
    assert set(counts) == {0, 1, 2, 3}
    assert 0.06 < counts[0] / COUNT < 0.2
    labels = Counter(finding.label for phantom in phantoms() for finding in phantom.findings)
    assert set(labels) == set(CATEGORIES)
    assert min(labels.values()) > 0.6 * max(labels.values())


@pytest.mark.parametrize("label", CATEGORIES)
def test_a_finding_changes_the_pixels_of_its_mask_and_hardly_any_other(label):
    """The same chest drawn with and without the finding, same exposure and noise."""
    inside_share, inside_change = [], []
    for index in range(12):
        chest, _, _ = draw(11, "train", index)
        chest.heart = normal_heart = heart_silhouette(chest, chest.heart_ratio)
        change = KINDS[label](chest, np.random.default_rng(index))
        if change.contrast < 0.085:  # too faint: such findings are never used
            continue
        without = render(chest, [], np.random.default_rng(5)).astype(int)
        chest.heart = normal_heart if change.heart is None else change.heart
        difference = np.abs(render(chest, [change], np.random.default_rng(5)).astype(int) - without).astype(float)
        near = cv2.dilate(change.mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        inside_share.append(difference[near].sum() / difference.sum())
        inside_change.append(difference[change.mask].mean() / (difference[~near].mean() + 0.1))
    assert len(inside_share) >= 6
    # edge enhancement spreads a little of every change; the outer haze of an edema lies below the mask's threshold
    assert np.mean(inside_share) > (0.6 if label == "edema" else 0.72)
    assert np.median(inside_change) > 4


def test_the_side_in_the_words_is_the_side_in_the_picture():
    checked = 0
    for phantom in phantoms():
        for finding in phantom.findings:
            if finding.side not in ("left", "right"):
                continue
            checked += 1
            assert finding.side in finding.prompt.split()
            # devices have wires that cross the midline: their bulk decides
            body = (
                cv2.erode(finding.mask.astype(np.uint8), np.ones((5, 5))) if finding.label == "device" else finding.mask
            )
            x = np.nonzero(body)[1].mean()
            assert (x > 112) == (finding.side == "left") or abs(x - 112) < 14, finding.prompt
    assert checked > 250


def test_upper_findings_lie_above_lower_ones():
    heights = defaultdict(list)
    for phantom in phantoms():
        for finding in phantom.findings:
            if finding.label in ("nodule", "atelectasis", "consolidation"):
                heights[finding.zone].append(np.nonzero(finding.mask)[0].mean())
    assert np.mean(heights["upper"]) + 25 < np.mean(heights["mid"]) < np.mean(heights["lower"]) - 25


CLAIMS = {  # words that assert a category, in any sentence that does not deny it
    "pleural effusion": r"effusion|pleural fluid|blunting",
    "pneumothorax": r"pneumothorax|pleural line",
    "consolidation": r"consolidation|airspace opacity|pneumonia",
    "nodule": r"\bnodule|nodular|rounded density|\bmass\b",
    "cardiomegaly": r"cardiomegaly|enlarged|enlargement",
    "atelectasis": r"atelectasis",
    "edema": r"edema|septal lines",
    "device": r"pacemaker|\bport\b|\bdevice\b",
}
DENIALS = CLAIMS | {
    "pleural effusion": CLAIMS["pleural effusion"] + r"|costophrenic angles are clear",
    "cardiomegaly": CLAIMS["cardiomegaly"] + r"|heart size is normal|heart is normal|normal cardiac silhouette",
    "edema": CLAIMS["edema"] + r"|vascularity is normal",
}
DENYING = r"^(no|there is no)\b|are clear$|is normal|normal in size|^normal "
LUNG_DISEASE = {"pleural effusion", "pneumothorax", "consolidation", "nodule", "atelectasis", "edema"}


def test_reports_say_exactly_what_is_there():
    for phantom in phantoms() + phantoms("test", named=1.0):
        present = {finding.label for finding in phantom.findings}
        asserted, denied = set(), set()
        for sentence in phantom.sentences:
            negative = re.search(DENYING, sentence) is not None
            for label, pattern in (DENIALS if negative else CLAIMS).items():
                if re.search(pattern, sentence):
                    (denied if negative else asserted).add(label)
        assert asserted == present
        assert not denied & present
        text = " | ".join(phantom.sentences)
        if re.search(r"lungs are clear|expanded and clear", text):
            assert not present & LUNG_DISEASE
        if re.search("normal chest|no acute finding|no acute cardiopulmonary", text):
            assert not present


def test_sentences_about_a_finding_name_its_side_and_never_the_other():
    for phantom in phantoms():
        for side, other in (("left", "right"), ("right", "left")):
            sides = {finding.side for finding in phantom.findings if finding.label not in ("cardiomegaly",)}
            if sides == {side}:
                words = set(" ".join(phantom.sentences).split())
                assert side in words
                assert other not in words


def test_findings_that_are_also_named_alone_change_nothing_else():
    facts = r"\b(right|left|bilateral|upper|mid|lower|apical|lateral|basal|perihilar|retrocardiac|\d+)\b"
    facts += r"|\b(small|moderate|large|mild|severe|short|long)\b"
    seen, findings = 0, 0
    for index in range(60):
        plain, half, every = (generate(7, "train", index, named) for named in (0.0, 0.5, 1.0))
        np.testing.assert_array_equal(plain.image, every.image)
        assert [finding.prompt for finding in plain.findings] == [finding.prompt for finding in every.findings]
        for one, other in zip(plain.findings, every.findings, strict=True):
            np.testing.assert_array_equal(one.mask, other.mask)
        assert plain.impression_count == every.impression_count
        assert not Counter(plain.sentences) - Counter(half.sentences)
        alone = Counter(every.sentences) - Counter(plain.sentences)
        assert alone.total() == len(plain.findings) and not re.search(facts, " | ".join(alone))
        seen, findings = seen + len(half.sentences) - len(plain.sentences), findings + len(plain.findings)
    assert 0.35 < seen / findings < 0.65


def test_sentences_are_clean_and_the_impression_leads():
    counts = set()
    for phantom in phantoms() + phantoms(named=1.0):
        assert len(phantom.sentences) >= 2
        assert 0 <= phantom.impression_count <= 2
        counts.add(phantom.impression_count)
        for sentence in phantom.sentences + [finding.prompt for finding in phantom.findings]:
            assert re.fullmatch(r"[a-z0-9]+( [a-z0-9]+)+", sentence), sentence
        prompts = [finding.prompt for finding in phantom.findings]
        for sentence in phantom.sentences[: phantom.impression_count]:
            assert not prompts or any(words in sentence for words in prompts)
    assert counts == {0, 1, 2}


def test_the_vocabulary_is_rich_but_finite():
    words = {word for phantom in phantoms() + phantoms("test") for s in phantom.sentences for word in s.split()}
    assert 120 <= len(words) <= 250
    prompts = {finding.prompt for phantom in phantoms() for finding in phantom.findings}
    assert len(prompts) > 60
    assert words.issuperset({word for text in prompts for word in text.split()})


def test_one_finding_is_said_in_many_ways_and_asked_for_in_one():
    chest, _, _ = draw(0, "train", 0)
    change = KINDS["pneumothorax"](chest, np.random.default_rng(0))
    assert len({describe(change, np.random.default_rng(i)) for i in range(60)}) >= 4
    assert prompt(change) == prompt(change)
    assert "pneumothorax" in prompt(change)


def test_where_a_category_usually_is_does_not_say_where_it_is():
    """Pointing game of the mean training mask of each category: its maximum inside the mask of unseen phantoms."""
    masks = defaultdict(list)
    for phantom in phantoms():
        for finding in phantom.findings:
            masks[finding.label].append(finding.mask)
    hits = defaultdict(list)
    best = {label: np.argmax(np.mean(found, axis=0)) for label, found in masks.items()}
    for phantom in phantoms("test"):
        for finding in phantom.findings:
            hits[finding.label].append(finding.mask.flat[best[finding.label]])
    pointing = {label: float(np.mean(found)) for label, found in hits.items()}
    assert np.mean(list(pointing.values())) < 0.40, pointing
    assert max(pointing["nodule"], pointing["atelectasis"]) < 0.15


def test_findings_have_the_sizes_of_real_ones():
    areas = defaultdict(list)
    for phantom in phantoms():
        for finding in phantom.findings:
            areas[finding.label].append(int(finding.mask.sum()))
    nodule_radius = np.sqrt(np.array(areas["nodule"]) / np.pi)
    assert 3.5 < nodule_radius.min() < nodule_radius.max() < 13.5
    assert np.median(areas["atelectasis"]) < 0.008 * 224**2
    assert np.median(areas["pneumothorax"]) < 0.04 * 224**2


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    builder = Builder(data_dir=folder, train=12, validation=4, test=4, seed=5)
    builder.download_and_prepare()
    return folder, builder


def test_records_on_disk_are_the_phantoms(prepared):
    _, builder = prepared
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 12,
        "validation": 4,
        "test": 4,
    }
    seen = set()
    for split in ("train", "validation", "test"):
        source = builder.as_data_source(split)
        for index in range(len(source)):
            record, phantom = source[index], generate(5, split, index)
            image = np.frombuffer(record["image"], np.uint8).reshape(record["image_size"], -1)
            np.testing.assert_array_equal(image, phantom.image)
            assert [sentence.decode() for sentence in record["sentences"]] == phantom.sentences
            assert record["impression_count"] == phantom.impression_count
            found = record["findings"]
            assert [text.decode() for text in found["prompt"]] == [finding.prompt for finding in phantom.findings]
            assert [text.decode() for text in found["label"]] == [finding.label for finding in phantom.findings]
            for data, finding in zip(found["mask"], phantom.findings, strict=True):
                mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
                np.testing.assert_array_equal(mask, finding.mask * np.uint8(255))
            labels = zip(record["labels"]["name"], record["labels"]["value"], strict=True)
            present = {finding.label for finding in phantom.findings}
            assert {name.decode(): value for name, value in labels} == {kind: int(kind in present) for kind in KINDS}
            seen.add(record["patient"])
            assert record["id"]
    assert len(seen) == 20  # no patient twice, in whatever split


def test_records_made_with_other_arguments_are_not_taken_for_these(prepared):
    folder, _ = prepared
    assert Builder(data_dir=folder, train=12, validation=4, test=4, seed=5).info.splits["train"].num_examples == 12
    with pytest.raises(UserError, match=r"train=12.*train=13"):
        Builder(data_dir=folder, train=13, validation=4, test=4, seed=5)
    with pytest.raises(UserError, match=r"not with .*named=0.5"):
        Builder(data_dir=folder, train=12, validation=4, test=4, seed=5, named=0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": -1},
        {"seed": -2},
        {"train": 0, "validation": 0, "test": 0},
        {"image_size": 256},
        {"workers": 0},
        {"named": 1.5},
    ],
)
def test_impossible_arguments_are_refused_before_any_work(tmp_path, wrong):
    with pytest.raises(UsageError, match="phantom:"):
        Builder(data_dir=tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_worker_processes_draw_what_one_process_draws(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipelines.builders.phantom.phantom_dataset_builder._WORTH_A_POOL", 1)
    monkeypatch.setattr("data_pipelines.builders.phantom.phantom_dataset_builder._CHUNK", 3)
    builder = Builder(data_dir=tmp_path, train=8, validation=0, test=2, seed=5, named=1, workers=2)
    builder.download_and_prepare()
    assert set(builder.info.splits) == {"train", "test"}
    for split, size in (("train", 8), ("test", 2)):
        source = builder.as_data_source(split)
        assert len(source) == size
        for index in range(size):
            drawn = generate(5, split, index, named=1.0)
            assert source[index]["image"] == drawn.image.tobytes()
            assert [sentence.decode() for sentence in source[index]["sentences"]] == drawn.sentences


def test_the_contact_sheet_shows_every_tile(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert contact_sheet(["--out", str(out), "--count", "5", "--columns", "3"]) == 0
    picture = cv2.imread(str(out))
    assert picture.shape[1] == 3 * 336
    assert picture[:336].std() > 30
    assert contact_sheet(["--out", str(tmp_path / "no" / "sheet.png"), "--count", "1"]) == 1
    assert "cannot write" in capsys.readouterr().err
