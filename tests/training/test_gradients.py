"""The gradient encoded in chunks, or with less kept for the backward pass, against the one-shot gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.errors import UsageError
from afloc_jax.models import build
from afloc_jax.training.gradients import build_gradient
from afloc_jax.training.mesh import place_batch, place_state
from afloc_jax.training.scales import with_scales
from afloc_jax.training.start import first_variables
from tests.training.conftest import assembled, batches_of, changed, tiny_config


@functools.cache
def first():
    """The tiny run's parameters and batch statistics in float64, which no change below concerns."""
    with jax.enable_x64(True):
        variables = first_variables(assembled(tiny_config())[0].config)
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)


@functools.cache
def gradient(devices=2, program=False, leave_out="", **changes):
    """`(Result, compiled program)` of the tiny run's first batch of eight pairs in float64, without dropout.

    With `program` the text of what would be compiled instead. `leave_out="negatives"`: the same drawn captions, without
    those made from them.
    """
    config = changed(tiny_config(), changes)
    config.model.text.bert.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    run, data = assembled(config, devices)
    config, mesh = run.config, run.mesh
    drawn = batches_of(data.training, config, data.tokenizer).batch_at(0)
    if leave_out:
        drawn = {name: array for name, array in drawn.items() if "negative" not in name}
        config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, hard_negatives=0))
    batch = place_batch(drawn, mesh)
    with jax.enable_x64(True):
        params = with_scales(first()["params"], config.loss)
        variables = place_state({**first(), "params": params}, mesh)
        compute = build_gradient(build(config.model, dtype=jnp.float64), config, mesh)
        inputs = variables["params"], variables["batch_stats"], batch, jax.random.key(0)
        if program:
            return str(jax.make_jaxpr(compute)(*inputs))
        compiled = jax.jit(compute).lower(*inputs).compile()
        return jax.device_get(compiled(*inputs)), compiled


