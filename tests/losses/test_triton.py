"""The GPU kernels, interpreted, against the definition; compiled for a GPU they are in benchmarks/gpu_kernel.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    assert_all_close,
    assert_degenerate_features_have_finite_gradients,
    assert_float32_agrees_to_1e_5,
    assert_is_the_definition,
    assert_low_rank_gives_the_projected_loss,
    assert_near_the_float64_definition,
    both,
    low_rank_case,
    random_case,
    random_levels,
    sharp_case,
)
from ring_cases import assert_ring_takes_kernels, assert_ring_takes_low_rank_features

from afloc_jax.errors import UsageError
from afloc_jax.losses import contrastive_losses, definition, region_pooling, tile_size, tiled
from afloc_jax.losses.settings import NEAR_ONE_TEMPERATURE, LossSettings
from afloc_jax.training.mesh import build_mesh

TRITON = LossSettings(kernel="triton")
ON_GPU = {"settings": TRITON, "platform": "gpu"}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("regions", "units", "width", "counts"),
    [
        pytest.param(1, 1, 1, [1], marks=pytest.mark.slow),
        (130, 20, 16, [20, 1, 0, 8, 9, 17, 3]),  # several blocks of regions, the last one not full; an empty caption
        (19, 97, 70, [97, 20, 41, 96, 8, 9, 33, 1, 5, 64, 97, 90]),  # twelve bins in tiles of five; 70 is not 64
        pytest.param(6, 300, 4, [300, 2, 129], marks=pytest.mark.slow),  # bins of more than 256 units
    ],
)
def test_value_and_gradients_are_those_of_the_definition(regions, units, width, counts, monkeypatch):
    monkeypatch.setattr(tile_size, "TRITON", dataclasses.replace(tile_size.TRITON, bins=5))
    assert_is_the_definition(random_case(len(counts), regions, units, width, counts), **ON_GPU)


def test_float32_agrees_to_1e_5():
    assert_float32_agrees_to_1e_5(random_case(5, 67, 20, 16, [20, 3, 11, 1, 8], np.float32), **ON_GPU)


def test_bfloat16_features_come_as_near_to_the_definition_as_by_xla():
    """The case and the bounds of XLA's tiles in test_kernels.py. The kernels round p as well, for the gradients."""
    case = random_case(5, 30, 20, 16, [20, 3, 11, 1, 8], jnp.bfloat16)
    assert_near_the_float64_definition(case, TRITON, 4e-4, 0.02)


def test_scores_far_apart_do_not_vanish():
    """Captions of one bin whose scores differ by thousands: each has its own maximum."""
    regions, units, counts = random_case(3, 70, 9, 8, [9, 2, 5], np.float32)
    case = 100 * regions, units * jnp.array([100, 1, 0.01])[:, None, None], counts
    (parts, gradients), (expected, _) = both(case, **ON_GPU)
    assert_all_close(parts, expected, rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_the_sharpest_attention_does_not_overflow():
    sharpest = LossSettings(attention_temperature=NEAR_ONE_TEMPERATURE, kernel="triton")
    assert_near_the_float64_definition(sharp_case(), sharpest, 1e-5, 1e-4)


@pytest.mark.usefixtures("float64")
def test_degenerate_features_have_the_definitions_finite_gradients(monkeypatch):
    for module in (definition, region_pooling):  # a clamp that ordinary features meet, about half of them
        monkeypatch.setattr(module, "SMALLEST_NORM_PRODUCT", 3.0)
    assert_degenerate_features_have_finite_gradients(**ON_GPU)


@pytest.mark.usefixtures("float64")
def test_low_rank_features_give_the_loss_of_projected_ones():
    """The gradient of the units' norms too; two groups."""
    assert_low_rank_gives_the_projected_loss(low_rank_case([[33, 97, 20], [96, 8, 41]], 7, 3, 3), TRITON)


@pytest.mark.skipif(jax.device_count() < 8, reason="SKIPPED: needs eight devices, see tests/conftest.py")
@pytest.mark.usefixtures("float64")
@pytest.mark.slow
def test_the_ring_takes_the_kernels():
    """Rings of two devices."""
    assert_ring_takes_kernels("triton", group=2, empty=[0])
    assert_ring_takes_low_rank_features(devices=8, contrast_group=8, kernel="triton")


def test_the_entry_point_picks_the_kernels_when_told():
    image, text = random_levels(4, [3, 1, 2, 5], [1, 1, 2, 1])
    loss = jax.grad(lambda *inputs: contrastive_losses(*inputs, TRITON).total)
    program = str(jax.make_jaxpr(loss)(image, text))
    assert "local_weights" in program
    assert "local_d_scores" in program


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"region_pooling": "logsumexp"},
            "loss.kernel = 'triton': computes .* not 'logsumexp'; set loss.kernel to 'xla'",
        ),
        ({"attention_temperature": 21.0}, "loss.attention_temperature of at most 20, not 21; set loss.kernel to 'xla'"),
        ({"implementation": "definition"}, "'triton': needs loss.implementation = 'tiled' or 'ring', not 'definition'"),
        ({"implementation": "tiled"}, "'triton': on 8 devices needs loss.implementation = 'ring'"),
    ],
)
def test_what_the_kernels_do_not_do_is_said(changes, words):
    image, text = random_levels(8, [1] * 8, [1] * 8)
    with pytest.raises(UsageError, match=words):
        contrastive_losses(image, text, LossSettings(**{"kernel": "triton"} | changes), mesh=build_mesh())


def test_a_tpu_is_refused():
    regions, units, counts = random_case(1, 2, 1, 3, [1], np.float32)
    with pytest.raises(UsageError, match="'triton': is for GPUs; set it to 'xla' on TPUs"):
        tiled.grouped_similarity(regions[None], units[None], counts[None], TRITON, platform="tpu")
