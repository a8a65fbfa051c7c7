"""Six training steps of the published system, from its own weights and inputs, in float64."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.models import build, trainable
from afloc_jax.training.mesh import build_mesh, place_batch, replicate
from afloc_jax.training.optimizer import build_direction, build_schedule, freeze
from afloc_jax.training.step import build_train_step, new_state
from afloc_jax.weights import torch_names
from configs.afloc import get_config
from data_pipelines.tokens import load_tokenizer, tokenize


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def _setup(goldens):
    facts = json.loads((goldens / "model.json").read_text())
    arrays = np.load(goldens / "model.npz")
    config = get_config()
    config.seed = facts["seed"]
    config.model.projection_dim = 64
    config.model.text.bert.update(json.loads((goldens / "bert/config.json").read_text()))
    config.optimizer.update(
        lr=facts["lr"],
        b1=facts["betas"][0],
        b2=facts["betas"][1],
        weight_decay=facts["weight_decay"],
        clip_norm=facts["clip_norm"],
        schedule="exponential",
        decay=facts["lr_after_step_2"] / facts["lr"],
    )
    return facts, arrays, config


def _filled(goldens, config):
    sys.path.insert(0, str(goldens))
    try:
        from fill import fill
    finally:
        sys.path.remove(str(goldens))
    shapes = json.loads((goldens / "state_dict_shapes.json").read_text())
    state = {name: fill(name, shape) for name, shape in shapes.items()}
    variables = torch_names.from_torch(state, config.model)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)


def test_six_training_steps_follow_the_published_trajectory(goldens, float64):
    facts, arrays, config = _setup(goldens)
    model = build(config.model, dtype=jnp.float64)
    variables = _filled(goldens, config)
    mesh = build_mesh(jax.devices()[:1])
    direction = freeze(build_direction(config.optimizer), trainable(variables["params"], config.model))
    schedule = build_schedule(config.optimizer, steps_per_epoch=3, total_steps=6)
    step = build_train_step(model, config, direction, schedule, mesh)
    state = replicate(new_state(variables, direction), mesh)
    tokens = tokenize(load_tokenizer(goldens / "bert"), facts["reports"], facts["word_num"], compatible=True)

    images = arrays["images"].astype(np.float64)
    for number, expected in enumerate(arrays["train/trajectory"]):
        noise = np.random.default_rng(facts["seed"] * 100 + number).standard_normal((len(images), 1, 224, 224))
        batch = {"image": images + 0.05 * noise[:, 0], **tokens}
        state, metrics = step(state, place_batch(batch, mesh))
        found = [float(metrics[key]) for key in ("loss", "loss/report", "loss/sentence", "loss/word", "grad_norm")]
        np.testing.assert_allclose(found, expected, rtol=1e-7, err_msg=f"step {number}")

    final = torch_names.to_torch({"params": state.params, "batch_stats": state.batch_stats}, config.model)
    for key in arrays.files:
        if key.startswith("train/param/"):
            name = key.removeprefix("train/param/")
            np.testing.assert_allclose(np.asarray(final[name])[:16], arrays[key], rtol=1e-7, atol=1e-12, err_msg=name)
