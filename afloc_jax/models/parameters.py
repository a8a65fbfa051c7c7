"""The base of modules with parameters, which are traced in half the time of Flax's own."""

from collections.abc import Callable

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array

SHAPES = "shapes"
"""A random stream that is given to `init` where only shapes are asked for: every initial value is then 0."""


class Parameters(nn.Module):
    """A module whose parameters are taken as they are.

    Flax traces the initialiser of a parameter also where the parameter exists, to compare their shapes. That is more
    than half of the time of tracing a model. Weights are compared with the architecture where they are read
    (weights/torch_names.py), so a second comparison finds nothing.
    """

    @nn.nowrap
    def param(  # type: ignore[override]  # Flax's own takes initial values of any type
        self, name: str, init_fn: Callable[..., Array], *init_args: tuple[int, ...] | DTypeLike, unbox: bool = True
    ) -> Array:
        """The parameter, which `init_fn(key, *init_args)` makes if there is none."""
        if self.has_variable("params", name):
            existing: Array = self.get_variable("params", name)
            return existing
        made: Array = super().param(name, nn.initializers.zeros if self.has_rng(SHAPES) else init_fn, *init_args)
        return made


class Dense(Parameters, nn.Dense):
    """Flax's linear layer."""


class Embed(Parameters, nn.Embed):
    """Flax's table of embeddings."""
