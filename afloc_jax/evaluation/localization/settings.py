"""How a data set is evaluated by localisation."""

from typing import Any

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.localization.protocols import get_protocol
from afloc_jax.evaluation.localization.samples import CLASS_PROMPT
from afloc_jax.evaluation.statistics.bootstrap import RESAMPLES

# Of the paper, where a data set has its own: the maps of histopathology are read from their low end. By builder.
THRESHOLDS_OF = {"sicapv2": [-1.0, -0.9, -0.8, -0.7, -0.6, -0.5, -0.4, -0.3, -0.2, -0.1]}


def dataset_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a localisation with defaults filled in. Raises UsageError for an unknown one or another protocol."""
    defaults = {
        "raw": "",
        "builder": {},
        "split": "test",
        "protocol": "afloc",
        "compatible": False,
        "validation_split": "validation",
        "class_prompt": CLASS_PROMPT,
        "prior_split": "train",
        "title": "",
        "thresholds": THRESHOLDS_OF.get(given.get("name", "")) if given.get("protocol", "afloc") == "afloc" else None,
        "margin": None,
        "bootstrap": RESAMPLES,
        "interval": "percentile",
        "unit": "sample",
    }
    for key in given:
        if key not in defaults and key not in ("name", "directory"):
            known = ", ".join(["name", "directory", *defaults])
            raise UsageError(f"evaluation data set {given.get('name')!r}: unknown key {key!r}; known: {known}")
    settings = {**defaults, **given}
    if settings["thresholds"] is None:
        settings["thresholds"] = defaults["thresholds"]
    get_protocol(settings["protocol"], settings["thresholds"], settings["margin"])
    return settings
