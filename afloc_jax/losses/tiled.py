"""The local similarity, a tile at a time. Placeholder of one commit: the definition, so that training can start."""

from afloc_jax.losses.definition import local_similarity

__all__ = ["local_similarity"]
