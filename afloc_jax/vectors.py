"""Norms of embeddings, and embeddings of norm 1, with defined gradients for empty slots (zero vectors)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def norm(vectors: Float[Array, "*S D"]) -> Float[Array, "*S"]:
    """The Euclidean norm along the last axis, with gradient 0 (not NaN) at the zero vector.

    optax.safe_norm gives the same, but it masks the vectors and not their norms, which copies all regions.
    """
    squared = jnp.sum(vectors**2, axis=-1)
    nonzero = squared > 0
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squared, 1)), 0)


def unit_norm(vectors: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
    """The vectors divided by their norm, in their precision. A zero vector stays zero, with gradient 0.

    >>> unit_norm(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    Array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    length = norm(vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32)))[..., None]
    return (vectors / jnp.where(length > 0, length, 1)).astype(vectors.dtype)
