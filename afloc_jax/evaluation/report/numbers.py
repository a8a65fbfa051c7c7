"""Numbers and facts as text, and reading of JSON files, for all parts of the page."""

import math

from afloc_jax.errors import UserError
from afloc_jax.evaluation.statistics.coverage import FewPositives, remark_on_few
from afloc_jax.evaluation.statistics.interval import Interval
from afloc_jax.evaluation.task import JsonObject
from afloc_jax.files import Path, read_json
from afloc_jax.settings import Json
from data_pipelines.what_images import images_of


def number(value: float | None, digits: int = 3) -> str:
    """The number with fixed digits and a typographic minus sign; a dash if it is undefined."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")  # noqa: RUF001 (+ 0.0: no minus zero)


def signed(value: float | None) -> str:
    """The text of a difference, always with its sign."""
    text = number(value)
    return f"+{text}" if value is not None and math.isfinite(value) and round(value, 3) > 0 else text


def interval(value: Interval) -> str:
    """The text of the limits of an interval; empty if there are none."""
    return f"{number(value.lower)} to {number(value.upper)}" if math.isfinite(value.lower) else ""


def on_few(summary: JsonObject) -> str:
    """The sentence on the classes with few positives of an evaluation; empty if there are none."""
    entries = part_of(summary, "few_positives")
    few = {name: part_of(entries, name) for name in entries}
    marked = {name: FewPositives(int(str(one["units"])), float(str(one["covers"]))) for name, one in few.items()}
    return remark_on_few(marked, part_of(summary, "bootstrap").get("unit"))


def hashes(provenance: JsonObject, data: str) -> list[tuple[str, str]]:
    """The name of each hashed item, and the start of its SHA-256. `data` is the name of the data."""
    named = [("weights", provenance.get("weights_sha256")), (data, provenance.get("data_sha256"))]
    named += [(name.replace("_", " "), part_of(provenance, name).get("sha256")) for name in provenance]
    return [(what, short_hash(value)) for what, value in named if value]


def short_hash(value: Json) -> str:
    """The start of a hash; empty if there is none."""
    return str(value or "")[:16]


def part_of(content: JsonObject, *keys: str) -> JsonObject:
    """A nested object of a JSON object; empty if it is absent."""
    for key in keys:
        part = content.get(key)
        content = part if isinstance(part, dict) else {}
    return content


def images_shown(summary: JsonObject) -> str:
    """What the images of an evaluation are, or, of a score of files, that its truth file does not say."""
    name = part_of(summary, "settings").get("name")
    file = part_of(summary, "provenance", "truth").get("file", "its truth file")
    return images_of(str(name)) if name else f"those that {file} names; what they show is not stated there"


def interval_of(content: JsonObject, *keys: str) -> Interval:
    """The interval in a JSON object; missing numbers are NaN."""
    entry = part_of(content, *keys)
    values = (entry.get(part) for part in ("mean", "lower", "upper"))
    return Interval(*(float(value) if isinstance(value, float | int) else math.nan for value in values))


def read_object(path: Path) -> JsonObject:
    """The object in a JSON file; empty if there is no file. Raises UserError for a damaged file."""
    content: Json = read_json(path, "remove it and run the evaluation again") if path.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no JSON object; remove it and run the evaluation again")
    return content
