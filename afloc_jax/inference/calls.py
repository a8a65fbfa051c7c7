"""What calls from Python are given: lists, and a threshold."""

import os
from collections.abc import Iterable
from typing import TypeVar

from PIL import Image

from afloc_jax.errors import UsageError

Item = TypeVar("Item")


def listed(given: Iterable[Item], what: str) -> list[Item]:
    """The items as a list. Raises UsageError for a single image or text, and where there is none.

    Args:
        given: a list, or another collection or iterator.
        what: what the items are, in errors.

    >>> listed((word for word in ("left", "right")), "prompts")
    ['left', 'right']
    """
    if isinstance(given, str | os.PathLike | Image.Image) or getattr(given, "ndim", 1) > 1:
        raise UsageError(
            f"{what} must be a list, not one {type(given).__name__}: put it in brackets, a stack into list()"
        )
    try:
        found = list(given)
    except TypeError:
        raise UsageError(f"{what} must be a list, not a {type(given).__name__}") from None
    if not found:
        raise UsageError(f"no {what} given; give at least one")
    return found


def check_threshold(threshold: float) -> None:
    """Raises UsageError for a threshold that no map has."""
    if not -1 < threshold < 1:
        raise UsageError(f"threshold {threshold}: must lie between -1 and 1, the scale of a normalised map")
