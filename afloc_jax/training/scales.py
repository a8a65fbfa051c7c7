"""The temperatures and biases that the sigmoid objective learns: parameters of a run that are no part of the model."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from afloc_jax.files import Json
from afloc_jax.levels import LEVELS, LevelName
from afloc_jax.losses import LossSettings, Scale

SCALES = "scales"
"""Their name beside the model's modules, in the parameters of a state."""


def with_scales(params: Mapping[str, PyTree[Array]], settings: LossSettings) -> Mapping[str, PyTree[Array]]:
    """The model's parameters, and the scales of all levels whose weight is not 0 where they start."""
    if settings.objective != "sigmoid":
        return params
    return {**params, SCALES: {level: vars(Scale.initial(settings)) for level in LEVELS if settings.weights.of(level)}}


def scales_of(params: Mapping[str, PyTree[Array]]) -> dict[LevelName, Scale] | None:
    """The scales among the parameters; None where there are none."""
    found = params.get(SCALES)
    return None if found is None else {level: Scale(**found[level]) for level in found}


def of_model(params: Mapping[str, PyTree[Array]]) -> dict[str, PyTree[Array]]:
    """The parameters without the scales."""
    return {name: modules for name, modules in params.items() if name != SCALES}


def told(params: Mapping[str, PyTree[Array]]) -> dict[str, Json]:
    """The temperature exp(t') and the bias of each level, for the model card; empty where there are none."""
    found = scales_of(params) or {}
    return {
        level: {"temperature": float(jnp.exp(scale.log_temperature)), "bias": float(scale.bias)}
        for level, scale in found.items()
    }
