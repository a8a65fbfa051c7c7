"""The model folder: the one exchange format (docs/architecture.md).

    config.json               architecture, preprocessing, prompt rules, format version, facts for the card
    model.safetensors         float32, PyTorch names and layouts: torch users call load_state_dict
    vocab.txt ...             tokenizer files
    preprocessor_config.json  the image geometry, in the field names image processors use
    README.md                 model card, written from the run

Nothing in a folder is executed when it is loaded: JSON, tensors and a vocabulary.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from afloc_jax.errors import UserError
from afloc_jax.files import AnyPath, Path, replacing_folder, sha256_of, user_path, write_json, write_whole
from afloc_jax.settings import Json, plain
from afloc_jax.weights import torch_names
from afloc_jax.weights.card import render_card
from afloc_jax.weights.config import (
    CONFIG,
    FolderConfig,
    ModelFolderError,
    Preprocessing,
    Run,
    read_config,
    read_stored,
)
from afloc_jax.weights.tensors import UnreadableFile
from afloc_jax.weights.torch_files import read_safetensors
from data_pipelines.tokens import load_tokenizer, save_tokenizer

WEIGHTS, CARD, PREPROCESSOR = "model.safetensors", "README.md", "preprocessor_config.json"

Variables = Mapping[str, PyTree]
"""`params` and `batch_stats` of a model."""


class ModelFolder(NamedTuple):
    """A model folder in memory."""

    config: FolderConfig
    variables: Variables  # float32 NumPy arrays
    tokenizer: Tokenizer


def save_model(
    folder: AnyPath,
    variables: Variables,
    run: Run,
    tokenizer: Tokenizer,
    card: Mapping[str, Json] | None = None,
) -> None:
    """Write a model folder; it appears complete or not at all, and replaces an older one of that name.

    Args:
        folder: destination; its parent is made if needed.
        variables: linen variables, any float type; stored as float32.
        run: the run's config; `model` is stored as the architecture, and what shapes prompts and images beside it.
        tokenizer: what `data_pipelines.tokens.load_tokenizer` returns.
        card: facts for the model card, see `afloc_jax.weights.card.render_card`.
    """
    config = FolderConfig.of_run(run, card or {})
    save_state(folder, torch_names.to_torch(variables, config.architecture), config, tokenizer)


def save_state(folder: AnyPath, state: Mapping[str, np.ndarray], config: FolderConfig, tokenizer: Tokenizer) -> None:
    """`save_model` for weights that have the published names and layouts already, as `torch_names.to_torch` gives them.

    Contiguous float32 arrays are written from where they lie: a mapped file is not copied into memory first.
    """
    # The NumPy writer stores the memory of a transposed view as it lies: contiguous copies or scrambled weights.
    tensors = {
        name: np.ascontiguousarray(value, np.int64 if name.endswith("num_batches_tracked") else np.float32)
        for name, value in state.items()
    }
    with replacing_folder(user_path(folder)) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        os.chmod(temporary / WEIGHTS, 0o644)  # the library makes private files
        save_tokenizer(tokenizer, temporary)
        write_json(temporary / PREPROCESSOR, _preprocessor(config.preprocessing))
        write_json(temporary / CONFIG, config.stored())
        write_whole(temporary / CARD, render_card(config))


def load_model(folder: AnyPath) -> ModelFolder:
    """Read a model folder.

    Raises:
        ModelFolderError: a file is missing or damaged, the format is newer than this code, a setting is wrong, or
            tensors do not fit the architecture.
    """
    place, config = user_path(folder), read_config(folder)
    weights = place / WEIGHTS
    if not weights.is_file():
        raise ModelFolderError(f"{place}: {WEIGHTS} is missing; copy the whole model folder")
    try:
        state = {name: tensor.array() for name, tensor in read_safetensors(weights).items()}
    except UnreadableFile as error:
        raise ModelFolderError(f"{weights}: {error}; copy it again") from None
    try:
        variables = torch_names.from_torch(state, config.architecture)
    except UserError as error:
        raise ModelFolderError(f"{weights} does not fit the architecture in {CONFIG}: {error}") from None
    return ModelFolder(config, variables, load_tokenizer(place))


def update_card(folder: AnyPath, card: Mapping[str, Any]) -> None:
    """Merge facts into the model card, such as results, and write README.md and config.json anew."""
    place = user_path(folder)
    stored = read_stored(place)
    known = stored.get("card")
    stored["card"] = {**(known if isinstance(known, dict) else {}), **plain(card)}
    write_json(place / CONFIG, stored)
    write_whole(place / CARD, render_card(read_config(place)))


def weights_hash(folder: AnyPath) -> str:
    """SHA-256 of model.safetensors, in hexadecimal: names the weights behind a number."""
    return sha256_of(Path(folder) / WEIGHTS)


def _preprocessor(preprocessing: Preprocessing) -> dict[str, Json]:
    side = preprocessing.image_size
    return {
        "do_resize": True,
        "size": {"longest_edge": side},
        "resample": "area",
        "do_pad": True,
        "pad_size": {"height": side, "width": side},
        "do_convert_grayscale": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [preprocessing.mean],
        "image_std": [preprocessing.std],
    }
