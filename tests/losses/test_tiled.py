"""Tiled against the definition: same values and gradients, whatever the shapes, lengths and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.losses import definition, tiled
from afloc_jax.losses.contrast import contrast
from afloc_jax.losses.low_rank import reduce_rank
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


@pytest.mark.parametrize("pooling", ["attention", "logsumexp"])
def test_low_rank_features_give_the_same_loss_as_projected_ones(pooling):
    settings = LocalSettings(region_pooling=pooling)
    with jax.enable_x64(True):
        features, units, counts = random_case(4, 6, 9, 5, [9, 1, 4, 7])
        kernel = jnp.asarray(np.random.default_rng(1).standard_normal((5, 8)))
        units = jnp.asarray(np.random.default_rng(2).standard_normal((4, 9, 8)))

        def projected(features, kernel, units):
            return sum(contrast(definition.local_similarity(features @ kernel, units, counts, settings)))

        def reduced(features, kernel, units):
            regions, units, norms = reduce_rank(features, kernel, units)
            similarity = tiled.grouped_similarity(regions[None], units[None], counts[None], settings, norms[None])
            return sum(contrast(similarity))

        expected, expected_gradients = jax.value_and_grad(projected, (0, 1, 2))(features, kernel, units)
        loss, gradients = jax.jit(jax.value_and_grad(reduced, (0, 1, 2)))(features, kernel, units)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, atol=1e-10, rtol=0)
