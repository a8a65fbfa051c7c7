"""config.json of a model folder: what earlier programs wrote is read, and what is wrong is named."""

import json

import pytest

from afloc_jax.errors import UsageError
from afloc_jax.heatmaps import HeatmapSettings
from afloc_jax.weights.config import FolderConfig, ModelFolderError, read_config
from configs import afloc, demo

# As commit 35475ad wrote it, for a small model of configs/demo.py.
EARLIER = """{
  "format_version": 1,
  "name": "demo",
  "seed": 1,
  "architecture": {
    "image": {
      "backbone": "resnet_small",
      "center": true,
      "freeze": false,
      "input_size": 112,
      "options": {
        "blocks": [1, 1, 1, 1],
        "deep_stage": 2,
        "drop_context": 0.3,
        "shallow_stage": 2,
        "stem_kernel": 5,
        "stem_stride": 2,
        "stem_width": 8,
        "strides": [1, 2, 2, 2],
        "top_down": true,
        "widths": [8, 12, 16, 16]
      },
      "statistics_group": 0
    },
    "normalize": false,
    "projection_dim": 32,
    "text": {
      "bert": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 119},
      "context": "sentence",
      "freeze": false,
      "last_layers": 2,
      "merge_layers": "sum",
      "merge_pieces": "sum",
      "tokenizer": ""
    }
  },
  "preprocessing": {"image_size": 224, "geometry": "pad", "channels": 1, "mean": 0.5, "std": 0.5},
  "prompts": {"max_tokens": 80, "lower_case": true},
  "localization": {
    "cells": "receptive_field",
    "presence_growth": 0.08,
    "presence_sharpness": 8.0,
    "presence_threshold": 0.45,
    "prompt_level": "sentence",
    "sigma": 0.5,
    "similarity": "presence"
  },
  "card": {"data": {"records": 12}, "recipe": {"loss": {"weights": {"word": 0.0}}}}
}"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(EARLIER)
    return tmp_path


def test_what_an_earlier_program_wrote_is_read_and_written_again_to_the_letter(folder):
    config = read_config(folder)
    assert config.architecture.image.structure.widths == (8, 12, 16, 16)
    assert config.architecture.text.structure.hidden_size == 32
    assert (config.prompts.max_tokens, config.preprocessing.image_size) == (80, 224)
    assert config.localization.presence_growth == 0.08
    assert json.dumps(config.stored()) == json.dumps(json.loads(EARLIER))


def test_sections_that_are_absent_or_short_keep_the_published_values(folder):
    stored = json.loads(EARLIER)
    del stored["localization"], stored["card"], stored["seed"], stored["prompts"]["lower_case"]
    (folder / "config.json").write_text(json.dumps(stored))
    config = read_config(folder)
    assert (config.localization, config.card, config.seed) == (HeatmapSettings(), {}, 0)


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("preprocessing", "image_size", 0, "preprocessing.image_size = 0: must be greater than 0"),
        ("preprocessing", "mean", 0.3, r"preprocessing.mean = 0.3: must be 0.5, because pixels are scaled"),
        ("preprocessing", "channels", 3, "preprocessing.channels = 3: must be one of 1"),
        ("preprocessing", "size", 3, "preprocessing.size: unknown key"),
        ("prompts", "lower_case", False, "prompts.lower_case = False: must be true"),
        ("prompts", "max_tokens", 2, "prompts.max_tokens = 2: must be 3 or greater"),
        ("architecture", "projection_dim", 16, "architecture: model.projection_dim = 16"),
        (None, "seed", "1", "seed = '1': must be a whole number"),
        (None, "localization", 3, "localization = 3: must be a section"),
    ],
)
def test_a_wrong_value_is_named_with_its_file(folder, section, key, value, words):
    stored = json.loads(EARLIER)
    (stored[section] if section else stored)[key] = value
    (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ModelFolderError, match=words) as caught:
        read_config(folder)
    assert str(caught.value).startswith(f"{folder / 'config.json'}: ")


def test_a_run_stores_what_a_folder_is_read_with(tmp_path):
    for run in (afloc.get_config(), demo.get_config()):
        run.model.text.tokenizer = "/home/somebody/vocab"
        config = FolderConfig.of_run(run, {"data": "mine"})
        assert config.architecture.text.tokenizer == ""
        (tmp_path / "config.json").write_text(json.dumps(config.stored()))
        assert read_config(tmp_path) == config


def test_remote_storage_is_refused():
    with pytest.raises(UsageError, match="remote storage is not supported yet"):
        read_config("s3://bucket/model")
