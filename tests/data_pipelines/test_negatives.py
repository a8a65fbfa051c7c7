"""Hard negatives: false of their image, in words that the counterfactual task does not use, by seed and epoch."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from raw_folders import radiograph

import afloc_jax.evaluation.counterfactual
import data_pipelines
from afloc_jax.evaluation.counterfactual.rewriting import SIDES, ZONES, negate
from afloc_jax.inference.class_prompts import NEGATIVE
from data_pipelines.batches import training_batches, training_tokenizer
from data_pipelines.builders.phantom.generate import CATEGORIES, draw
from data_pipelines.builders.phantom.reporting import prompt, report
from data_pipelines.hashes import hash_of
from data_pipelines.negatives import Made, made_captions, negative_arrays, worded_alike
from data_pipelines.records import Record
from data_pipelines.settings import DataSettings
from data_pipelines.tokens import SentenceTokenizer, learn_tokenizer, tokenize
from data_pipelines.vocabulary import VocabularyRule

TRAINING = json.loads((Path(data_pipelines.__path__[0]) / "negatives.json").read_text())
TASK = json.loads((Path(afloc_jax.evaluation.counterfactual.__path__[0]) / "words.json").read_text())
# Words of a sentence of a phantom that tell its finding.
FINDINGS = {
    "pleural effusion": ("effusion", "pleural fluid"),
    "pneumothorax": ("pneumothorax",),
    "consolidation": ("consolidation", "airspace opacity", "pneumonia"),
    "nodule": ("nodul", "rounded density"),
    "cardiomegaly": ("cardiomegaly", "heart", "cardiac"),
    "atelectasis": ("atelectasis",),
    "edema": ("edema", "septal", "interstitial"),
    "device": ("pacemaker", "port"),
}


@pytest.fixture(scope="module")
def phantoms():
    """The findings, sentences and made captions of phantoms."""
    found = []
    for number in range(300):
        _, changes, rngs = draw(0, "train", number)
        sentences, _ = report(changes, rngs["report"])
        found.append((changes, sentences, made_captions(sentences, sentences, 3, np.random.default_rng(number))))
    return found


def all_made(phantoms):
    """`(findings, sentence, what was made from it)` of every change."""
    return [
        (changes, sentence, made)
        for changes, sentences, captions in phantoms
        for caption in captions
        for sentence, made in zip(sentences, caption, strict=True)
        if isinstance(made, Made)
    ]


@pytest.mark.parametrize(
    ("sentence", "rest", "expected"),
    [
        ("small left effusion", (), {"small effusion on the right", "there is no small left effusion"}),
        ("opacity in the left upper zone", (), {"opacity in the right upper zone"}),
        ("small left effusion", ("large right effusion",), {"there is no small left effusion"}),
        ("small left effusion", ("effusions on both sides",), {"there is no small left effusion"}),
        ("small left effusion", ("small left effusion with blunting",), {"small effusion on the right"}),
        ("no pneumothorax", (), {"there is pneumothorax", "pneumothorax is seen"}),
        ("no pneumothorax", ("tiny apical pneumothorax",), set()),
        ("no pneumothorax", ("pneumothorax is seen",), set()),
        ("enlarged left ventricle", (), {"there is no enlarged left ventricle"}),
        ("bilateral effusions", (), {"no evidence of bilateral effusions"}),
        ("the trachea is midline", (), set()),
        ("heart size is normal", (), set()),
        ("no change in the left effusion", (), set()),
    ],
)
def test_rules(sentence, rest, expected):
    """`expected`: some of what is made, or, where it is empty, all of it; never what `rest` of the report states."""
    captions = made_captions([sentence], [sentence, *rest], 9, np.random.default_rng(0))
    made = {caption[0].text for caption in captions if isinstance(caption[0], Made)}
    assert expected <= made if expected else not made
    sides = {text for text in made if "on the right" in text or "right upper" in text}
    assert sides == {text for text in expected if "right" in text}


def test_what_is_made_is_false_of_the_phantom(phantoms):
    kinds = set()
    for changes, sentence, made in all_made(phantoms):
        kinds.add(made.kind)
        label = next((label for label, words in FINDINGS.items() if any(word in made.text for word in words)), None)
        assert made.text != sentence
        if made.kind == "side":
            side = "left" if "left" in made.text.split() else "right"
            true = any(change.label == label and change.side in (side, "bilateral") for change in changes)
        else:
            there = any(change.label == label for change in changes)
            true = there == (made.kind == "absent")
        assert not true, (sentence, made)
    assert kinds == {"side", "negated", "absent"} and set(FINDINGS) == set(CATEGORIES)


def test_wordings_are_not_those_of_the_counterfactual_task():
    """The wordings that training sees, and those that the task writes."""
    trained = {*TRAINING["side"]["in_place"], *TRAINING["side"]["moved"], *TRAINING["negated"], *TRAINING["absent"]}
    words = {wording.format(side) for wording in trained for side in ("left", "right")}
    asked = {word for name in ("side", "zone") for pair in TASK[name]["pairs"] for word in pair}
    asked |= {f"{verb} not" for verb in TASK["negation"]["negatable"]}
    assert not words & asked
    assert NEGATIVE.replace("{class}", "{}").strip(" .") not in trained
    assert "zone" in TASK and "zone" not in TRAINING


def test_no_prompt_of_the_counterfactual_task_is_trained_on(phantoms):
    prompts = {prompt(change) for changes, _, _ in phantoms for change in changes}
    asked = {rewritten.text for text in prompts for rewritten in (SIDES.other(text), ZONES.other(text), negate(text))}
    asked |= prompts | set(CATEGORIES)
    made = {made.text for _, _, made in all_made(phantoms)}
    rng = np.random.default_rng(0)
    for _, sentences, _ in phantoms:
        made |= set(worded_alike(sentences, rng)) - set(sentences)
    assert len(asked) > 100 and len(made) > 1000 and not asked & made


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("small left effusion", {"small effusion on the left"}),
        ("there is a nodule in the left upper zone", {"is seen", "there is nodule in the left upper zone"}),
        ("no pneumothorax", {"there is no pneumothorax", "no evidence of pneumothorax", "without pneumothorax"}),
        ("bilateral effusions", {"there is bilateral effusions", "bilateral effusions is seen"}),
        ("the trachea is midline", set()),
    ],
)
def test_half_of_what_is_true_is_worded_like_what_is_false(sentence, expected):
    """So that the image has to tell them apart: the same words, but for the side, or for what is denied."""
    rng = np.random.default_rng(0)
    read = Counter(worded_alike([sentence], rng)[0] for _ in range(300))
    assert all(any(words in text for text in read) for words in expected)
    assert read[sentence] == 300 if not expected else 120 < read[sentence] < 180
    assert len(worded_alike([sentence, "x"], rng)) == 2


def test_the_zone_is_never_changed(phantoms):
    zones = {word for pair in TASK["zone"]["pairs"] for word in pair}
    for _, sentence, made in all_made(phantoms):
        assert zones & set(made.text.split()) == zones & set(sentence.split())


def test_captions_of_one_report_differ_and_the_first_has_all_kinds(phantoms):
    first = {
        caption[place].kind
        for _, _, captions in phantoms
        for caption in captions[:1]
        for place in range(len(caption))
        if isinstance(caption[place], Made)
    }
    assert first == {"side", "negated", "absent"}
    for _, sentences, captions in phantoms:
        for place in range(len(sentences)):
            made = [caption[place].text for caption in captions if isinstance(caption[place], Made)]
            assert len(set(made)) == len(made)


def test_arrays_are_the_tokens_of_the_made_captions_with_hashes_of_what_was_changed():
    texts = [["small left effusion", "the trachea is midline"], ["no pneumothorax"]]
    tokenizer = learn_tokenizer(" ".join(report) for report in [*texts, ["there is on the right without evidence of"]])
    captions = [made_captions(report, report, 2, np.random.default_rng(0)) for report in texts]
    arrays = negative_arrays(captions, SentenceTokenizer(tokenizer, 24), 24)
    for i, made in enumerate(captions):
        for m, caption in enumerate(made):
            read = ". ".join(sentence.text if isinstance(sentence, Made) else sentence for sentence in caption)
            for name, expected in tokenize(tokenizer, [read], 24).items():
                np.testing.assert_array_equal(arrays[f"negative_{name}"][i, m], expected[0])
            hashes = np.zeros((11, 2, 2), np.uint32)
            hashes[0] = hash_of(caption[0].text), hash_of(caption[0].plain)
            np.testing.assert_array_equal(arrays["negative_hashes"][i, m], hashes)


def test_a_sentence_that_is_cut_is_no_negative():
    """ "effusion on the right" cut before its side would be true."""
    sentences = ["small left effusion", "large left nodule"]
    tokenizer = learn_tokenizer([*sentences, "on the right", "there is no evidence of without"])
    for slots in range(4, 24):
        captions = [made_captions(sentences, sentences, 2, np.random.default_rng(1))]
        arrays = negative_arrays(captions, SentenceTokenizer(tokenizer, slots), slots)
        for caption, hashes in zip(captions[0], arrays["negative_hashes"][0], strict=True):
            ends = np.cumsum([len(tokenizer.encode(made.text, add_special_tokens=False).ids) + 1 for made in caption])
            kept = hashes.any(axis=(-2, -1))
            for place, end in enumerate(ends[: len(kept)]):
                fits = end < slots  # [CLS], all its pieces, and one that follows
                assert bool(kept[place]) <= fits, (slots, place)
                assert bool(kept[place]) or end >= slots - 2


def test_negatives_follow_from_seed_epoch_and_record():
    source = [
        Record(str(n), radiograph(n, 32, 32), ["small left effusion", "no pneumothorax"], 0, "", "", 32, 32, [])
        for n in range(20)
    ]
    tokenizer = training_tokenizer(source, rule=VocabularyRule(1, 1))

    def batches(number, seed=1, **processes):
        data = DataSettings(max_tokens=32)
        return training_batches(source, data, tokenizer, batch_size=8, seed=seed, hard_negatives=number, **processes)

    without, batch = batches(0).batch_at(5), batches(2).batch_at(5)
    assert not any(name.startswith("negative_") for name in without)
    for name in ("image", "index", "report_hash", "sentence_hashes", "sentence_count"):  # the same sentences are drawn
        np.testing.assert_array_equal(batch[name], without[name])
    assert (batch["token_ids"] != without["token_ids"]).any(axis=1).mean() > 0.25, "some of them in other words"
    again = next(batches(2).iterate(5))
    assert list(again) == list(batch)
    for name, array in batch.items():
        np.testing.assert_array_equal(again[name], array)
    halves = [batches(2, process_index=p, process_count=2).batch_at(5) for p in (0, 1)]
    for name, array in batch.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), array)
    ids = [batches(2, seed).batch_at(step)["negative_token_ids"] for seed, step in ((1, 5), (2, 5), (1, 7))]
    assert not any(np.array_equal(ids[0], other) for other in ids[1:])
