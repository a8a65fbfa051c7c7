"""Annotation-free pathology localisation (AFLoc) in JAX and Flax."""

from typing import TYPE_CHECKING

try:
    from afloc_jax._version import version as __version__  # which the build of a wheel writes
except ImportError:
    __version__ = "0.1.0"  # a clone; results also name its commit
__all__ = ["load"]

if TYPE_CHECKING:
    from afloc_jax.inference.model import load


def __getattr__(name: str):
    # JAX is imported with the first model only, so that `afloc --help` and --version are fast.
    if name == "load":
        from afloc_jax.inference.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
