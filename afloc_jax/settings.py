"""Settings: one frozen dataclass per section of a config, which checks itself wherever its values come from.

A room declares what it reads:

    @dataclass(frozen=True)
    class OptimizerSettings(Settings, section="optimizer"):
        name: Literal["adam", "adamw"] = "adam"
        lr: float = setting(2e-5, POSITIVE)

The annotation gives the type, `Literal` the names to choose from, and `setting` the range. The constructor checks
all of it, so a call from Python, `launch.py` (`read(..., prefix="config.")`), a model folder's config.json and an entry
of `config.evaluation.datasets` refuse the same values with the same words. What two settings of a section must agree
on belongs into that class's `check`.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeAlias, Union, get_args, get_origin

from afloc_jax.errors import UsageError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""A value as JSON holds it."""


@dataclass(frozen=True)
class Rule:
    """A range of values: `allows` says whether a value lies in it, `text` completes "must be ..."."""

    allows: Callable[[Any], bool]
    text: str


POSITIVE = Rule(lambda value: value > 0, "greater than 0")
NOT_NEGATIVE = Rule(lambda value: value >= 0, "0 or greater")
BELOW_ONE = Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")
FACTOR = Rule(lambda value: 0 < value <= 1, "greater than 0 and at most 1")
NOT_EMPTY = Rule(lambda value: len(value) > 0, "not empty")


def at_least(least: int, why: str) -> Rule:
    """The numbers from `least` on; `why` stands in brackets behind it."""
    return Rule(lambda value: value >= least, f"{least} or greater ({why})")


def one_of(names: Iterable[str]) -> Rule:
    """The names of a table. (A choice that is no table is a `Literal`.)"""
    known = tuple(names)
    return Rule(lambda value: value in known, f"one of {', '.join(known)}")


def setting(
    default: Any, rule: Rule | None = None, *, help: str = "", flag: str = "", metavar: str | None = None
) -> Any:
    """A field of a `Settings` class.

    Args:
        default: its value where none is given; a list or a mapping is copied for every object.
        rule: the range of its values.
        help: a line for the command line, where the setting is a flag.
        flag, metavar: the name of that flag, if it is not the setting's, and what stands for its value.
    """
    metadata = {"rule": rule, "help": help, "flag": flag, "metavar": metavar}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Base of all settings. Subclasses are frozen dataclasses and name their section: `class A(Settings, section="a")`.

    Raises:
        UsageError: (from the constructor) names section, key, value and what is allowed.
    """

    section: ClassVar[str] = ""

    def __init_subclass__(cls, section: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if section is not None:
            cls.section = section

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _typed(getattr(self, field.name), _types(type(self))[field.name], self.name_of(field.name))
            object.__setattr__(self, field.name, value)
            rule = field.metadata.get("rule")
            if rule is not None and value is not None and not rule.allows(value):
                raise UsageError(f"{self.name_of(field.name)} = {value!r}: must be {rule.text}")
        self.check()

    def check(self) -> None:
        """What several settings must agree on; each value is right by itself when this is called. Raises UsageError."""

    @classmethod
    def name_of(cls, key: str) -> str:
        """The dotted name of a setting, as a user writes it: "loss.kernel"."""
        return f"{cls.section}.{key}" if cls.section else key

    @classmethod
    def read(cls, given: Mapping[str, Any], *, prefix: str = "") -> Self:
        """Settings from a section of a config, or of a JSON file; what it lacks takes the default.

        Args:
            given: a mapping or a ConfigDict; sections inside it are read by their own classes.
            prefix: what errors begin with: "config." or the file that `given` comes from.

        Raises:
            UsageError: an unknown key, a wrong type or a value out of range.
        """
        try:
            return _typed(plain(given), cls, cls.section)
        except UsageError as error:
            raise type(error)(f"{prefix}{error}") from error.__cause__

    def plain(self) -> dict[str, Json]:
        """The settings as JSON holds them; `read` takes them back."""
        return plain({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


def _types(cls: type[Settings]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def plain(value: Any) -> Any:
    """Nested settings, ConfigDicts, tuples and NumPy numbers as dicts, lists and plain numbers, as JSON takes them."""
    if isinstance(value, Settings):
        return value.plain()
    if hasattr(value, "to_dict"):  # a ConfigDict, whose references are resolved on the way
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if hasattr(value, "dtype") and not getattr(value, "shape", ()) else value


def known_keys(given: Mapping[str, Any], allowed: Sequence[str], section: str) -> None:
    """Refuse keys that nobody would read. Raises UsageError, which names the nearest key that there is."""
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(allowed) or 'none'}"
            raise UsageError(f"{section}{'.' if section else ''}{key}: unknown key; {hint}")


def _typed(value: Any, wanted: Any, name: str) -> Any:
    """`value` as an annotation wants it: sections as settings, lists as tuples, whole numbers as float."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return _typed_union(value, arguments, name)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            raise UsageError(f"{name} = {value!r}: must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{name} = {value!r}: must be a tuple")
        return tuple(_typed(item, arguments[0], f"{name}[{number}]") for number, item in enumerate(value))
    if isinstance(wanted, type) and issubclass(wanted, Settings):
        if isinstance(value, wanted):
            return value
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} = {value!r}: must be a section, a mapping of names to values")
        known_keys(value, [field.name for field in dataclasses.fields(wanted)], wanted.section)
        return wanted(**value)
    kind = origin or wanted
    if kind is Any:
        return value
    right = isinstance(value, (int, float) if kind is float else kind)
    if not right or (isinstance(value, bool) and kind is not bool):
        spoken = "a mapping" if issubclass(kind, Mapping) else f"of type {kind.__name__}"
        raise UsageError(f"{name} = {value!r}: must be {spoken}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name} = {value!r}: must be a finite number")
    return float(value) if kind is float else value


def _typed_union(value: Any, choices: tuple[Any, ...], name: str) -> Any:
    if value is None and type(None) in choices:
        return None
    errors = []
    for choice in choices:
        if choice is not type(None):
            try:
                return _typed(value, choice, name)
            except UsageError as error:
                errors.append(error)
    raise errors[0]
