"""Self-attention over many tokens, one head at a time, so that the memory of its weights is that of one head."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

COMPUTED_AGAIN = "computed_again"
"""The name scope of products that a backward pass computes a second time, which model FLOPs do not count."""


@jax.custom_vjp
def attend(
    query: Float[Array, "B L H d"], key: Float[Array, "B L H d"], value: Float[Array, "B L H d"]
) -> Float[Array, "B L H d"]:
    """softmax(query key^T / sqrt(d)) value of every head (Vaswani et al., arXiv 1706.03762).

    Logits and softmax are in at least float32. Kept for the backward pass are the arguments: at 1,370 tokens the
    weights of twelve heads would take 86 MiB an image. The backward pass computes those of one head at a time again.
    """
    attended: Array = _by_head(_attend_head, query, key, value)
    return attended


def _weights(query: Float[Array, "B L d"], key: Float[Array, "B L d"]) -> Float[Array, "B L L"]:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("bqd,bkd->bqk", query, key, preferred_element_type=wide)
    return jax.nn.softmax(logits / query.shape[-1] ** 0.5, axis=-1)


def _attend_head(query: Array, key: Array, value: Array) -> Array:
    return jnp.einsum("bqk,bkd->bqd", _weights(query, key).astype(value.dtype), value)


def _by_head(function: Callable[..., PyTree[Array]], *arrays: Float[Array, "B L H d"]) -> PyTree[Array]:
    """The results [B, L, H, d] of a function of arrays [B, L, d], for each head of arrays [B, L, H, d]."""
    heads = tuple(jnp.moveaxis(array, 2, 0) for array in arrays)
    found = lax.map(lambda head: function(*head), heads)
    return jax.tree.map(lambda array: jnp.moveaxis(array, 0, 2), found)


def _forward(query: Array, key: Array, value: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return attend(query, key, value), (query, key, value)


def _backward(saved: tuple[Array, Array, Array], d_result: Array) -> tuple[Array, Array, Array]:
    def of_head(query: Array, key: Array, value: Array, d_result: Array) -> tuple[Array, Array, Array]:
        with jax.named_scope(COMPUTED_AGAIN):
            weights = _weights(query, key)
        d_value = jnp.einsum("bqk,bqd->bkd", weights.astype(value.dtype), d_result)
        d_weights = jnp.einsum("bqd,bkd->bqk", d_result, value, preferred_element_type=weights.dtype)
        d_logits = weights * (d_weights - (d_weights * weights).sum(axis=-1, keepdims=True))
        d_logits = (d_logits / query.shape[-1] ** 0.5).astype(query.dtype)
        d_query, d_key = jnp.einsum("bqk,bkd->bqd", d_logits, key), jnp.einsum("bqk,bqd->bkd", d_logits, query)
        return d_query, d_key, d_value

    gradients: tuple[Array, Array, Array] = _by_head(of_head, *saved, d_result)
    return gradients


attend.defvjp(_forward, _backward)
