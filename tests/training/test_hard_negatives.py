"""A run with hard negatives: what it is compiled for, what it validates, and what the command line says."""

import jax
import pytest

from afloc_jax.errors import UsageError
from afloc_jax.training.mesh import place_batch
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.start import first_variables
from data_pipelines.batches import validation_batches
from tests.training.conftest import assembled, batches_of, changed, tiny_config


def test_steps_train_and_validation_has_none():
    """A batch is what `afloc compile` takes it for; validation is the program of a run without hard negatives."""
    run, data = assembled(changed(tiny_config(), {"loss.hard_negatives": 2}), 1)
    without, _ = assembled(tiny_config(), 1)
    batches = batches_of(data.training, run.config, data.tokenizer)
    expected = run.batch_like()
    given = {name: array for name, array in batches.batch_at(0).items() if name not in ("image", "index")}
    assert given.keys() == expected.keys() - {"image"} and "negative_hashes" in given
    for name, array in given.items():
        assert (array.shape, array.dtype) == (expected[name].shape, expected[name].dtype), name

    state, losses = run.state(first_variables(run.config)), []
    for step in range(2):
        state, metrics = run.train_step(state, place_batch(batches.batch_at(step), run.mesh))
        losses.append(metrics.named()["loss/sentence"])
        assert bool(metrics.finite)
    assert len(set(losses)) == 2

    validated = place_batch(
        validation_batches(data.validation, run.config.data, data.tokenizer, batch_size=8).batch_at(0), run.mesh
    )
    first, second = (
        str(jax.make_jaxpr(one.validation_step)(state.params, state.batch_stats, validated)) for one in (run, without)
    )
    assert first == second


def test_a_run_whose_sentences_have_no_weight_is_refused():
    config = changed(tiny_config(), {"loss.hard_negatives": 1, "loss.weights.sentence": 0.0})
    with pytest.raises(UsageError, match=r"config\.loss\.hard_negatives = 1: are negatives of the sentence level"):
        RunConfig.from_config(config)
