"""Config files and overrides of their values, as ConfigDicts; `RunConfig.from_config` checks what comes out.

`config_flags` and sweeps change a ConfigDict in place, key by key. No key is checked here but for being there: what a
value may be, its settings class says.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from afloc_jax.errors import UsageError
from afloc_jax.settings import Json

# Sections whose keys belong to someone else (a builder, a backbone, Hugging Face) and are checked there.
FREE_SECTIONS = ("data.builder", "model.image.options", "model.text.bert")


def load_module(path: Path) -> ModuleType:
    """A config or sweep file as a Python module; whatever it raises goes through."""
    specification = importlib.util.spec_from_file_location(f"afloc_{path.stem}", path)
    assert specification is not None and specification.loader is not None  # a path always has a loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def load(path: Path, overrides: Mapping[str, Json] | None = None) -> ConfigDict:
    """The config of a file such as configs/demo.py with some values replaced ("optimizer.lr": 1e-4).

    Raises:
        UsageError: no such file, a file that fails, or a key that it does not have.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; configs/afloc.py is one")
    try:
        config: ConfigDict = load_module(path).get_config()
    except Exception as error:
        raise UsageError(f"{path}: {type(error).__name__}: {error}; it must define get_config()") from error
    for key, value in (overrides or {}).items():
        override(config, key, value)
    return config


def override(config: ConfigDict, key: str, value: Json) -> None:
    """Set a dotted key in place. Raises UsageError where there is no such key."""
    section, _, last = key.rpartition(".")
    target: ConfigDict | None = config
    for part in section.split(".") if section else ():
        target = target.get(part) if isinstance(target, ConfigDict) else None
    if not isinstance(target, ConfigDict) or (last not in target and not key.startswith(_FREE_KEYS)):
        raise UsageError(f"config.{key}: unknown key")
    with config.unlocked(), target.ignore_type():
        target[last] = value


_FREE_KEYS = tuple(f"{section}." for section in FREE_SECTIONS)
