"""Enforces the shapes in annotations, `Float[Array, "B R D"]`, of every function that is imported while tests run.

jaxtyping's import hook wraps the functions of the packages below, and `checked` is its checker. Only annotations that
hold a shape are checked: tests hand in stand-ins for models and records, whose other types differ on purpose.
Constructors are not checked: JAX builds pytrees of anything, such as shardings or names in the place of arrays.
Off in use; AFLOC_CHECK_SHAPES=0 switches it off here too, for timing.
"""

import os
from collections.abc import Callable
from functools import reduce
from operator import or_
from types import UnionType
from typing import Any, Union, get_args, get_origin

import numpy as np
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, Array, install_import_hook

PACKAGES = (
    "afloc_jax.losses",
    "afloc_jax.levels",
    "afloc_jax.vectors",
    "afloc_jax.interpolation",
    "afloc_jax.heatmaps",
    "afloc_jax.models",
    "afloc_jax.inference",
    "afloc_jax.evaluation",
    "afloc_jax.training",
)
# A number where a float is annotated may be an int, as the type checkers of editors and mypy have it.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def enabled() -> bool:
    return os.environ.get("AFLOC_CHECK_SHAPES", "1") != "0"


def install() -> None:
    """Before the first import of the packages."""
    if enabled():
        install_import_hook(PACKAGES, "tests.shapes.checked")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises where an argument or its result has another shape than annotated."""
    shaped = {name: kind for name, kind in function.__annotations__.items() if _has_shape(kind)}
    if not shaped or function.__qualname__.endswith("__init__"):
        return function
    kinds = {name: _or_numpy(shaped[name]) if name in shaped else Any for name in function.__annotations__}
    function.__annotations__ = kinds
    return _check(function)


def _is_array(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, AbstractArray)


def _has_shape(kind: Any) -> bool:
    return _is_array(kind) or any(_has_shape(part) for part in get_args(kind))


def _or_numpy(kind: Any) -> Any:
    """The type with `np.ndarray | Array` for `Array`: JAX takes arrays of NumPy wherever it takes its own."""
    if _is_array(kind):
        return kind.dtype[Array | np.ndarray, kind.dim_str] if kind.array_type is Array else kind
    origin = get_origin(kind)
    if not _has_shape(kind):
        return kind
    parts = tuple(_or_numpy(part) for part in get_args(kind))
    return reduce(or_, parts) if origin in (Union, UnionType) else origin[parts]
