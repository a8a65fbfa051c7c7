"""A step that was not finite, computed again: it names the record and the layer that were broken on purpose."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from afloc_jax.errors import UsageError
from afloc_jax.files import Path
from afloc_jax.training.replay import Programs, Replay, culprit, replay
from afloc_jax.training.start import first_variables
from tests.training.conftest import assembled, batches_of, records, tiny_config

ROW = 5  # of the batch


@pytest.fixture(scope="module")
def step():
    """The tiny run on one device, its first state and first batch, whose images are floats."""
    source = records(24, seed=1)
    run, data = assembled(tiny_config(), 1, source)
    batch = batches_of(source, tiny_config(), data.tokenizer).batch_at(0)
    batch["image"] = (batch["image"] / 127.5 - 1).astype(np.float32)
    return Programs(run, trained=True), run.state(first_variables(run.config)), batch, source


def test_a_step_with_nothing_wrong_is_finite_in_every_layer(step):
    programs, state, batch, source = step
    healthy = Replay(programs, state, batch)
    assert healthy.is_finite() and healthy.report(source) == ["the outputs of all layers are finite"]
    names = healthy.layers().names
    assert names.index("image_encoder/backbone") < names.index("image_encoder/project_deep") < len(names) - 1
    assert len({*names}) == len(names) and names[-1] == "text_encoder"


def test_a_nan_in_one_image_is_that_record_at_the_first_layer(step):
    programs, state, batch, source = step
    batch = {**batch, "image": batch["image"].copy()}
    batch["image"][ROW, 3, 4] = np.nan
    lines = Replay(programs, state, batch).report(source)
    row = batch["index"][ROW]
    assert lines[0].startswith("first layer whose output is not finite: image_encoder/backbone/")
    assert lines[0].endswith(", for 1 of 8 records")
    assert lines[1] == f"record {row} of its split: record1_{row}" and len(lines) == 3
    assert lines[2].startswith("gradients that are not finite, those near the loss first: ")


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (np.inf, ["not finite before the step: params/image_encoder/project_deep/kernel"]),
        (3e38, []),  # no sum of two of them is finite
    ],
)
def test_a_broken_kernel_is_named_and_no_record(step, value, lines):
    programs, state, batch, source = step
    flat = flatten_dict(state.params, sep="/")
    flat["image_encoder/project_deep/kernel"] = jnp.full_like(flat["image_encoder/project_deep/kernel"], value)
    broken = dataclasses.replace(state, params=unflatten_dict(flat, sep="/"))
    found = Replay(programs, broken, batch).report(source)
    first = "first layer whose output is not finite: image_encoder/project_deep, for 8 of 8 records"
    assert found[: len(lines) + 1] == [*lines, first]
    assert ("without one record, whichever, it is not finite" in found) == (not lines)
    assert not any(line.startswith("record") for line in found)


def test_chunks_of_a_micro_batch_are_looked_at_as_the_step_takes_them():
    config = tiny_config()
    config.training.micro_batch, config.loss.contrast_group_order = 4, "length"
    source = records(24, seed=1)
    run, data = assembled(config, 2, source)
    batch = batches_of(source, config, data.tokenizer).batch_at(0)
    batch["image"] = batch["image"].astype(np.float32)
    batch["image"][ROW] = np.nan
    layers = Replay(Programs(run, trained=True), run.state(first_variables(run.config)), batch).layers()
    assert np.flatnonzero(~layers.finite[layers.first()]).tolist() == [ROW]
    spread = layers.finite[layers.names.index("image_encoder/backbone")]
    assert (~spread).sum() == 4, "batch statistics are those of a chunk"


@pytest.mark.parametrize("pairs", [2, 7, 8])
def test_the_culprit_is_the_row_without_which_a_batch_is_finite(pairs):
    for guilty in range(pairs):
        assert culprit(pairs, lambda rows, guilty=guilty: guilty not in rows) == guilty
    assert culprit(pairs, lambda rows: False) is None, "no row alone"
    assert culprit(8, lambda rows: not {1, 6} & {*rows.tolist()}) is None, "two rows"


@pytest.mark.parametrize("folder", ["step_7", "nonfinite", "nonfinite/epoch_7"])
def test_another_folder_is_refused(folder, tmp_path):
    with pytest.raises(UsageError, match=r"give a folder of nonfinite/ in a workdir, such as step_7"):
        replay(Path(tmp_path / folder))
