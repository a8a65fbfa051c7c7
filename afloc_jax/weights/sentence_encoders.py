"""Folders of sentence-transformers: where the text encoder lies in them, and how it pools pieces into a sentence."""

from collections.abc import Mapping
from typing import NamedTuple

from afloc_jax.errors import UserError
from afloc_jax.files import Path, read_json
from afloc_jax.settings import Json
from afloc_jax.weights.config import LARGEST_CONFIG

MODULES = "modules.json"  # the parts of such a folder, in their order


class SentenceEncoder(NamedTuple):
    """The text encoder of a folder.

    Attributes:
        folder: the folder of its weights, config.json and tokenizer.
        pooling: "mean", "cls" or another name of sentence-transformers; empty where none is stated.
    """

    folder: Path
    pooling: str


def sentence_encoder(folder: Path) -> SentenceEncoder:
    """The text encoder of a folder, which may have been saved by sentence-transformers.

    Raises UserError where modules.json is damaged, or names a folder elsewhere.
    """
    if not (folder / MODULES).is_file():
        return SentenceEncoder(folder, "")
    stated = _read(folder / MODULES)
    modules = [module for module in stated if isinstance(module, Mapping)] if isinstance(stated, list) else []
    places = {str(module.get("type")).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    if "Transformer" not in places:
        raise UserError(f"{folder / MODULES}: names no Transformer; copy the folder again")
    if any(place and (place in (".", "..") or Path(place).name != place) for place in places.values()):
        raise UserError(f"{folder / MODULES}: a part lies outside of the folder; copy the folder again")
    return SentenceEncoder(folder / places["Transformer"], _pooling(folder / places.get("Pooling", "") / "config.json"))


def _pooling(path: Path) -> str:
    """The pooling that a config.json of the module states."""
    stated = _read(path) if path.is_file() else {}
    if not isinstance(stated, Mapping):
        return ""
    if isinstance(mode := stated.get("pooling_mode"), str):
        return mode
    modes = [key for key, value in stated.items() if key.startswith("pooling_mode_") and value is True]
    names = (mode.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for mode in modes)
    return " and ".join(names)


def _read(path: Path) -> Json:
    content: Json = read_json(path, "copy the folder again", LARGEST_CONFIG)
    return content
