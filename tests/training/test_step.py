"""The step on one and on eight devices, with frozen parts, and validation of split sizes that do not divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.models import build, trainable
from afloc_jax.training.mesh import build_mesh, pad_batch, place_batch, place_state
from afloc_jax.training.optimizer import build_direction, build_schedule, freeze
from afloc_jax.training.step import build_train_step, build_validation_step, new_state
from afloc_jax.training.train import _initial_variables, _with_vocabulary
from tests.training.conftest import batches_of, records, tiny_config, tokenizer_of


def prepared(devices, **model_changes):
    """Mesh, first state, train step, validation step and batches of the tiny run on that many devices."""
    source, config = records(24, seed=1), tiny_config()
    config.model.image.update(model_changes)
    tokenizer = tokenizer_of(source, config)
    config = _with_vocabulary(config, tokenizer)
    mesh = build_mesh(jax.devices()[:devices])
    model, variables = build(config.model), _initial_variables(config)
    direction = freeze(build_direction(config.optimizer), trainable(variables["params"], config.model))
    step = build_train_step(model, config, direction, build_schedule(config.optimizer, 3, 6), mesh)
    validate = build_validation_step(model, config, mesh)
    state = place_state(new_state(place_state(variables, mesh), direction), mesh)
    return mesh, state, step, validate, batches_of(source, config, tokenizer)


@pytest.fixture(scope="module")
def eight():
    return prepared(8)


def test_one_and_eight_devices_give_the_same_losses(eight):
    runs = []
    for mesh, state, step, _, batches in (prepared(1), eight):
        state, losses = jax.tree.map(jnp.copy, state), []
        for number in range(6):
            state, metrics = step(state, place_batch(batches.batch_at(number), mesh))
            losses.append([float(metrics[key]) for key in ("loss", "loss/report", "loss/sentence", "loss/word")])
        runs.append(losses)
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {mesh.size}
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-5)
    assert len({tuple(row) for row in runs[0]}) == 6


def test_the_batch_is_split_and_the_state_is_not(eight):
    mesh, state, _, _, batches = eight
    placed = place_batch(batches.batch_at(0), mesh)
    assert "index" not in placed and placed["image"].dtype == jnp.uint8
    assert [shard.data.shape[0] for shard in placed["image"].addressable_shards] == [1] * 8
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))


def test_pairs_that_pad_a_batch_do_not_change_the_validation_loss(eight):
    mesh, state, _, validate, batches = eight
    batch = batches.batch_at(0)
    five = {key: value[:5] for key, value in batch.items()}
    padded = pad_batch(five, 8)
    assert padded["image"].shape == (8, 32, 32) and padded["word_count"].tolist()[5:] == [0, 0, 0]
    assert (padded["word_ids"][5:] == -1).all() and pad_batch(five, 5) is five
    one = build_mesh(jax.devices()[:1])
    alone = validate_on(one, state, five)
    found = validate(state.params, state.batch_stats, place_batch(padded, mesh))
    for key, value in alone.items():
        np.testing.assert_allclose(float(found[key]), float(value), rtol=1e-5)


def validate_on(mesh, state, batch):
    source, config = records(24, seed=1), tiny_config()
    config = _with_vocabulary(config, tokenizer_of(source, config))
    state = jax.device_put(jax.device_get(state), mesh.devices.flat[0])
    step = build_validation_step(build(config.model), config, mesh)
    return step(state.params, state.batch_stats, place_batch(batch, mesh))


def test_a_frozen_backbone_stays_as_it_was_while_the_rest_trains():
    mesh, state, step, _, batches = prepared(8, freeze=True)
    before = jax.device_get(state)
    after, metrics = step(state, place_batch(batches.batch_at(0), mesh))
    after = jax.device_get(after)
    assert bool(metrics["finite"]) and float(metrics["grad_norm"]) > 0
    backbone = ("image_encoder", "backbone")
    jax.tree.map(
        np.testing.assert_array_equal, before.params[backbone[0]][backbone[1]], after.params[backbone[0]][backbone[1]]
    )
    jax.tree.map(np.testing.assert_array_equal, before.batch_stats, after.batch_stats)
    projection = after.params["image_encoder"]["project_deep"]["kernel"]
    assert np.abs(projection - before.params["image_encoder"]["project_deep"]["kernel"]).max() > 1e-4
