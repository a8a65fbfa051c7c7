"""The batch of a step is a function of the step."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from raw_folders import radiograph

from afloc_jax.errors import UsageError, UserError
from data_pipelines.augment import Limits, augment, draw
from data_pipelines.batches import (
    sample_sentences,
    training_batches,
    training_tokenizer,
    validation_batches,
)
from data_pipelines.records import Record
from data_pipelines.settings import DataSettings
from data_pipelines.tokens import tokenize

TEXT = "token_ids", "word_ids", "sentence_ids", "word_count", "sentence_count", "report_hash", "sentence_hashes"
KEYS = ("image", *TEXT, "index")


def records(count: int) -> list[Record]:
    words = ["alpha", "beta", "gamma", "delta", "epsilon"]
    return [
        Record(
            id=str(number),
            image=radiograph(number, 32, 32),
            sentences=[f"{word} number {number}" for word in words[: 1 + number % 5]],
            impression_count=number % 3,
            patient="",
            view="",
            height=32,
            width=32,
            findings=[],
        )
        for number in range(count)
    ]


def training(source, tokenizer, batch_size=8, *, seed=1, process=0, count=1, **data):
    settings = DataSettings(max_tokens=32, **data)
    processes = {"process_index": process, "process_count": count}
    return training_batches(source, settings, tokenizer, batch_size=batch_size, seed=seed, **processes)


def validation(source, tokenizer, batch_size=16, *, seed=0, step=0, process=0, count=1, **data):
    drawn = {"seed": seed, "step": step, "process_index": process, "process_count": count}
    return validation_batches(source, DataSettings(max_tokens=32, **data), tokenizer, batch_size=batch_size, **drawn)


@pytest.fixture(scope="module")
def source():
    return records(37)


@pytest.fixture(scope="module")
def tokenizer(source):
    return training_tokenizer(source)


def assert_equal(first, second, keys=KEYS):
    assert tuple(first) == tuple(second) == keys
    for key in keys:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def test_batches_have_the_documented_form(source, tokenizer):
    batch = training(source, tokenizer).batch_at(3)
    assert {key: (array.shape, str(array.dtype)) for key, array in batch.items()} == {
        "image": ((8, 32, 32), "uint8"),
        "token_ids": ((8, 32), "int32"),
        "word_ids": ((8, 32), "int32"),
        "sentence_ids": ((8, 32), "int32"),
        "word_count": ((8,), "int32"),
        "sentence_count": ((8,), "int32"),
        "report_hash": ((8, 2), "uint32"),
        "sentence_hashes": ((8, 15, 2), "uint32"),
        "index": ((8,), "int64"),
    }
    for row, index in enumerate(batch["index"]):
        np.testing.assert_array_equal(batch["image"][row], source[index].image)


@pytest.mark.parametrize(
    ("mode", "place", "keys"),
    [
        ("subset", "host", KEYS),
        ("impression", "host", KEYS),
        ("all", "host", KEYS),
        ("subset", "device", (*KEYS, "augmentation")),
    ],
)
def test_any_number_of_processes_makes_the_same_global_batch(source, tokenizer, mode, place, keys):
    drawn = {"sentences": mode, "augment": True, "augment_on": place}
    whole = training(source, tokenizer, **drawn)
    for step in (0, 3, 4, 11, 1000):
        for count in (2, 4):
            parts = [training(source, tokenizer, process=p, count=count, **drawn).batch_at(step) for p in range(count)]
            joined = {key: np.concatenate([part[key] for part in parts]) for key in keys}
            assert_equal(joined, whole.batch_at(step), keys)


def test_going_on_from_a_step_equals_never_having_stopped(source, tokenizer):
    stream = training(source, tokenizer).iterate(0)
    first = [next(stream) for _ in range(14)]
    resumed = training(source, tokenizer).iterate(9)
    for step in range(9, 14):
        assert_equal(next(resumed), first[step])
    assert_equal(training(source, tokenizer).batch_at(2), first[2])


def test_images_for_the_device_come_as_stored_with_the_numbers_that_the_host_would_take(source, tokenizer):
    host = training(source, tokenizer, augment=True).batch_at(5)
    device = training(source, tokenizer, augment=True, augment_on="device")
    batch = device.batch_at(5)
    assert batch["augmentation"].shape == (8, 6) and batch["augmentation"].dtype == np.float32
    for row, index in enumerate(batch["index"]):
        np.testing.assert_array_equal(batch["image"][row], source[index].image)
        changed = augment(source[index].image, batch["augmentation"][row].astype(np.float64))
        assert np.abs(changed.astype(int) - host["image"][row]).max() <= 1  # the numbers are sent as float32
    for key in KEYS[1:]:
        np.testing.assert_array_equal(batch[key], host[key], err_msg=key)
    stream = device.iterate(5)
    for step in (5, 6):
        assert_equal(next(stream), device.batch_at(step), (*KEYS, "augmentation"))
    assert "augmentation" not in training(source, tokenizer, augment_on="device").batch_at(0)  # `augment` is off


def test_an_epoch_holds_distinct_records_in_a_new_order_each_time(source, tokenizer):
    batches = training(source, tokenizer)
    assert len(batches) == 4
    epochs = [np.concatenate([batches.batch_at(4 * e + k)["index"] for k in range(4)]) for e in range(12)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 32
    assert len({tuple(epoch) for epoch in epochs}) == 12
    assert set(np.concatenate(epochs).tolist()) == set(range(37))  # the remainder is another one each time
    assert (training(source, tokenizer, seed=2).batch_at(0)["index"] != epochs[0][:8]).any()


def test_every_draw_samples_its_sentences_anew(tokenizer):
    same = [records(5)[4]] * 40
    batches = training(same, tokenizer, 40)
    counts = Counter(np.concatenate([batches.batch_at(s)["sentence_count"] for s in range(25)]).tolist())
    assert set(counts) == {2, 3, 4, 5, 6}  # [CLS] and 1 to 5 sentences, equally often
    np.testing.assert_allclose([counts[k] / 1000 for k in range(2, 7)], 0.2, atol=0.05)
    firsts = Counter(batches.batch_at(0)["token_ids"][:, 1].tolist())
    assert len(firsts) == 5  # any sentence may come first


def test_sentence_modes_follow_their_definition():
    sentences = ["i1", "i2", "f1", "f2", "f3"]
    rng = np.random.default_rng(0)
    subsets = [sample_sentences(sentences, 2, "subset", rng) for _ in range(400)]
    assert {len(chosen) for chosen in subsets} == {1, 2, 3, 4, 5}
    assert all(len(set(chosen)) == len(chosen) for chosen in subsets)
    assert len({tuple(chosen) for chosen in subsets if len(chosen) == 2}) == 20  # every ordered pair
    kept = [sample_sentences(sentences, 2, "impression", rng) for _ in range(200)]
    assert all(chosen[:2] == ["i1", "i2"] for chosen in kept)
    assert {len(chosen) for chosen in kept} == {2, 3, 4, 5}
    assert {len(sample_sentences(sentences, 0, "impression", rng)) for _ in range(200)} == {1, 2, 3, 4, 5}
    assert sample_sentences(sentences, 5, "impression", rng) == sentences
    assert sample_sentences(sentences, 2, "all", rng) == sentences
    assert sample_sentences([], 0, "subset", rng) == []


def test_validation_sees_every_record_once_with_all_sentences(source, tokenizer):
    batches = validation(source, tokenizer)
    seen = list(batches)
    assert len(batches) == len(seen) == 3
    assert [int((batch["index"] >= 0).sum()) for batch in seen] == [12, 12, 13]  # dealt out evenly, not 16, 16, 5
    indices = np.concatenate([batch["index"][batch["index"] >= 0] for batch in seen])
    np.testing.assert_array_equal(indices, np.arange(37))
    for step, batch in enumerate(seen):
        assert_equal(batch, batches.batch_at(step))
        assert batch["image"].shape == (16, 32, 32)
        padding = batch["index"] < 0
        assert not batch["word_count"][padding].any() and not batch["sentence_count"][padding].any()
        assert not batch["image"][padding].any()
        texts = [". ".join(source[index].sentences) for index in batch["index"][~padding]]
        np.testing.assert_array_equal(batch["token_ids"][~padding], tokenize(tokenizer, texts, 32)["token_ids"])
    parts = [list(validation(source, tokenizer, process=p, count=2)) for p in range(2)]
    for step, batch in enumerate(seen):
        assert_equal({key: np.concatenate([part[step][key] for part in parts]) for key in KEYS}, batch)
    with pytest.raises(IndexError):
        batches.batch_at(3)


def test_validation_as_published_draws_subsets_anew_and_drops_the_last_batch(source, tokenizer):
    """37 records in batches of 16: the last five are not seen, and no row is padding."""
    published = {
        "sentences": "release_subset", "validation_sentences": "sampled", "validation_drop_last": True
    }  # fmt: skip
    first = list(validation(source, tokenizer, **published, seed=1, step=300))
    assert [batch["index"].tolist() for batch in first] == [[*range(16)], [*range(16, 32)]]
    counts = np.concatenate([batch["sentence_count"] for batch in first]) - 1
    longest = np.array([max(1, len(record.sentences) - 1) for record in source[:32]])
    assert (counts >= 1).all() and (counts <= longest).all() and (counts < longest).any()
    again, later, other = (
        list(validation(source, tokenizer, **published, seed=seed, step=step))
        for seed, step in ((1, 300), (1, 600), (2, 300))
    )
    for batch, same in zip(first, again, strict=True):
        assert_equal(batch, same)
    for drawn in (later, other):
        assert any((batch["token_ids"] != one["token_ids"]).any() for batch, one in zip(first, drawn, strict=True))
    parts = [list(validation(source, tokenizer, **published, seed=1, step=300, process=p, count=2)) for p in range(2)]
    for step, batch in enumerate(first):
        assert_equal({key: np.concatenate([part[step][key] for part in parts]) for key in KEYS}, batch)
    with pytest.raises(UserError, match="37 validation records do not fill a batch of 64"):
        validation(source, tokenizer, 64, **published)


def test_words_are_counted_as_in_the_release_where_reports_are_cleaned_by_it(source, tokenizer):
    strange = [dataclasses.replace(record, sentences=["alpha \u2603 number 1"]) for record in source[:8]]
    default, release = (
        training(strange, tokenizer, cleaning=rules).batch_at(0)["word_count"] for rules in ("default", "release")
    )
    assert (tokenize(tokenizer, ["alpha \u2603"], 8)["token_ids"] == tokenizer.token_to_id("[UNK]")).any()
    assert default.tolist() == [5] * 8 and release.tolist() == [4] * 8


def test_impossible_requests_are_refused(source, tokenizer):
    with pytest.raises(UserError, match=r"batch_size is 64, but there are only 37"):
        training(source, tokenizer, 64)
    with pytest.raises(UsageError, match="does not divide by 3"):
        training(source, tokenizer, count=3)
    with pytest.raises(UsageError, match="does not divide by 3"):
        validation(source, tokenizer, 8, count=3)
    with pytest.raises(UserError, match="no validation record"):
        validation([], tokenizer)


def test_augmentation_is_gentle_and_keeps_left_and_right():
    side = 64
    image = np.zeros((side, side), np.uint8)
    image[20:30, 8:18] = 200  # a mark on the left, in the upper half
    images = [augment(image, draw(np.random.default_rng(seed))) for seed in range(100)]
    for changed in images:
        assert changed.shape == image.shape and changed.dtype == np.uint8
        rows, columns = np.nonzero(changed > changed.min() + 60)
        assert abs(rows.mean() - 24.5) < 9 and abs(columns.mean() - 12.5) < 9
    assert len({changed.tobytes() for changed in images}) == 100
    still = augment(image, np.ones(6), Limits(shift=0, scale=0, rotate=0, brightness=0, contrast=0))
    np.testing.assert_array_equal(still, image)


def test_augmentation_changes_the_grey_values_as_its_formula_says():
    """Against NumPy in float64, with values that leave 0 to 255 at both ends; a grey may be rounded the other way."""
    image = np.random.default_rng(3).integers(0, 256, (32, 32), dtype=np.uint8)
    clipped = 0
    for seed in range(50):
        numbers = np.random.default_rng(seed).uniform(-1, 1, 6)
        changed = augment(image, numbers, Limits(shift=0, scale=0, rotate=0, brightness=0.3, contrast=0.5))
        _, _, dark, gain, _, _ = numbers
        exact = (image - image.mean()) * (1 + 0.5 * gain) + image.mean() + 255 * 0.3 * dark
        assert np.abs(changed - np.clip(exact, 0, 255)).max() < 0.501
        clipped += (exact < -1).any() and (exact > 256).any()
    assert clipped > 5, "both ends are met"


def test_worker_processes_give_the_same_batches(tmp_path):
    from raw_folders import pairs_folder

    from data_pipelines.prepared import open_source

    pairs_folder(tmp_path / "raw", 12)
    builder = {"fractions": {"train": 1.0}, "image_size": 32}
    source = open_source("pairs", tmp_path, "train", raw=tmp_path / "raw", builder=builder)
    tokenizer = training_tokenizer(source)
    for drawn, keys in (({}, KEYS), ({"augment": True, "augment_on": "device"}, (*KEYS, "augmentation"))):
        expected = training(source, tokenizer, 4, **drawn)
        stream = training(source, tokenizer, 4, workers=2, **drawn).iterate(2)
        for step in range(2, 6):
            assert_equal(next(stream), expected.batch_at(step), keys)
