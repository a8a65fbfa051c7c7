"""Command-line options made from settings: each field with a help text becomes one."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from afloc_jax.cli.arguments import Arguments, count, setting, thresholds
from afloc_jax.settings import Settings


@dataclass(frozen=True)
class Option:
    """The flag of a field of settings."""

    name: str
    flag: str
    arguments: Mapping[str, Any]  # keyword arguments of add_argument
    default: Any

    def add(self, command: Arguments) -> None:
        """Adds the flag. Where a call does not give it, the namespace lacks it and the settings' default applies."""
        command.add_argument(self.flag, dest=self.name, default=argparse.SUPPRESS, **self.arguments)


def options_of(settings: type[Settings], names: Collection[str] = ()) -> list[Option]:
    """The options of a settings class, all of them or those in `names`."""
    kinds = typing.get_type_hints(settings)
    fields = [field for field in dataclasses.fields(settings) if field.metadata.get("help")]
    return [_option(field, kinds[field.name]) for field in fields if not names or field.name in names]


def given_options(given: argparse.Namespace, options: Sequence[Option]) -> dict[str, Any]:
    """The values given on the command line, in the form that `Settings.read` reads."""
    values = {option.name: getattr(given, option.name) for option in options if hasattr(given, option.name)}
    return {name: dict(value) if name == "builder" else value for name, value in values.items()}


def _option(field: "dataclasses.Field[Any]", kind: Any) -> Option:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    shown = "" if default in (None, "", False, (), {}) else f" (default: {default})"
    arguments = {"help": field.metadata["help"].replace("%", "%%") + shown, **_arguments(kind)}
    if field.metadata["metavar"]:
        arguments["metavar"] = field.metadata["metavar"]
    return Option(field.name, f"--{field.metadata['flag'] or field.name}", arguments, default)


def _arguments(kind: Any) -> dict[str, Any]:
    """The arguments with which argparse reads a value of a type."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = typing.get_args(kind)[0]
    if kind is bool:
        return {"action": "store_true"}
    if typing.get_origin(kind) is Literal:
        return {"choices": typing.get_args(kind)}
    if typing.get_origin(kind) is Mapping:
        return {"action": "append", "type": setting}
    if typing.get_origin(kind) is tuple:
        return {"type": thresholds} if typing.get_args(kind)[0] is float else {"action": "append"}
    return {"type": count} if kind is int else {}
