"""Small models to export, and what runs an export as its user would."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import afloc_jax
from afloc_jax.export.copied import afloc_torch
from afloc_jax.models.settings import ModelSettings
from afloc_jax.weights import torch_names
from afloc_jax.weights.folder import save_model
from configs.afloc import get_config
from data_pipelines.tokens import learn_tokenizer, tokenize

TEXTS = ("small left pleural effusion. no edema", "the heart is enlarged", "findings suggesting pneumonia. no nodule")
PROMPTS = (
    "Small left effusion.",
    "No pneumothorax. The heart is enlarged",
    "pneumonia",
    "1.5 cm nodule. no edema.",
    "a . . b",
)
TOP_DOWN = {
    "blocks": (1, 1, 2),
    "widths": (8, 12, 16),
    "strides": (1, 2, 2),
    "stem_width": 8,
    "stem_kernel": 5,
    "stem_stride": 2,
    "shallow_stage": 1,
    "deep_stage": 1,
    "top_down": True,
    "drop_context": 0.3,
    "position": 3,
}
SMALL = {"widths": (8, 8, 16), "stem_width": 8}


def small_config(image=None, text=None, localization=None, side=48, **model):
    """A narrow model of squares of `side` pixels; the small backbone unless `image` names another."""
    config = get_config()
    config.data.max_tokens = 16
    config.data.builder = {"image_size": side}
    config.model.projection_dim = 16
    config.model.update(model)
    config.model.image.update({"backbone": "resnet_small", "input_size": 32, "options": SMALL, **(image or {})})
    config.model.text.bert = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
    }
    config.model.text.update({"last_layers": 2, **(text or {})})
    config.localization.update(localization or {})
    return config


def write_model(folder, config):
    """A model folder in which every array is random, batch statistics too."""
    tokenizer = learn_tokenizer(TEXTS, 200)
    config.model.text.bert["vocab_size"] = tokenizer.get_vocab_size()
    model = ModelSettings.read(config.model)
    save_model(folder, torch_names.from_torch(random_state(model), model), config, tokenizer)
    return folder


def random_state(model):
    """Random weights by published name, the same whatever the order of the table."""
    random, state = np.random.default_rng(0), {}
    for row in sorted(torch_names.table(model), key=lambda row: row.name):
        fan_in = max(1, int(np.prod(row.shape[1:])))
        value = random.standard_normal(row.shape) * (1 / np.sqrt(fan_in) if len(row.shape) > 1 else 0.1)
        if len(row.shape) == 1 and row.name.endswith(("weight", "running_var")):
            value = random.uniform(0.5, 1.5, row.shape)
        state[row.name] = value.astype(np.float32)
    return state


PLAIN = small_config()
# As configs/demo.py has it: stages from above, centred projections, sentences read alone, presence maps; and sharpened.
DEMO = small_config(
    side=64,  # twice the input size: means of blocks
    image={"input_size": 32, "options": TOP_DOWN, "center": True},
    text={"context": "sentence"},
    localization={
        "cells": "receptive_field",
        "prompt_level": "sentence",
        "similarity": "presence",
        "presence_growth": 0.08,
        "sigma": 0.5,
        "sharpen": True,
    },
)


def inputs_of(source, count):
    """`count` random squares, and prompts with the arrays they become."""
    random, prompts = np.random.default_rng(count), [PROMPTS[i % len(PROMPTS)] for i in range(count)]
    image = random.integers(0, 256, (count, source.image_size, source.image_size), np.uint8)
    return prompts, {"image": image, **tokenize(source.tokenizer, source.model.read_prompts(prompts), 16)}


def run_torch(folder, inputs):
    with torch.inference_mode():
        found = afloc_torch.load(folder)(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return {name: value.numpy() for name, value in found._asdict().items()}


def assert_equal_outputs(found, expected, tolerance=1e-5):
    assert set(found) >= set(expected)
    for name, value in expected.items():
        difference = np.abs(np.asarray(found[name]) - value).max() / np.abs(value).max()
        assert found[name].shape == value.shape, name
        assert difference <= tolerance, f"{name} differs by {difference:.1e}"


def run_check(folder):
    environment = os.environ | {"PYTHONPATH": str(Path(afloc_jax.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, str(folder / "check" / "check.py")], capture_output=True, text=True, env=environment
    )
