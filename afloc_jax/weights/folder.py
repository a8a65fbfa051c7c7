"""The model folder, in which all commands exchange models.

    config.json               architecture, preprocessing, prompt rules, format version, facts for the card
    model.safetensors         float32 tensors in PyTorch names and layouts, for load_state_dict
    vocab.txt ...             tokenizer files
    unseen_pieces.txt         entries of the vocabulary that no training report held, one a line; where that is known
    preprocessor_config.json  the image geometry, in the field names of Hugging Face's image processors
    calibration.json          how presence is computed, see `afloc_jax.weights.calibration`; of calibrated models
    seal.json                 the SHA-256 of each file but the model card, see `afloc_jax.seals`
    README.md                 the model card

A folder holds only JSON, tensors, text and a vocabulary: nothing in it is executed when it is loaded.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from afloc_jax.errors import UserError
from afloc_jax.files import (
    AnyPath,
    Path,
    bucket_path,
    check_space,
    fetched,
    read_regular,
    replacing_folder,
    sha256_of,
    write_json,
    write_whole,
)
from afloc_jax.seals import Verification, renew_seal, write_seal
from afloc_jax.settings import Json, plain
from afloc_jax.weights import torch_names
from afloc_jax.weights.calibration import CALIBRATION
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
from afloc_jax.weights.tensors import UnreadableFile, fault_of
from afloc_jax.weights.torch_files import read_safetensors
from data_pipelines.frames import RESAMPLES
from data_pipelines.tokens import LARGEST_TOKENIZER, TOKENIZER_FILE, VOCABULARY_FILE, load_tokenizer, save_tokenizer

WEIGHTS, CARD, PREPROCESSOR = "model.safetensors", "README.md", "preprocessor_config.json"
UNSEEN = "unseen_pieces.txt"

# transformers names it in its error where afloc_jax has not been imported: of all fields of preprocessor_config.json no
# other is named there. It cannot be a name on the hub, so that no code is fetched, whatever the user trusts.
_WHERE_IT_IS = "the Python package afloc_jax (write `import afloc_jax` before this line)"

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
    unseen: frozenset[str] | None = None,
    before: Sequence[str] = (),
) -> None:
    """Writes a model folder, complete or not at all. It replaces an older folder of that name.

    Args:
        folder: the destination; its parent folder is created if needed.
        variables: Flax variables of any float type; they are stored as float32.
        run: the config of the run, of which the architecture and the rules for images and prompts are stored.
        tokenizer: the tokenizer, see `data_pipelines.tokens.load_tokenizer`.
        card: facts for the model card, see `afloc_jax.weights.card.render_card`.
        unseen: pieces of the vocabulary that no training report held; None if that is not known.
        before: what the weights that the run started from were trained on.
    """
    config = FolderConfig.of_run(run, card or {})
    trained_on = tuple(dict.fromkeys([*before, *config.trained_on]))
    config = dataclasses.replace(config, unseen_pieces=unseen, trained_on=trained_on)
    save_state(folder, torch_names.to_torch(variables, config.architecture), config, tokenizer)


def save_state(folder: AnyPath, state: Mapping[str, np.ndarray], config: FolderConfig, tokenizer: Tokenizer) -> None:
    """`save_model` for weights in published names and layouts, as `torch_names.to_torch` returns them.

    Contiguous float32 arrays are written without a copy, so a memory-mapped file is not read into memory first.
    """
    # The NumPy writer ignores strides and would store the wrong values for a transposed view.
    tensors = {
        name: np.ascontiguousarray(value, np.int64 if name.endswith("num_batches_tracked") else np.float32)
        for name, value in state.items()
    }
    target = bucket_path(folder)
    with replacing_folder(target, marker=CONFIG) as temporary:
        check_space(temporary, sum(value.nbytes for value in tensors.values()), f"the model folder {target}")
        write_parts(temporary, tensors, config, tokenizer)
        write_whole(temporary / CARD, render_card(config))
        write_seal(temporary, without=[CARD])


def write_parts(place: Path, tensors: dict[str, np.ndarray], config: FolderConfig, tokenizer: Tokenizer) -> None:
    """Writes the files of a model folder but for its card, calibration and seal into `place`. Arrays are contiguous."""
    save_file(tensors, place / WEIGHTS, metadata={"format": "pt"})
    os.chmod(place / WEIGHTS, 0o644)  # the library creates files that only their owner may read
    save_tokenizer(tokenizer, place)
    write_unseen(place, config.unseen_pieces)
    write_json(place / PREPROCESSOR, preprocessor(config.preprocessing))
    write_json(place / CONFIG, config.stored())


def load_model(folder: AnyPath) -> ModelFolder:
    """A model folder in memory, compared with its seal.

    Raises:
        ModelFolderError: a file is missing or damaged, the format is newer than this code, a setting is wrong, or
            tensors do not fit the architecture.
        UserError: weights or tokenizer are not those that were sealed. (Another edited file is a warning.)
    """
    loaded, verification = begin_loading(folder)
    verification.finish()
    return loaded


def begin_loading(folder: AnyPath) -> tuple[ModelFolder, Verification]:
    """A model folder in memory, while threads begin to compare it with its seal: finish that before a result is used.

    Raises:
        UserError: see `load_model`.
    """
    config = read_config(folder)
    place = fetched(bucket_path(folder))
    verification = Verification(place, is_model_file)
    variables = _load_weights(place / WEIGHTS, config)
    config = dataclasses.replace(config, unseen_pieces=read_unseen(place))
    tokenizer = load_tokenizer(place)
    size, embeddings = 1 + max(tokenizer.get_vocab().values()), config.architecture.text.structure.vocab_size
    if size > embeddings:
        raise ModelFolderError(
            f"{folder}: a vocabulary of {size} entries, but the text encoder has {embeddings} embeddings; copy the "
            "folder again"
        )
    return ModelFolder(config, variables, tokenizer), verification.begin()


def _load_weights(weights: Path, config: FolderConfig) -> Variables:
    if not weights.is_file():
        raise ModelFolderError(f"{weights.parent}: {WEIGHTS} is missing; copy the whole model folder")
    try:
        state = {name: tensor.array() for name, tensor in read_safetensors(weights).items()}
    except UnreadableFile as error:
        raise ModelFolderError(f"{weights}: {error}; copy it again") from None
    for name, array in state.items():
        if fault := fault_of(array):
            raise ModelFolderError(f"{weights}: {name} {fault}; copy the folder again, or train or import again")
    try:
        return torch_names.from_torch(state, config.architecture)
    except UserError as error:
        raise ModelFolderError(f"{weights} does not fit the architecture in {CONFIG}: {error}") from None


def is_tokenizer_file(name: str) -> bool:
    """Whether a tokenizer is read from a file of this name, or belongs to one, if the file is in its folder."""
    return name in (TOKENIZER_FILE, UNSEEN) or name.endswith(VOCABULARY_FILE)


def is_model_file(name: str) -> bool:
    """Whether a file of this name in a model folder holds weights, words or a fit. (Settings may be edited.)"""
    return name in (WEIGHTS, CALIBRATION) or is_tokenizer_file(name)


def write_unseen(place: Path, unseen: frozenset[str] | None) -> None:
    """Writes the pieces of the vocabulary that no training report held, beside the tokenizer, where they are known."""
    if unseen is not None:
        write_whole(place / UNSEEN, "".join(f"{piece}\n" for piece in sorted(unseen)))


def read_unseen(place: Path) -> frozenset[str] | None:
    """The pieces of the vocabulary that no training report held; None where a model folder does not say."""
    file = place / UNSEEN
    try:
        return frozenset(read_regular(file, LARGEST_TOKENIZER).decode().split("\n")) - {""} if file.is_file() else None
    except (OSError, UnicodeDecodeError):
        raise ModelFolderError(f"{file} cannot be read; copy the folder again") from None


def update_card(folder: AnyPath, card: Mapping[str, Any]) -> None:
    """Merges facts, such as results, into the model card, and writes README.md and config.json again."""
    place = bucket_path(folder)
    stored = read_stored(place)
    known = stored.get("card")
    stored["card"] = {**(known if isinstance(known, dict) else {}), **plain(card)}
    write_json(place / CONFIG, stored)
    renew_seal(place, [CONFIG])
    write_whole(place / CARD, render_card(read_config(place)))


def weights_hash(folder: AnyPath) -> str:
    """The SHA-256 of model.safetensors in hexadecimal, which identifies the weights behind a result."""
    return sha256_of(fetched(folder) / WEIGHTS)


def preprocessor(preprocessing: Preprocessing) -> dict[str, Json]:
    """The content of preprocessor_config.json."""
    side, number = preprocessing.image_size, RESAMPLES.index(preprocessing.resample)
    frames: dict[str, dict[str, Json]] = {
        "pad": {
            "do_resize": True,
            "size": {"longest_edge": side},
            "resample": "area",
            "do_pad": True,
            "pad_size": {"height": side, "width": side},
        },
        "crop": {
            "do_resize": True,
            "size": {"shortest_edge": preprocessing.short_side or side},
            "resample": number,
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
        },
        "stretch": {"do_resize": True, "size": {"height": side, "width": side}, "resample": number},
    }
    return {
        "image_processor_type": "AFLocImageProcessor",  # afloc_jax.inference.hugging_face
        "auto_map": {"AutoImageProcessor": f"{_WHERE_IT_IS}--afloc_jax.AFLocImageProcessor"},
        "grey": preprocessing.grey,
        "equalize": preprocessing.equalize,
        **frames[preprocessing.geometry],
        "do_convert_grayscale": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [preprocessing.mean],
        "image_std": [preprocessing.std],
    }
