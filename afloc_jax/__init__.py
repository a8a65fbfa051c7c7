"""Annotation-free pathology localisation (AFLoc) in JAX and Flax."""

from typing import TYPE_CHECKING

from wrapt import when_imported

try:
    from afloc_jax._version import version as __version__  # which the build of a wheel writes
except ImportError:
    __version__ = "0.1.0"  # a clone; results also name its commit
__all__ = ["from_pretrained", "load", "push_to_hub"]

# transformers then finds the image processor of model folders; it is not imported for that.
when_imported("transformers.models.auto.image_processing_auto")(lambda _: _register())

if TYPE_CHECKING:
    from afloc_jax.inference.model import load
    from afloc_jax.inference.model import load as from_pretrained
    from afloc_jax.weights.hub import push_to_hub


def _register() -> None:
    from afloc_jax.inference.hugging_face import register

    register()


def __getattr__(name: str):
    # JAX is imported with the first model only, so that `afloc --help` and --version are fast.
    if name in ("load", "from_pretrained"):  # the second is how Hugging Face calls it
        from afloc_jax.inference.model import load

        return load
    if name == "push_to_hub":
        from afloc_jax.weights.hub import push_to_hub

        return push_to_hub
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
