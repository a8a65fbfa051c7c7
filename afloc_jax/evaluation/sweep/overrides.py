"""What the settings of a sweep override: the keys that differ, under short names."""

from collections.abc import Mapping, Sequence

from afloc_jax.evaluation.sweep.results import SEED, Run
from afloc_jax.settings import Json

_LONGEST = 40  # letters of a value on the page


def leaves(overrides: Mapping[str, Json]) -> dict[str, Json]:
    """The overrides, in which the keys of a whole section have values of their own."""
    flat: dict[str, Json] = {}
    for key, value in overrides.items():
        if isinstance(value, dict):
            flat |= leaves({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            flat[key] = value
    return flat


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys, other than the seed, whose value is not the same in all runs."""
    flat = [leaves(run.entry.overrides) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    return [key for key in keys if key != SEED and len({repr(one.get(key)) for one in flat}) > 1]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """For each dotted key its last parts, as few as tell it from the others."""
    named = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        named[key] = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
    return named


def text_of(value: Json) -> str:
    """A value in a few letters."""
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "–"}[value]  # noqa: RUF001
    if isinstance(value, float):
        return f"{value:.4g}"
    text = ", ".join(map(text_of, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
