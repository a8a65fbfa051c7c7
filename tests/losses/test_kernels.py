"""The TPU kernels, interpreted, against the definition; compiled for TPUs they are in test_absent_accelerators.py."""

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
    contrast_gradients,
    low_rank_case,
    random_case,
    random_levels,
    sharp_case,
)
from jax.experimental.pallas import tpu as pltpu
from ring_cases import assert_ring_takes_kernels, assert_ring_takes_low_rank_features

from afloc_jax.errors import UsageError
from afloc_jax.losses import contrastive_losses, definition, kernels, tiled
from afloc_jax.losses.kernels import tile
from afloc_jax.losses.settings import LARGEST_KERNEL_TEMPERATURE, LossSettings
from afloc_jax.training.mesh import build_mesh

PALLAS = LossSettings(kernel="pallas")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("regions", "units", "width", "counts"),
    [
        (5, 7, 3, [7, 1, 4]),
        (1, 1, 1, [1]),
        (130, 20, 16, [20, 1, 0, 8, 9, 17, 3]),  # one region more than 128 lanes hold, and an empty caption
        (19, 97, 8, [97, 20, 41, 96, 8, 9, 33, 1, 5, 64]),  # several bins; ten images are not a run of eight
        (6, 130, 4, [130, 2, 129]),  # a caption longer than 128 units
    ],
)
def test_value_and_gradients_are_those_of_the_definition(regions, units, width, counts):
    assert_is_the_definition(random_case(len(counts), regions, units, width, counts), PALLAS)


@pytest.mark.usefixtures("float64")
def test_regions_are_worked_on_in_blocks(monkeypatch):
    """300 regions in blocks of 128: two whole ones, and one of which 44 rows are there."""
    monkeypatch.setattr(tile, "BLOCK_REGIONS", 128)
    (parts, gradients), (expected, expected_gradients) = both(random_case(3, 300, 9, 8, [9, 1, 4]), PALLAS)
    assert_all_close(parts, expected, rtol=1e-12)
    assert_all_close(gradients, expected_gradients, atol=1e-10, rtol=0)


def test_float32_agrees_to_1e_5():
    assert_float32_agrees_to_1e_5(random_case(5, 30, 20, 16, [20, 3, 11, 1, 8], np.float32), PALLAS)


@pytest.mark.parametrize(("kernel", "rtol"), [("pallas", 4e-3), ("xla", 4e-4)])
def test_bfloat16_features_come_near_the_definition_in_float32(kernel, rtol):
    """Products of bfloat16 numbers, sums and everything else float32. XLA's path rounds the weights of a mean region
    alike above and below the line of its cosine, so that its rounding all but cancels."""
    regions, units, counts = random_case(5, 30, 20, 16, [20, 3, 11, 1, 8], jnp.bfloat16)

    def similarity(regions, units):
        return tiled.local_similarity(regions, units, counts, LossSettings(kernel=kernel))

    parts, gradients = contrast_gradients(similarity, regions, units)
    wide = [array.astype(jnp.float32) for array in (regions, units)]
    expected, expected_gradients = contrast_gradients(lambda *given: definition.local_similarity(*given, counts), *wide)
    assert {part.dtype for part in parts} == {jnp.dtype("float32")}
    assert {gradient.dtype for gradient in gradients} == {jnp.dtype("bfloat16")}
    assert_all_close(parts, expected, rtol=rtol)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        assert np.abs(gradient.astype(jnp.float32) - other).max() < 0.02 * np.abs(other).max()


def test_the_sharpest_attention_neither_overflows_nor_vanishes():
    """At the bound."""
    sharpest = LossSettings(attention_temperature=LARGEST_KERNEL_TEMPERATURE, kernel="pallas")
    assert_near_the_float64_definition(sharp_case(), sharpest, 1e-5, 1e-4)


