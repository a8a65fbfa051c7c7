"""The model folder: the one exchange format (docs/architecture.md).

    config.json               architecture, preprocessing, prompt rules, format version, facts for the card
    model.safetensors         float32, PyTorch names and layouts: torch users call load_state_dict
    vocab.txt ...             tokenizer files
    preprocessor_config.json  the image geometry, in the field names image processors use
    README.md                 model card, written from the run

Nothing in a folder is executed when it is loaded: JSON, tensors and a vocabulary.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import write_whole
from afloc_jax.models.settings import ModelSettings
from afloc_jax.weights import torch_names
from afloc_jax.weights.card import render_card
from afloc_jax.weights.tensors import UnreadableFile
from afloc_jax.weights.torch_files import read_safetensors
from data_pipelines.tokens import load_tokenizer, save_tokenizer

FORMAT_VERSION = 1
IMAGE_SIZE = 224  # side of the padded square, pixels, where the run does not say otherwise
CONFIG, WEIGHTS, CARD, PREPROCESSOR = "config.json", "model.safetensors", "README.md", "preprocessor_config.json"


class ModelFolderError(UserError):
    """A folder that is not a usable model folder; the message names the file and what to do."""


def save_model(
    folder: str | Path,
    variables: Mapping[str, Any],
    config: ConfigDict,
    tokenizer: Any,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder; it appears complete or not at all, and replaces an older one of that name.

    Args:
        folder: destination; its parent is made if needed.
        variables: linen variables (`params`, `batch_stats`), any float type; stored as float32.
        config: the run's config; `model` is stored as the architecture, and what shapes prompts and images beside it.
        tokenizer: what `data_pipelines.tokens.load_tokenizer` returns.
        card: facts for the model card, see `afloc_jax.weights.card.render_card`.
    """
    save_state(folder, torch_names.to_torch(variables, config.model), config, tokenizer, card)


def save_state(
    folder: str | Path,
    state: Mapping[str, np.ndarray],
    config: ConfigDict,
    tokenizer: Any,
    card: Mapping[str, Any] | None = None,
) -> None:
    """`save_model` for weights that have the published names and layouts already, as `torch_names.to_torch` gives them.

    Contiguous float32 arrays are written from where they lie: a mapped file is not copied into memory first.
    """
    folder = Path(folder)
    stored = _stored_config(config, card or {})
    # The NumPy writer stores the memory of a transposed view as it lies: contiguous copies or scrambled weights.
    tensors = {
        name: np.ascontiguousarray(value, np.int64 if name.endswith("num_batches_tracked") else np.float32)
        for name, value in state.items()
    }
    with replacing_folder(folder) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / WEIGHTS).chmod(0o644)  # the library makes private files, too
        save_tokenizer(tokenizer, temporary)
        (temporary / PREPROCESSOR).write_text(_json(_preprocessor(stored["preprocessing"])))
        _write_config_and_card(temporary, stored)


