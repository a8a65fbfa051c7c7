"""Settings check themselves: types, names, ranges and unknown keys, wherever the values come from."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
from ml_collections import ConfigDict

from afloc_jax.errors import UsageError
from afloc_jax.settings import NOT_EMPTY, POSITIVE, Json, Settings, at_least, setting


@dataclass(frozen=True)
class Oven(Settings, section="kitchen.oven"):
    heat: Literal["gas", "coal"] = "gas"
    degrees: float = setting(180.0, POSITIVE)
    shelves: tuple[int, ...] = (1, 2)
    fan: bool = False
    light: Literal["auto", True, False] = "auto"
    limit: float | None = None

    def check(self) -> None:
        if self.fan and self.heat == "coal":
            raise UsageError(f"{self.name_of('fan')} = True: coal has none")


@dataclass(frozen=True)
class Kitchen(Settings, section="kitchen"):
    name: str = setting("small", NOT_EMPTY)
    seats: int = setting(4, at_least(2, "a guest and a cook"))
    oven: Oven = Oven()
    extras: Mapping[str, Json] = setting({})


def test_what_is_missing_takes_the_default_and_nothing_else_changes():
    kitchen = Kitchen.read({"seats": 6, "oven": {"degrees": 200}})
    assert kitchen == Kitchen(seats=6, oven=Oven(degrees=200.0))
    assert isinstance(kitchen.oven.degrees, float)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seats": 1}, r"kitchen\.seats = 1: must be 2 or greater \(a guest and a cook\)"),
        ({"seats": True}, r"kitchen\.seats = True: must be of type int"),
        ({"seats": 2.0}, r"kitchen\.seats = 2\.0: must be of type int"),
        ({"name": ""}, r"kitchen\.name = '': must be not empty"),
        ({"seat": 2}, r"kitchen\.seat: unknown key; did you mean seats\?"),
        ({"zzz": 2}, r"kitchen\.zzz: unknown key; known: name, seats, oven, extras"),
        ({"oven": 3}, r"kitchen\.oven = 3: must be a section"),
        ({"extras": 3}, r"kitchen\.extras = 3: must be a mapping"),
        ({"oven": {"light": 1}}, r"kitchen\.oven\.light = 1: must be one of auto, True, False"),
        ({"oven": {"heat": "Gas"}}, r"kitchen\.oven\.heat = 'Gas': must be one of gas, coal"),
        ({"oven": {"degrees": float("nan")}}, r"kitchen\.oven\.degrees = nan: must be a finite number"),
        ({"oven": {"degrees": -1}}, r"kitchen\.oven\.degrees = -1\.0: must be greater than 0"),
        ({"oven": {"shelves": [1, "2"]}}, r"kitchen\.oven\.shelves\[1\] = '2': must be of type int"),
        ({"oven": {"shelves": 1}}, r"kitchen\.oven\.shelves = 1: must be a tuple"),
        ({"oven": {"heat": "coal", "fan": True}}, r"kitchen\.oven\.fan = True: coal has none"),
        ({"oven": {"limit": "x"}}, r"kitchen\.oven\.limit = 'x': must be of type float"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed_and_where_they_stand(given, message):
    with pytest.raises(UsageError, match=rf"^config\.{message}"):
        Kitchen.read(given, prefix="config.")
    with pytest.raises(UsageError, match=rf"^model/config\.json: {message}"):
        Kitchen.read(ConfigDict(given), prefix="model/config.json: ")


def test_the_constructor_checks_what_a_file_is_checked_for():
    with pytest.raises(UsageError, match=r"^kitchen\.oven\.degrees = 0\.0: must be greater than 0"):
        Oven(degrees=0)
    with pytest.raises(UsageError, match=r"^kitchen\.oven\.fan = True"):
        dataclasses.replace(Oven(heat="coal"), fan=True)


def test_settings_come_back_from_their_plain_form():
    kitchen = Kitchen(oven=Oven(shelves=(3,), limit=2), extras={"a": (1, np.float32(0.5))})
    assert kitchen.plain() == {
        "name": "small",
        "seats": 4,
        "oven": {"heat": "gas", "degrees": 180.0, "shelves": [3], "fan": False, "light": "auto", "limit": 2.0},
        "extras": {"a": [1, 0.5]},
    }
    assert Kitchen.read(kitchen.plain()).plain() == kitchen.plain()


def test_a_mutable_default_belongs_to_one_object():
    first = Kitchen()
    first.extras["a"] = 1
    assert Kitchen().extras == {}
