"""Modules whose parameters are taken as they are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamNotFoundError

from afloc_jax.models.normalization import LayerNorm
from afloc_jax.models.parameters import SHAPES, Dense, Embed

X = jnp.ones((2, 3))


@pytest.mark.parametrize(
    ("ours", "theirs", "given"),
    [
        (Dense(4), nn.Dense(4), X),
        (LayerNorm(1e-6), nn.LayerNorm(), X),
        (Embed(5, 4), nn.Embed(5, 4), jnp.array([1, 2])),
    ],
)
def test_initial_values_and_outputs_are_those_of_flax(ours, theirs, given):
    variables = ours.init(jax.random.key(1), given)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs.init(jax.random.key(1), given))
    np.testing.assert_array_equal(ours.apply(variables, given), theirs.apply(variables, given))


def test_an_initialiser_runs_only_where_its_values_are_asked_for():
    def refuse(*_):
        raise AssertionError("initialised")

    dense, keys = Dense(4, kernel_init=refuse), {"params": jax.random.key(0), SHAPES: jax.random.key(0)}
    with pytest.raises(AssertionError, match="initialised"):
        dense.init(jax.random.key(0), X)
    shapes = jax.eval_shape(lambda: dense.init(keys, X))["params"]
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in shapes.items()} == {
        "kernel": ((3, 4), jnp.float32),
        "bias": ((4,), jnp.float32),
    }
    params = {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}
    np.testing.assert_array_equal(dense.apply({"params": params}, X), jnp.full((2, 4), 3.0))


def test_a_missing_parameter_is_told():
    with pytest.raises(ScopeParamNotFoundError, match="bias"):
        Dense(4).apply({"params": {"kernel": jnp.ones((3, 4))}}, X)
