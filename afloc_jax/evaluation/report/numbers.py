"""What the parts of the page share: how numbers are shown, and files read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from afloc_jax.errors import UserError
from afloc_jax.evaluation.task import JsonObject


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits with a true minus sign; a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")  # noqa: RUF001 (+ 0.0: no minus zero)


def signed(value: float | None) -> str:
    """A difference: always with its sign."""
    text = number(value)
    return f"+{text}" if value is not None and math.isfinite(value) and round(value, 3) > 0 else text


def interval(entry: Mapping[str, Any] | None) -> str:
    """The bounds of an interval, empty where there are none."""
    if not entry or entry.get("lower") is None or not math.isfinite(entry["lower"]):
        return ""
    return f"{number(entry['lower'])} to {number(entry['upper'])}"


def hashes(provenance: Mapping[str, Any], data: str) -> list[tuple[str, str | None]]:
    """What was hashed, and the start of its SHA-256; `data` in words."""
    named = [("weights", provenance.get("weights_sha256")), (data, provenance.get("data_sha256"))]
    files = [(name.replace("_", " "), entry) for name, entry in provenance.items() if isinstance(entry, Mapping)]
    named += [(name, entry["sha256"]) for name, entry in files if "sha256" in entry]
    return [(what, short_hash(value)) for what, value in named if value]


def short_hash(value: str | None) -> str | None:
    """Enough of a hash to tell two files apart."""
    return f"{value[:16]}" if value else None


def part_of(content: JsonObject, *keys: str) -> JsonObject:
    """The object within an object of JSON; empty where it is absent."""
    for key in keys:
        part = content.get(key)
        content = part if isinstance(part, dict) else {}
    return content


def entry_of(content: JsonObject, *keys: str) -> dict[str, float | None]:
    """A mean with its limits within an object of JSON; empty where it is absent."""
    return {name: value for name, value in part_of(content, *keys).items() if isinstance(value, float | int | None)}


def read_json(path: Path) -> Any:
    """The content of a file; None if there is none. Raises UserError for one that is damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error}); remove it and run the evaluation again") from None
