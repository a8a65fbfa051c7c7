"""Tiled against the definition: same values and gradients, whatever the shapes, lengths and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.losses import definition, tiled
from afloc_jax.losses.contrast import contrast
from afloc_jax.losses.settings import LocalSettings


def random_case(images, regions, units, width, counts, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return (
        jnp.asarray(rng.standard_normal((images, regions, width)), dtype),
        jnp.asarray(rng.standard_normal((len(counts), units, width)), dtype),
        jnp.asarray(counts),
    )


def loss_and_gradients(similarity, regions, units, counts, settings=LocalSettings()):  # noqa: B008
    @jax.jit
    def run(regions, units):
        return jax.value_and_grad(lambda *x: sum(contrast(similarity(*x, counts, settings))), (0, 1))(regions, units)

    return run(regions, units)


@pytest.mark.parametrize("pooling", ["attention", "logsumexp"])
@pytest.mark.parametrize(
    ("regions", "units", "width", "counts"),
    [(5, 7, 3, [7, 1, 4]), (1, 1, 1, [1]), (49, 97, 16, [97, 20, 41, 96, 8, 9, 33]), (9, 20, 8, [20] * 16)],
)
def test_tiled_equals_the_definition(pooling, regions, units, width, counts):
    with jax.enable_x64(True):
        case = random_case(len(counts), regions, units, width, counts)
        settings = LocalSettings(region_pooling=pooling)
        expected, expected_gradients = loss_and_gradients(definition.local_similarity, *case, settings)
        loss, gradients = loss_and_gradients(tiled.local_similarity, *case, settings)
        np.testing.assert_allclose(loss, expected, rtol=1e-12, atol=1e-12)
        for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(gradient, expected_gradient, atol=1e-10, rtol=0)
