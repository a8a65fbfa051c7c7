"""Config files and overrides of their values, as ConfigDicts. `RunConfig.from_config` checks the result.

`config_flags` and sweeps change a ConfigDict in place, key by key. Here a key is only checked for existence; its
settings class checks the value.
"""

import importlib.util
from collections.abc import Mapping
from types import ModuleType

from ml_collections import ConfigDict

from afloc_jax.errors import UsageError
from afloc_jax.files import Path
from afloc_jax.settings import Json

# Sections whose keys are those of a builder, a backbone or Hugging Face, and are checked there.
FREE_SECTIONS = ("data.builder", "model.image.options", "model.text.bert")


def load_module(path: Path) -> ModuleType:
    """A config or sweep file, imported as a Python module. Exceptions of the file are passed on."""
    specification = importlib.util.spec_from_file_location(f"afloc_{path.stem}", path)
    assert specification is not None and specification.loader is not None  # a path always has a loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def load(path: Path, overrides: Mapping[str, Json] | None = None, variant: str = "") -> ConfigDict:
    """The config of a file such as configs/demo.py, with the values of `overrides` ({"optimizer.lr": 1e-4}).

    A `variant`, such as "quick", is given to the `get_config` of the file.

    Raises:
        UsageError: the file does not exist, fails, or has no such key.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; the recipe afloc is one")
    try:
        config: ConfigDict = load_module(path).get_config(*([variant] if variant else []))
    except Exception as error:
        raise UsageError(f"{path}: {type(error).__name__}: {error}; it must define get_config()") from error
    for key, value in (overrides or {}).items():
        override(config, key, value)
    return config


def override(config: ConfigDict, key: str, value: Json) -> None:
    """Sets a dotted key in place. Raises UsageError where there is no such key."""
    section, _, last = key.rpartition(".")
    target: ConfigDict | None = config
    for part in section.split(".") if section else ():
        target = target.get(part) if isinstance(target, ConfigDict) else None
    if not isinstance(target, ConfigDict) or (last not in target and not key.startswith(_FREE_KEYS)):
        raise UsageError(f"config.{key}: unknown key")
    with config.unlocked(), target.ignore_type():
        target[last] = value


_FREE_KEYS = tuple(f"{section}." for section in FREE_SECTIONS)