def assert_same(found, expected, tolerance=1e-9):
    """Losses, ranks, statistics and gradients, the latter relative to each leaf's largest value."""
    np.testing.assert_allclose(found.losses.total, expected.losses.total, rtol=tolerance)
    assert found.ranks.keys() == expected.ranks.keys() and min(expected.ranks.values()) > 1
    for name, rank in expected.ranks.items():
        np.testing.assert_allclose(found.ranks[name], rank, rtol=tolerance, err_msg=name)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance),
        found.batch_stats,
        expected.batch_stats,
    )
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected.gradient))
    for one, other in zip(jax.tree.leaves(found.gradient), jax.tree.leaves(expected.gradient), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("micro_batch", [4, 2])
def test_a_gradient_in_chunks_is_the_one_shot_gradient(micro_batch):
    """Two devices; batch statistics of groups that lie within a device's share of a chunk."""
    groups = {"model.image.statistics_group": micro_batch // 2}
    expected, _ = gradient(**groups)
    found, _ = gradient(**groups, **{"training.micro_batch": micro_batch})
    assert_same(found, expected)


def test_a_gradient_in_chunks_reaches_the_kernel_of_a_low_rank_word_level():
    options = {"model.image.statistics_group": 2, "loss.low_rank": True}
    expected, _ = gradient(devices=1, **options)
    found, _ = gradient(devices=1, **options, **{"training.micro_batch": 2})
    assert_same(found, expected)
    kernel = found.gradient["image_encoder"]["project_shallow"]["kernel"]
    assert float(np.abs(kernel).max()) > 0


@pytest.mark.parametrize(
    ("devices", "changes"), [(1, {}), (2, {"training.micro_batch": 4, "model.image.statistics_group": 2})]
)
def test_what_auto_takes_is_the_same_loss_with_the_same_gradients(devices, changes):
    """Tiled on one device, in a ring on two."""
    assert assembled(changed(tiny_config(), changes), devices)[0].config.loss.low_rank is True
    expected, _ = gradient(devices, **changes, **{"loss.low_rank": False})
    found, _ = gradient(devices, **changes)
    assert_same(found, expected)


@pytest.mark.parametrize("treatment", ["mask", "share"])
def test_twins_of_other_chunks_are_known(treatment):
    """In chunks on two devices, against the definition on one; the batch has twins of both kinds.

    Where captions of the same text have the same embedding, sharing them changes no sum: the report level keeps its
    value.
    """
    groups = {"model.image.statistics_group": 2, "loss.low_rank": False}
    expected, _ = gradient(devices=1, **groups, **{"loss.twins": treatment, "loss.implementation": "definition"})
    found, _ = gradient(**groups, **{"loss.twins": treatment, "training.micro_batch": 4})
    assert_same(found, expected)
    assert min(found.losses.twins.values()) > 0
    published, _ = gradient(devices=1, **groups, **{"loss.implementation": "definition"})
    moved = {level: abs(float(loss - found.losses.levels[level])) for level, loss in published.losses.levels.items()}
    assert min(moved["word"], moved["sentence"]) > 1e-2
    assert (moved["report"] > 1e-2) if treatment == "mask" else (moved["report"] < 1e-12)


@pytest.mark.parametrize(
    "unit",
    [{"loss.contrast_group_order": "length"}, {"loss.contrast_unit": "unit", "loss.region_pooling": "logsumexp"}],
    ids=["captions", "single units"],
)
def test_hard_negatives_are_encoded_in_chunks_too(unit):
    """In chunks on two devices (captions: in a ring), against one device at once (captions: the definition)."""
    options = {"model.image.statistics_group": 2, "loss.low_rank": False, "loss.hard_negatives": 2, **unit}
    one = "tiled" if "loss.contrast_unit" in unit else "definition"
    expected, _ = gradient(devices=1, **options, **{"loss.implementation": one})
    found, _ = gradient(**options, **{"training.micro_batch": 4})
    assert_same(found, expected)
    without, _ = gradient(devices=1, leave_out="negatives", **options | {"loss.implementation": one})
    more = {level: float(loss - without.losses.levels[level]) for level, loss in found.losses.levels.items()}
    assert more["sentence"] > 0.1 and abs(more["word"]) < 1e-9 and abs(more["report"]) < 1e-9


def test_chunks_without_statistics_of_their_own_differ_by_the_batch_norm():
    """What the module says of batch statistics is so: in chunks they are those of each chunk."""
    expected, _ = gradient(devices=1)
    found, _ = gradient(devices=1, **{"training.micro_batch": 4})
    assert abs(float(found.losses.total - expected.losses.total)) > 1e-3
    same, _ = gradient(devices=1, **{"training.micro_batch": 4, "model.image.statistics_group": 4})
    assert_same(found, same)


@pytest.mark.parametrize("remat", ["blocks", "full"])
def test_computing_activations_again_changes_no_number(remat):
    expected, _ = gradient(devices=1)
    found, _ = gradient(devices=1, **{"training.remat": remat})
    assert_same(found, expected)


def test_what_is_not_kept_is_computed_again():
    """Convolutions in the program before the compiler sees it; the CPU's drops repetitions again, TPU's does not."""
    kept, blocks, full = (
        gradient(devices=1, program=True, **{"training.remat": remat}).count("conv_general_dilated")
        for remat in ("none", "blocks", "full")
    )
    assert kept < blocks <= full


def test_less_is_held_in_chunks():
    """Bytes of temporaries of the compiled gradient, 16 pairs of 64 x 64 pixels."""
    options = {"training.batch_size": 16, "model.image.input_size": 64, "model.image.statistics_group": 2}
    held = [
        gradient(devices=1, **options, **change)[1].memory_analysis().temp_size_in_bytes
        for change in ({}, {"training.micro_batch": 2})
    ]
    assert held[1] < 0.8 * held[0]


def test_a_chunk_that_does_not_fit_is_said():
    with pytest.raises(UsageError, match="micro_batch is 3: it must divide the batch of 8"):
        gradient(devices=1, **{"training.micro_batch": 3})


def test_a_gradient_in_chunks_reaches_the_scales_of_the_sigmoid_objective():
    """Around a ring; temperatures and biases are parameters of the run."""
    groups = {"model.image.statistics_group": 2, "loss.objective": "sigmoid"}
    expected, _ = gradient(**groups)
    found, _ = gradient(**groups, **{"training.micro_batch": 4})
    assert_same(found, expected)
    for level in ("report", "sentence", "word"):
        scales = found.gradient["scales"][level]
        assert scales["bias"] != 0 and scales["log_temperature"] != 0
