"""The localisation protocols by name; docs/protocols.md says what each computes."""

from collections.abc import Sequence

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.localization import afloc, chexlocalize, grounding
from afloc_jax.evaluation.localization.protocol import LocalizationProtocol

PROTOCOLS = {protocol.name: protocol for protocol in (afloc.PROTOCOL, chexlocalize.PROTOCOL, grounding.PROTOCOL)}


def get_protocol(
    name: str, thresholds: Sequence[float] | None = None, margin: int | None = None
) -> LocalizationProtocol:
    """The protocol of that name, with its own thresholds (on the scaled map) and margin (pixels of 224) unless given.

    Raises `UsageError` for an unknown one, and for options that it does not take.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"unknown protocol {name!r}; this program knows {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name].with_options(thresholds, margin)
