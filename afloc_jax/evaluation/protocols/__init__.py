"""The localisation protocols by name; docs/protocols.md says what each computes."""

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.protocols import afloc, chexlocalize, grounding
from afloc_jax.evaluation.protocols.base import LocalizationProtocol, Samples

PROTOCOLS = {protocol.name: protocol for protocol in (afloc.PROTOCOL, chexlocalize.PROTOCOL, grounding.PROTOCOL)}

__all__ = ["PROTOCOLS", "LocalizationProtocol", "Samples", "get_protocol"]


def get_protocol(name: str) -> LocalizationProtocol:
    """The protocol of that name. Raises `UsageError` for an unknown one."""
    if name not in PROTOCOLS:
        raise UsageError(f"unknown protocol {name!r}; this program knows {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