def test_large_features_do_not_overflow():
    regions, units, counts = random_case(3, 6, 9, 8, [9, 2, 5], np.float32)
    (parts, gradients), (expected, _) = both((100 * regions, 100 * units, counts), PALLAS)
    assert_all_close(parts, expected, rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.usefixtures("float64")
def test_degenerate_features_have_the_definitions_finite_gradients():
    assert_degenerate_features_have_finite_gradients(PALLAS)


@pytest.mark.usefixtures("float64")
def test_the_clamp_of_the_cosine_has_the_definitions_gradient(monkeypatch):
    for module in (definition, tile):  # a clamp that ordinary features meet, about half of them
        monkeypatch.setattr(module, "SMALLEST_NORM_PRODUCT", 3.0)
    (parts, gradients), (expected, expected_gradients) = both(random_case(3, 6, 9, 4, [9, 2, 5]), PALLAS)
    assert_all_close(parts, expected, rtol=1e-12)
    assert_all_close(gradients, expected_gradients, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_low_rank_features_give_the_loss_of_projected_ones():
    """The gradient of the units' norms too; one group, and two of odd sizes."""
    for counts, regions, features, width in (([[9, 1, 4, 7]], 6, 5, 8), ([[33, 97, 20], [96, 8, 41]], 7, 3, 3)):
        assert_low_rank_gives_the_projected_loss(low_rank_case(counts, regions, features, width), PALLAS)


@pytest.mark.skipif(jax.device_count() < 8, reason="SKIPPED: needs eight devices, see tests/conftest.py")
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("group", [0, 2])
def test_the_ring_takes_the_kernels(group):
    """Rings of all devices and of two, and groups that one device holds alone; captions are missing."""
    assert_ring_takes_kernels("pallas", group, empty=[0, 7])


@pytest.mark.skipif(jax.device_count() < 8, reason="SKIPPED: needs eight devices, see tests/conftest.py")
@pytest.mark.usefixtures("float64")
def test_the_ring_takes_the_kernels_for_low_rank_features():
    assert_ring_takes_low_rank_features(devices=8, contrast_group=8, kernel="pallas")


def test_the_entry_point_picks_the_kernels_when_told_and_xla_when_not():
    image, text = random_levels(4, [3, 1, 2, 5], [1, 1, 2, 1])

    def program(**changes):
        settings = LossSettings(**changes)
        return str(jax.make_jaxpr(lambda *inputs: contrastive_losses(*inputs, settings).total)(image, text))

    assert "local_similarity_forward" in program(kernel="pallas")
    assert "pallas" not in program()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kernel": "cuda"}, "loss.kernel = 'cuda': must be one of xla, pallas, triton"),
        ({"region_pooling": "logsumexp"}, "not 'logsumexp'; set loss.kernel to 'xla'"),
        ({"pooling_temperature": 50.0}, "loss.pooling_temperature of at most 40, not 50"),
        ({"attention_temperature": 100.0}, "loss.attention_temperature of at most 40, not 100"),
        ({"implementation": "definition"}, "'tiled' or 'ring', not 'definition'"),
        ({"implementation": "tiled"}, "on 8 devices needs loss.implementation = 'ring'"),
    ],
)
def test_what_the_kernels_do_not_do_is_said(changes, words):
    image, text = random_levels(8, [1] * 8, [1] * 8)
    with pytest.raises(UsageError, match=words):
        contrastive_losses(image, text, LossSettings(**{"kernel": "pallas"} | changes), mesh=build_mesh())


def test_an_image_that_vmem_cannot_hold_is_refused():
    """Counted, not tried: 76 x 76 regions of 768 numbers."""
    regions, units = (
        jax.ShapeDtypeStruct((2, 5776, 768), jnp.bfloat16),
        jax.ShapeDtypeStruct((2, 97, 768), jnp.bfloat16),
    )
    counts = jax.ShapeDtypeStruct((2,), np.int32)
    with pytest.raises(UsageError, match=r"5776 regions of width 768 .* take \d+ MiB .* more than 48; set it to 'xla'"):
        jax.eval_shape(lambda *case: tiled.local_similarity(*case, PALLAS), regions, units, counts)


@pytest.mark.parametrize("counts", [[2, 1, 8, 3, 5, 1, 1, 4], [97, 3, 60, 9, 41, 8, 1, 17]])
def test_the_gradient_of_the_text_waits_for_its_copies(counts, monkeypatch):
    """One bin and several, four images a core; a copy happens when it is waited for and not before."""
    strict = pltpu.InterpretParams(dma_execution_mode="on_wait", uninitialized_memory="nan")
    monkeypatch.setattr(kernels, "_on_platform", lambda run, *arguments: run(*arguments, interpret=strict))
    # 128 regions: this interpreter wants arrays of whole blocks.
    case = random_case(8, 128, max(counts), 8, counts, np.float32)
    (parts, gradients), (expected, expected_gradients) = both(case, PALLAS)
    assert_all_close(parts, expected, rtol=1e-5)
    assert_all_close(gradients, expected_gradients, atol=2e-5, rtol=0)
