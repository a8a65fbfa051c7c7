"""Normalisation and pooling against their definitions in float64: values, hard inputs, gradients written by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.models.convolution import max_and_place, max_pool, spread
from afloc_jax.models.normalization import BatchNorm, LayerNorm, one_pass


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("mean", [0, 1, 100, 10_000])
@pytest.mark.parametrize("shape", [(4, 9, 7, 5), (1, 1, 1, 5), (3, 40, 1, 5), (2, 4, 6, 6, 5)])
def test_statistics_in_one_pass_are_as_exact_as_those_in_two(mean, shape):
    """Float32 numbers whose mean is up to 10,000 standard deviations, against float64."""
    x = (draw(*shape) + mean).astype(np.float32)
    exact, axes = x.astype(np.float64), tuple(range(len(shape) - 4, len(shape) - 1))
    found_mean, found_var = one_pass(jnp.asarray(x))
    np.testing.assert_allclose(found_mean, exact.mean(axes, keepdims=True), rtol=3e-7, atol=3e-7)
    np.testing.assert_allclose(found_var, exact.var(axes, keepdims=True), rtol=2e-6 + 1e-7 * mean, atol=1e-12)


@pytest.mark.parametrize("outlier", [(0, 0), (20, 20), (39, 39)])
def test_a_pixel_far_from_all_others_leaves_the_variance_near(outlier):
    """Even where it is the middle one, from which all differences are taken: the worst case for one pass."""
    x = np.full((2, 40, 40, 3), 1.0, np.float32)
    x[:, *outlier] = 1e4
    expected = x.astype(np.float64).var((0, 1, 2), keepdims=True)
    np.testing.assert_allclose(one_pass(jnp.asarray(x))[1], expected, rtol=1e-3)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("group", [0, 2])
def test_the_gradient_of_batch_norm_is_that_of_its_definition(group, relu):
    def definition(params, x):
        parts = x.reshape(-1, group or len(x), *x.shape[1:])
        mean, var = parts.mean((1, 2, 3), keepdims=True), parts.var((1, 2, 3), keepdims=True)
        y = ((parts - mean) / jnp.sqrt(var + 1e-5) * params["scale"] + params["bias"]).reshape(x.shape)
        return jax.nn.relu(y) if relu else y

    with jax.enable_x64(True):
        norm = BatchNorm(statistics_group=group, relu=relu, dtype=jnp.float64, param_dtype=jnp.float64)
        params, x, d_y = (
            {"scale": draw(5, seed=1), "bias": draw(5, seed=2)},
            draw(4, 3, 6, 5) + 3,
            draw(4, 3, 6, 5, seed=3),
        )
        rest = {"batch_stats": norm.init(jax.random.key(0), x)["batch_stats"]}

        def ours(params, x):
            return norm.apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])[0]

        compare(ours, definition, params, x, d_y=d_y)


def test_layer_norm_and_its_gradient_are_flaxs():
    with jax.enable_x64(True):
        norm, other = (
            kind(epsilon=1e-12, dtype=jnp.float64, param_dtype=jnp.float64) for kind in (LayerNorm, nn.LayerNorm)
        )
        params, x = {"scale": draw(7, seed=1), "bias": draw(7, seed=2)}, draw(2, 3, 7) + 5
        compare(
            lambda params, x: norm.apply({"params": params}, x),
            lambda params, x: other.apply({"params": params}, x),
            params, x, d_y=draw(2, 3, 7, seed=3),
        )  # fmt: skip


@pytest.mark.parametrize("size", [(7, 8), (9, 9), (6, 4), (1, 2)])
def test_pooling_and_its_gradient_are_xlas_also_among_equals(size):
    """On this platform, and the way of GPUs: the gradient goes to the first of several equal maxima."""
    x = jnp.asarray(np.maximum(np.random.default_rng(0).integers(-2, 4, (2, *size, 3)), 0), jnp.float32)
    d_y = draw(2, -(-size[0] // 2), -(-size[1] // 2), 3).astype(np.float32)
    expected, pull = jax.vjp(lambda x: nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))), x)
    compare(max_pool, lambda x: nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1))), x, d_y=d_y)
    pooled, place = max_and_place(x)
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_allclose(spread(place, x, jnp.asarray(d_y)), pull(d_y)[0], rtol=1e-6, atol=1e-6)


def test_pooling_does_not_hide_what_is_not_a_number():
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan)
    assert np.isnan(max_and_place(x)[0]).all()


def compare(ours, theirs, *inputs, d_y, rtol=1e-10):
    inputs = jax.tree.map(jnp.asarray, inputs)
    (y, pull), (expected, pull_theirs) = jax.vjp(ours, *inputs), jax.vjp(theirs, *inputs)
    np.testing.assert_allclose(y, expected, rtol=rtol, atol=rtol)
    for mine, other in zip(jax.tree.leaves(pull(d_y)), jax.tree.leaves(pull_theirs(d_y)), strict=True):
        np.testing.assert_allclose(mine, other, rtol=rtol, atol=rtol)
