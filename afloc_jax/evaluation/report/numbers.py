"""Helpers that the parts of the page share: numbers as text, and reading JSON files."""

import math

from afloc_jax.errors import UserError
from afloc_jax.evaluation.statistics.interval import Interval
from afloc_jax.evaluation.task import JsonObject
from afloc_jax.files import Path, read_json
from afloc_jax.settings import Json


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits with a true minus sign; a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")  # noqa: RUF001 (+ 0.0: no minus zero)


def signed(value: float | None) -> str:
    """A difference: always with its sign."""
    text = number(value)
    return f"+{text}" if value is not None and math.isfinite(value) and round(value, 3) > 0 else text


def interval(value: Interval) -> str:
    """The bounds of an interval, empty where there are none."""
    return f"{number(value.lower)} to {number(value.upper)}" if math.isfinite(value.lower) else ""


def hashes(provenance: JsonObject, data: str) -> list[tuple[str, str]]:
    """The name of everything that was hashed, and the start of its SHA-256; `data` names the data."""
    named = [("weights", provenance.get("weights_sha256")), (data, provenance.get("data_sha256"))]
    named += [(name.replace("_", " "), part_of(provenance, name).get("sha256")) for name in provenance]
    return [(what, short_hash(value)) for what, value in named if value]


def short_hash(value: Json) -> str:
    """Enough of a hash to tell two files apart; empty where there is none."""
    return str(value or "")[:16]


def part_of(content: JsonObject, *keys: str) -> JsonObject:
    """The object within an object of JSON; empty where it is absent."""
    for key in keys:
        part = content.get(key)
        content = part if isinstance(part, dict) else {}
    return content


def interval_of(content: JsonObject, *keys: str) -> Interval:
    """A mean with its limits within an object of JSON; NaN what it lacks."""
    entry = part_of(content, *keys)
    values = (entry.get(part) for part in ("mean", "lower", "upper"))
    return Interval(*(float(value) if isinstance(value, float | int) else math.nan for value in values))


def read_object(path: Path) -> JsonObject:
    """The object that a JSON file holds; empty where there is no such file. Raises UserError for a damaged one."""
    content: Json = read_json(path, "remove it and run the evaluation again") if path.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; remove it and run the evaluation again")
    return content
