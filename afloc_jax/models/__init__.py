"""The image and text encoders. `build` returns the model that a config describes."""

from afloc_jax.models.afloc import AFLoc, build
from afloc_jax.models.variables import initial_variables, trainable

__all__ = ["AFLoc", "build", "initial_variables", "trainable"]
