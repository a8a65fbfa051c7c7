"""Phrases that stand for a class in zero-shot classification (algorithm of the published system, section 7)."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from afloc_jax.errors import UsageError

WORD_LISTS = ("severity", "subtype", "location")  # in the order in which they are written before one another


def class_prompts(name: str, given: Any = None) -> tuple[list[str], list[str]]:
    """Positive and negative prompts of a class.

    Args:
        name: the class, such as "pneumonia". "No finding" is contrasted with "finding".
        given: None for "Findings suggesting <name>."; a list of positive phrases; a mapping with `positive` and
            optionally `negative` phrases; or word lists `severity`, `subtype` and `location`, of which every
            combination is a phrase.

    Raises:
        UsageError: an empty name, no phrase, or unknown keys.
    """
    if not name.strip():
        raise UsageError("a class has an empty name; write what to look for, e.g. pneumonia")
    negative = ["finding"] if name.strip().lower() == "no finding" else [f"no {name}. "]
    if given is None:
        positive = ["no finding"] if name.strip().lower() == "no finding" else [f"Findings suggesting {name}."]
    elif isinstance(given, Mapping) and set(given) <= {"positive", "negative"}:
        positive = _phrases(name, given.get("positive"))
        negative = _phrases(name, given["negative"]) if "negative" in given else negative
    elif isinstance(given, Mapping) and set(given) <= set(WORD_LISTS):
        words = [_phrases(name, given[key]) if given.get(key) else [""] for key in WORD_LISTS]
        combinations = [" ".join(word for word in choice if word) for choice in itertools.product(*words)]
        positive = _phrases(name, combinations)
    elif isinstance(given, Mapping):
        raise UsageError(
            f"prompts of class {name!r} have keys {', '.join(sorted(given))}; "
            f"use positive and negative, or {', '.join(WORD_LISTS)}"
        )
    else:
        positive = _phrases(name, given)
    return positive, negative


def _phrases(name: str, given: Any) -> list[str]:
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Sequence) or not given or not all(isinstance(p, str) and p.strip() for p in given):
        raise UsageError(f"prompts of class {name!r} must be a list of at least one text, none of them empty")
    return list(given)
