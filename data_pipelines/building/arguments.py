"""The keyword arguments of builders, as their signatures state them."""

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from afloc_jax.errors import UsageError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_OURS = __name__.removesuffix("building.arguments")  # also where the package lies in another one


def arguments_of(builder: type) -> dict[str, inspect.Parameter]:
    """The keyword arguments of a builder and of its base classes in this package."""
    arguments: dict[str, inspect.Parameter] = {}
    for cls in builder.__mro__:
        if cls.__module__.startswith(_OURS) and "__init__" in vars(cls):
            arguments = {**inspect.signature(vars(cls)["__init__"]).parameters, **arguments}
    return {name: argument for name, argument in arguments.items() if name not in ("self", "kwargs")}


def check_choices(builder: "tfds.core.DatasetBuilder") -> None:
    """Checks the attributes whose argument is a Literal. Raises UsageError for a name that is not allowed."""
    for name, argument in arguments_of(type(builder)).items():
        allowed = get_args(argument.annotation) if get_origin(argument.annotation) is Literal else ()
        if allowed and getattr(builder, name) not in allowed:
            raise UsageError(f"{name} is {getattr(builder, name)!r}, must be one of {', '.join(map(str, allowed))}")


def texts(name: str, value: Iterable[str]) -> tuple[str, ...]:
    """A tuple of texts. Raises UsageError for a single text, which Python would read as a list of letters."""
    if isinstance(value, str):
        raise UsageError(f"{name} is the text {value!r}; write it as a list")
    return tuple(value)
