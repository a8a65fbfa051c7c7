"""Image and text encoders. `build` makes the model that a config describes."""

from afloc_jax.models.afloc import AFLoc, build, trainable

__all__ = ["AFLoc", "build", "trainable"]
