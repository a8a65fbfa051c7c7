"""Annotation-free pathology localisation (AFLoc) in JAX and Flax."""

from importlib import import_module
from typing import TYPE_CHECKING

from wrapt import when_imported

try:
    from afloc_jax._version import version as __version__  # which the build of a wheel writes
except ImportError:
    __version__ = "0.1.0"  # a clone; results also name its commit

if TYPE_CHECKING:
    from afloc_jax.errors import UsageError, UserError
    from afloc_jax.inference.class_prompts import PromptSet, read_prompt_set
    from afloc_jax.inference.classification import Probabilities
    from afloc_jax.inference.localization import Localization
    from afloc_jax.inference.model import Model, load
    from afloc_jax.inference.model import load as from_pretrained
    from afloc_jax.weights.hub import push_to_hub

__all__ = [
    "Localization",
    "Model",
    "Probabilities",
    "PromptSet",
    "UsageError",
    "UserError",
    "from_pretrained",
    "load",
    "push_to_hub",
    "read_prompt_set",
]
_HOMES = {
    "Localization": "inference.localization",
    "Model": "inference.model",
    "Probabilities": "inference.classification",
    "PromptSet": "inference.class_prompts",
    "UsageError": "errors",
    "UserError": "errors",
    "load": "inference.model",
    "push_to_hub": "weights.hub",
    "read_prompt_set": "inference.class_prompts",
}


def _register() -> None:
    from afloc_jax.inference.hugging_face import register

    register()


if not TYPE_CHECKING:  # type checkers know the names above alone

    def __getattr__(name: str):
        # JAX is imported with the first model only, so that `afloc --help` and --version are fast.
        own = "load" if name == "from_pretrained" else name  # as Hugging Face calls it
        if own not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[own]}"), own)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


# transformers then finds the image processor of model folders; it is not imported for that. If it is there already, the
# function runs at once, so it stands above.
when_imported("transformers.models.auto.image_processing_auto")(lambda _: _register())
