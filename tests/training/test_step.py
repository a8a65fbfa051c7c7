"""The step on one and on eight devices, with frozen parts, and validation of split sizes that do not divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.training.mesh import pad_batch, place_batch
from afloc_jax.training.start import first_variables
from tests.training.conftest import assembled, batches_of, tiny_config


def prepared(devices, **model_changes):
    """The tiny run put together on that many devices, its first state and its batches."""
    config = tiny_config()
    config.model.image.update(model_changes)
    run, data = assembled(config, devices)
    batches = batches_of(data.training, run.config, data.tokenizer)
    return run, run.state(first_variables(run.config)), batches


@pytest.fixture(scope="module")
def eight():
    return prepared(8)


def test_one_and_eight_devices_give_the_same_losses(eight):
    runs = []
    for run, state, batches in (prepared(1), eight):
        state, losses = jax.tree.map(jnp.copy, state), []
        for number in range(6):
            state, metrics = run.train_step(state, place_batch(batches.batch_at(number), run.mesh))
            losses.append([metrics.named()[key] for key in ("loss", "loss/report", "loss/sentence", "loss/word")])
        runs.append(losses)
        assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {run.mesh.size}
    # Adam divides by the size of the gradient, so that rounding grows with every update; how much, the machine decides.
    np.testing.assert_allclose(runs[0][:3], runs[1][:3], rtol=1e-5)
    np.testing.assert_allclose(runs[0], runs[1], rtol=2e-4)
    assert len({tuple(row) for row in runs[0]}) == 6


def test_the_batch_is_split_and_the_state_is_not(eight):
    run, state, batches = eight
    placed = place_batch(batches.batch_at(0), run.mesh)
    assert "index" not in placed and placed["image"].dtype == jnp.uint8
    assert [shard.data.shape[0] for shard in placed["image"].addressable_shards] == [1] * 8
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))


def test_pairs_that_pad_a_batch_do_not_change_the_validation_loss(eight):
    run, state, batches = eight
    batch = batches.batch_at(0)
    five = {key: value[:5] for key, value in batch.items()}
    padded = pad_batch(five, 8)
    assert padded["image"].shape == (8, 32, 32) and padded["word_count"].tolist()[5:] == [0, 0, 0]
    assert (padded["word_ids"][5:] == -1).all() and pad_batch(five, 5) is five
    alone, _ = assembled(tiny_config(), devices=1)
    expected = validated(alone, jax.device_put(jax.device_get(state), jax.devices()[0]), five)
    found = validated(run, state, padded)
    assert expected.keys() == {"loss", "loss/report", "loss/sentence", "loss/word", "twins/local", "twins/report"}
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5)


def validated(run, state, batch):
    return run.validation_step(state.params, state.batch_stats, place_batch(batch, run.mesh)).named()


def test_a_frozen_backbone_stays_as_it_was_while_the_rest_trains():
    run, state, batches = prepared(8, freeze=True)
    before = jax.device_get(state)
    after, metrics = run.train_step(state, place_batch(batches.batch_at(0), run.mesh))
    after = jax.device_get(after)
    assert bool(metrics.finite) and float(metrics.grad_norm) > 0
    backbone = ("image_encoder", "backbone")
    jax.tree.map(
        np.testing.assert_array_equal, before.params[backbone[0]][backbone[1]], after.params[backbone[0]][backbone[1]]
    )
    jax.tree.map(np.testing.assert_array_equal, before.batch_stats, after.batch_stats)
    projection = after.params["image_encoder"]["project_deep"]["kernel"]
    assert np.abs(projection - before.params["image_encoder"]["project_deep"]["kernel"]).max() > 1e-4