def load_model(folder: str | Path) -> tuple[ConfigDict, dict[str, Any], Any]:
    """Read a model folder.

    Returns:
        The stored config (`architecture`, `preprocessing`, `prompts`, `seed`, `name`, ...), linen variables as float32
        NumPy arrays, and the tokenizer.

    Raises:
        ModelFolderError: a file is missing or damaged, the format is newer than this code, the architecture has a wrong
            key or value, or tensors do not fit it.
    """
    folder = Path(folder)
    stored = read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise ModelFolderError(f"{folder}: {WEIGHTS} is missing; copy the whole model folder")
    try:
        ModelSettings.read(stored["architecture"])
    except UsageError as error:
        raise ModelFolderError(f"{folder / CONFIG}: architecture: {error}") from None
    try:
        state = {name: tensor.array() for name, tensor in read_safetensors(folder / WEIGHTS).items()}
    except UnreadableFile as error:
        raise ModelFolderError(f"{folder / WEIGHTS}: {error}; copy it again") from None
    # The card is for readers; its results hold keys such as "0.1", which a ConfigDict would refuse.
    config = ConfigDict({key: value for key, value in stored.items() if key != "card"})
    try:
        variables = torch_names.from_torch(state, config.architecture)
    except UserError as error:
        raise ModelFolderError(f"{folder / WEIGHTS} does not fit the architecture in {CONFIG}: {error}") from None
    return config, variables, load_tokenizer(folder)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The contents of config.json, checked for being one this code can read.

    Raises:
        ModelFolderError: not a folder, no config.json, not JSON, or another format version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such model folder; give the folder that holds {CONFIG} and {WEIGHTS}")
    if not (folder / CONFIG).is_file():
        raise ModelFolderError(f"{folder}: {CONFIG} is missing, so this is not a model folder; give WORKDIR/model")
    try:
        stored = json.loads((folder / CONFIG).read_text())
    except (ValueError, OSError) as error:
        raise ModelFolderError(f"{folder / CONFIG}: not readable as JSON ({error}); copy the folder again") from None
    version = stored.get("format_version") if isinstance(stored, dict) else None
    if version != FORMAT_VERSION:
        said = f"has format_version {version!r}" if version is not None else "has no format_version"
        raise ModelFolderError(f"{folder / CONFIG} {said}; this program reads version {FORMAT_VERSION}")
    missing = [key for key in ("architecture", "preprocessing", "prompts") if key not in stored]
    if missing:
        raise ModelFolderError(f"{folder / CONFIG}: key {missing[0]!r} is missing; copy the folder again")
    return stored


def update_card(folder: str | Path, card: Mapping[str, Any]) -> None:
    """Merge facts into the model card (results after an evaluation, say) and write README.md and config.json anew."""
    stored = read_config(folder)
    stored["card"] = {**stored.get("card", {}), **_plain(card)}
    _write_config_and_card(Path(folder), stored)


def weights_hash(folder: str | Path) -> str:
    """SHA-256 of model.safetensors, in hexadecimal: names the weights behind a number."""
    with open(Path(folder) / WEIGHTS, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends well and vanishes when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f".{folder.name}.writing-*"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp makes private folders; a model is meant to be shared
        yield temporary
        if folder.exists():
            # A folder cannot be renamed over a full one, so the old one steps aside first.
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
            os.replace(folder, old / "old")
            os.replace(temporary, folder)
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _stored_config(config: ConfigDict, card: Mapping[str, Any]) -> dict[str, Any]:
    architecture = _plain(config.model.to_dict())
    architecture["text"]["tokenizer"] = ""  # the tokenizer is in the folder; a path of the training machine is not
    data = config.get("data", ConfigDict())
    return {
        "format_version": FORMAT_VERSION,
        "name": config.get("name", "afloc"),
        "seed": config.get("seed", 0),
        "architecture": architecture,
        "preprocessing": {
            "image_size": data.get("builder", {}).get("image_size", IMAGE_SIZE),
            "geometry": "pad",  # longest side to image_size by area interpolation, zero-padded to a square
            "channels": 1,
            "mean": 0.5,
            "std": 0.5,
        },
        "prompts": {"max_tokens": data.get("max_tokens", 97), "lower_case": True},
        "localization": _plain(config.get("localization", {})),
        "card": _plain(card),
    }


def _preprocessor(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "do_resize": True,
        "size": {"longest_edge": preprocessing["image_size"]},
        "resample": "area",
        "do_pad": True,
        "pad_size": {"height": preprocessing["image_size"], "width": preprocessing["image_size"]},
        "do_convert_grayscale": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [preprocessing["mean"]],
        "image_std": [preprocessing["std"]],
    }


def _write_config_and_card(folder: Path, stored: Mapping[str, Any]) -> None:
    for name, text in ((CONFIG, _json(stored)), (CARD, render_card(stored))):
        write_whole(folder / name, text)


def _plain(value: Any) -> Any:
    """Nested dicts, lists and scalars, as JSON takes them."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
