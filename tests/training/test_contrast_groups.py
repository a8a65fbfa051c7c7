"""Contrast groups of a batch that is sorted by caption length, against the definition on a batch sorted by NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.models import build
from afloc_jax.training.gradients import build_gradient
from afloc_jax.training.mesh import place_batch, place_state
from afloc_jax.training.start import first_variables
from tests.training.conftest import assembled, batches_of, changed, tiny_config

GROUPS = {"training.batch_size": 16, "loss.contrast_group": 8, "model.image.statistics_group": 2}
BY_LENGTH = {**GROUPS, "loss.contrast_group_order": "length"}


def by_length(batch):
    """The batch with its longest caption first, sorted by plain NumPy."""
    rows = sorted(range(len(batch["token_ids"])), key=lambda row: -int((batch["token_ids"][row] > 0).sum()))
    return {name: np.asarray(array)[rows] for name, array in batch.items()}


@functools.cache
def gradient(devices, ordered=False, **changes):
    """Losses, statistics and gradient of the first batch in float64, without dropout. `ordered`: sorted beforehand."""
    config = changed(tiny_config(), changes)
    config.model.text.bert.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    run, data = assembled(config, devices)
    config, mesh = run.config, run.mesh
    batch = batches_of(data.training, config, data.tokenizer).batch_at(0)
    batch = place_batch(by_length(batch) if ordered else batch, mesh)
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float64), first_variables(config))
        variables = place_state(variables, mesh)
        compute = jax.jit(build_gradient(build(config.model, dtype=jnp.float64), config, mesh))
        return jax.device_get(compute(variables["params"], variables["batch_stats"], batch, jax.random.key(0)))


@pytest.mark.parametrize(
    ("devices", "changes"), [(1, {}), (4, {}), (4, {"training.micro_batch": 8})], ids=["tiled", "ring", "micro batches"]
)
def test_groups_by_length_are_the_definition_on_the_sorted_batch(devices, changes):
    """Groups of 8 of 16 pairs, and statistics of 2: on one device, and over rings of two of four devices."""
    expected = gradient(1, ordered=True, **GROUPS, **{"loss.implementation": "definition", "loss.low_rank": False})
    found = gradient(devices, **BY_LENGTH, **changes)
    np.testing.assert_allclose(found.losses.total, expected.losses.total, rtol=1e-10)
    for level, loss in expected.losses.levels.items():
        np.testing.assert_allclose(found.losses.levels[level], loss, rtol=1e-10)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected.gradient))
    for one, other in zip(jax.tree.leaves(found.gradient), jax.tree.leaves(expected.gradient), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9 * largest)
    for one, other in zip(jax.tree.leaves(found.batch_stats), jax.tree.leaves(expected.batch_stats), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_two_steps_train_and_validation_takes_the_same_groups():
    changes = {key: value for key, value in BY_LENGTH.items() if key != "model.image.statistics_group"}
    run, data = assembled(changed(tiny_config(), changes))
    state = run.state(first_variables(run.config))
    batches = batches_of(data.training, run.config, data.tokenizer)
    losses = []
    for step in range(2):
        state, metrics = run.train_step(state, place_batch(batches.batch_at(step), run.mesh))
        losses.append(float(metrics.loss))
        assert bool(metrics.finite) and float(metrics.grad_norm) > 0
    assert int(state.step) == 2 and losses[0] != losses[1]

    given = batches.batch_at(0)
    neighbours, _ = assembled(
        changed(tiny_config(), {key: value for key, value in GROUPS.items() if "image" not in key})
    )
    expected = validated(neighbours, state, by_length(given))
    assert validated(run, state, given) == pytest.approx(expected, rel=1e-6)
    assert validated(neighbours, state, given)["loss"] != pytest.approx(expected["loss"], rel=1e-4)


def validated(run, state, batch):
    return run.validation_step(state.params, state.batch_stats, place_batch(batch, run.mesh)).named()
