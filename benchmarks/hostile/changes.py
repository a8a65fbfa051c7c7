"""Changes that make a folder of valid files bad."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NAN = float("nan")


def replaced(name: str, content: bytes | str) -> Callable[[Path], None]:
    """A change that gives a file another content."""
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content

    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


def cut(name: str, share: float) -> Callable[[Path], None]:
    """A change that keeps the first part of a file."""
    return lambda folder: os.truncate(folder / name, int(share * (folder / name).stat().st_size))


def flipped(name: str, share: float) -> Callable[[Path], None]:
    """A change that inverts the byte of a file at a share of its length."""

    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(share * (len(data) - 1))] ^= 0xFF
        (folder / name).write_bytes(data)

    return change


def in_json(content: Any, *keys: str | int, value: Any) -> str:
    """The JSON text of a content whose value at a place is another one; Ellipsis removes it."""
    whole = copy.deepcopy(content)
    place = whole
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return json.dumps(whole)


def spoken(value: Any) -> str:
    """A value in the name of an input."""
    return "nothing" if value is ... else repr(value)[:30]


def leaves(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The keys and the value of every place in nested objects that is no object with content."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*place, key))
        else:
            yield (*place, key), value
