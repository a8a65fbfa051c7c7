"""A run learns its vocabulary without rare and excluded words, and its model card says so."""

import json

import pytest

import launch
from afloc_jax.errors import UsageError
from afloc_jax.files import Path
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.tokenizer import opened
from afloc_jax.weights.folder import load_model
from tests.training.conftest import records, tiny_config, train


def test_the_card_says_how_the_vocabulary_was_learned_and_that_names_may_remain(finished, config):
    card = (finished / "model" / "README.md").read_text()
    assert "at least 5 distinct reports of at least 3 patients" in card and "**Frequent names may remain**" in card
    assert "--exclude_words=FILE" in card
    assert ("| training.epochs |" in card) != ("| training.steps |" in card)  # the one that counts
    assert "at three levels: words with a shallow map" in card and "weighted by a softmax" in card
    assert json.loads((finished / "tokenizer" / "learned.json").read_text())["reports"] == 5
    config.data.exclude_words = "names.txt"
    with pytest.raises(UsageError, match=r"belongs to another config \(data.exclude_words"):
        train(config, finished)


def test_excluded_words_are_no_entries_of_a_runs_vocabulary(tmp_path, config):
    (tmp_path / "words.txt").write_text("Pneumothorax\nlungs\n")
    values = launch.parse(
        ["launch.py", "--config=configs/demo.py", f"--workdir={tmp_path}", f"--exclude-words={tmp_path}/words.txt"]
    )
    assert values.exclude_words == f"{tmp_path}/words.txt"
    config.data.exclude_words = values.exclude_words
    source = records(24, seed=1)
    learned, account = opened(RunConfig.from_config(config), Path(tmp_path), source)
    plain, _ = opened(RunConfig.from_config(tiny_config()), Path(tmp_path), source)
    assert account.excluded == 2 and plain.token_to_id("pneumothorax") and plain.token_to_id("lungs")
    assert learned.token_to_id("pneumothorax") is None and learned.token_to_id("lungs") is None


def test_words_cannot_be_excluded_from_a_vocabulary_that_is_not_learned(tmp_path, config, finished):
    config.data.exclude_words = "names.txt"
    config.init_from = str(finished / "model")
    assert load_model(finished / "model").config.card["vocabulary"]
    with pytest.raises(UsageError, match=r"takes the vocabulary of .*model and learns none"):
        opened(RunConfig.from_config(config), Path(tmp_path), records(24, seed=1))
