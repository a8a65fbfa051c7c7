"""Settings: one frozen dataclass per section of a config, which checks its values wherever they come from.

A package declares the settings that it reads:

    @dataclass(frozen=True)
    class OptimizerSettings(Settings, section="optimizer"):
        name: Literal["adam", "adamw"] = "adam"
        lr: float = setting(2e-5, POSITIVE)

The annotation gives the type, `Literal` the allowed names, and `setting` the range. The constructor checks all of them.
A call from Python, `launch.py` (`read(..., prefix="config.")`), a model folder's config.json and an entry of
`config.evaluation.datasets` therefore refuse the same values with the same message. Rules between settings of a section
belong in the `check` of its class.
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
"""A JSON value."""


_LONGEST_SHOWN = 200  # letters of a value in an error


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
    """The rule for numbers from `least` on. The error gives `why` in brackets."""
    return Rule(lambda value: value >= least, f"{least} or greater ({why})")


def up_to(most: int) -> Rule:
    """The rule for counts and sizes. What a file states is refused before memory is taken for it."""
    return Rule(lambda value: 0 < value <= most, f"greater than 0 and at most {most:,}")


def one_of(names: Iterable[str]) -> Rule:
    """The rule for a name of a table. (Names that are in no table are given by a `Literal`.)"""
    known = tuple(names)
    return Rule(lambda value: value in known, f"one of {', '.join(known)}")


def each_of(names: Iterable[str]) -> Rule:
    """The rule for several names of a table, each at most once."""
    known = tuple(names)
    return Rule(
        lambda value: len({*value}) == len(value) and {*value} <= {*known}, f"a tuple of some of {', '.join(known)}"
    )


def setting(
    default: Any, rule: Rule | None = None, *, help: str = "", flag: str = "", metavar: str | None = None
) -> Any:
    """A field of a `Settings` class.

    Args:
        default: the default value; a list or a mapping is copied for every object.
        rule: the range of allowed values.
        help: the help text of the flag, where the setting is one.
        flag, metavar: the name of the flag if it differs from the setting's, and the placeholder of its value.
    """
    metadata = {"rule": rule, "help": help, "flag": flag, "metavar": metavar}
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The base of all settings: frozen dataclasses that name their section, as in `class A(Settings, section="a")`.

    Raises:
        UsageError: (from the constructor) a value is wrong. The message names the key, its value and what is allowed.

    >>> @dataclass(frozen=True)
    ... class Filter(Settings, section="filter"):
    ...     sigma: float = setting(1.5, NOT_NEGATIVE)
    ...     border: Literal["reflect", "zero"] = "reflect"
    >>> Filter.read({"sigma": 2})
    Filter(sigma=2.0, border='reflect')
    >>> Filter.read({"sigm": 2})
    Traceback (most recent call last):
    afloc_jax.errors.UsageError: filter.sigm: unknown key; did you mean sigma?
    >>> Filter(sigma=-1)
    Traceback (most recent call last):
    afloc_jax.errors.UsageError: filter.sigma = -1.0: must be 0 or greater
    """

    section: ClassVar[str] = ""

    def __init_subclass__(cls, section: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if section is not None:
            cls.section = section

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _typed(getattr(self, field.name), kinds[field.name], self.name_of(field.name))
            object.__setattr__(self, field.name, value)
            rule = field.metadata.get("rule")
            if rule is not None and value is not None and not rule.allows(value):
                shown = repr(value)
                shown = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}..."
                raise UsageError(f"{self.name_of(field.name)} = {shown}: must be {rule.text}")
        self.check()

    def check(self) -> None:
        """Checks rules between several settings; it is called after each value is checked. Raises UsageError."""

    @classmethod
    def name_of(cls, key: str) -> str:
        """The dotted name of a setting as a user writes it, such as "loss.kernel"."""
        return f"{cls.section}.{key}" if cls.section else key

    @classmethod
    def read(cls, given: Mapping[str, Any], *, prefix: str = "") -> Self:
        """The settings from a section of a config or of a JSON file. Missing keys take their default.

        Args:
            given: a mapping or a ConfigDict; sections inside it are read by their own classes.
            prefix: the start of error messages: "config.", or the file that `given` comes from.

        Raises:
            UsageError: a key is unknown, or a value has a wrong type or is out of range.
        """
        try:
            return _typed(plain(given), cls, cls.section)
        except UsageError as error:
            raise type(error)(f"{prefix}{error}") from error.__cause__

    def plain(self) -> dict[str, Json]:
        """The settings as JSON values, which `read` reads back."""
        return plain({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})


def plain(value: Any) -> Any:
    """Nested settings, ConfigDicts, tuples and NumPy numbers as JSON values: dicts, lists and Python numbers."""
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
    """Raises UsageError for a key that is not `allowed`; the message names the most similar one."""
    for key in given:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(allowed) or 'none'}"
            raise UsageError(f"{section}{'.' if section else ''}{key}: unknown key; {hint}")


def _typed(value: Any, wanted: Any, name: str) -> Any:
    """`value` in the type of an annotation: sections become settings, lists tuples, and integers floats."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return _typed_union(value, arguments, name)
    if origin is Literal:
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in arguments):
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
