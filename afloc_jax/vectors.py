"""Norms of embeddings and embeddings of norm 1, safe where a slot is empty."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def norm(vectors: Float[Array, "*S D"]) -> Float[Array, "*S"]:
    """Euclidean norm along the last axis, with gradient 0 (not NaN) at the zero vector.

    optax.safe_norm gives the same, but masks the vectors instead of their norms: a copy of all regions, and two norms.
    """
    squared = jnp.sum(vectors**2, axis=-1)
    nonzero = squared > 0
    return jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squared, 1)), 0)


def unit_norm(vectors: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
    """Vectors divided by their norm, in their own precision; the zero vector stays zero, with gradient 0."""
    length = norm(vectors.astype(jnp.promote_types(vectors.dtype, jnp.float32)))[..., None]
    return (vectors / jnp.where(length > 0, length, 1)).astype(vectors.dtype)
