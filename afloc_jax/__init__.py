"""Annotation-free pathology localisation (AFLoc) in JAX and Flax."""

from typing import TYPE_CHECKING

try:
    from afloc_jax._version import version as __version__  # which the build of a wheel writes
except ImportError:
    __version__ = "0.1.0"  # a clone; results also name its commit
__all__ = ["from_pretrained", "load", "push_to_hub"]

if TYPE_CHECKING:
    from afloc_jax.inference.model import load
    from afloc_jax.inference.model import load as from_pretrained
    from afloc_jax.weights.hub import push_to_hub


def __getattr__(name: str):
    # JAX is imported with the first model only, so that `afloc --help` and --version are fast.
    if name in ("load", "from_pretrained"):  # the second is how Hugging Face calls it
        from afloc_jax.inference.model import load

        return load
    if name == "push_to_hub":
        from afloc_jax.weights.hub import push_to_hub

        return push_to_hub
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
