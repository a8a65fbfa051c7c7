"""The input of every exporter: a model folder in memory, and what its settings with all defaults say."""

import functools
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np
from tokenizers import Tokenizer

from afloc_jax.errors import UsageError
from afloc_jax.files import AnyPath, Path, fetched, write_json
from afloc_jax.inference.model import Model
from afloc_jax.models import build
from afloc_jax.models.settings import BACKBONES, ModelSettings
from afloc_jax.settings import Json
from afloc_jax.weights import torch_names
from afloc_jax.weights.config import FolderConfig
from afloc_jax.weights.folder import Variables, load_model
from data_pipelines.tokens import save_tokenizer

COPIED = pathlib.Path(__file__).parent / "copied"  # files that are copied into exports


@dataclass(frozen=True, eq=False)
class Source:
    """A model folder in memory."""

    folder: Path
    config: FolderConfig
    variables: Variables
    tokenizer: Tokenizer

    @property
    def settings(self) -> ModelSettings:
        """The settings of the architecture."""
        return self.config.architecture

    @functools.cached_property
    def model(self) -> Model:
        """The model of this folder, with whose outputs an export is compared."""
        return Model(self.config, self.variables, self.tokenizer)

    @property
    def image_size(self) -> int:
        """The side of the padded square in pixels."""
        return self.config.preprocessing.image_size

    @property
    def max_tokens(self) -> int:
        """The token slots of a prompt."""
        return self.config.prompts.max_tokens

    @functools.cached_property
    def deep_cells(self) -> int:
        """The number of cells of the deep map along one side."""
        square = jax.ShapeDtypeStruct((1, self.image_size, self.image_size), np.uint8)
        encode = functools.partial(build(self.settings).apply, method="encode_image")
        side: int = jax.eval_shape(encode, self.variables, square).deep.shape[1]
        return side

    def state_dict(self) -> dict[str, np.ndarray]:
        """The weights in PyTorch names and layouts."""
        return torch_names.to_torch(self.variables, self.config.architecture)


def read_source(folder: AnyPath) -> Source:
    """Reads a model folder. Raises `afloc_jax.weights.folder.ModelFolderError` if it is unusable."""
    return Source(fetched(folder), *load_model(folder))


def describe(source: Source) -> dict[str, Json]:
    """The content of config.json of an export: the architecture with all defaults, so that readers need none."""
    image, text = source.settings.image, source.settings.text
    return {
        "name": source.config.name,
        "image_size": source.image_size,
        "max_tokens": source.max_tokens,
        "projection_dim": source.settings.projection_dim,
        "normalize": source.settings.normalize,
        "deep_cells": source.deep_cells,
        "image": {
            "backbone": image.backbone,
            "family": BACKBONES[image.backbone].family.name,
            "structure": {**image.structure.plain(), "statistics_group": image.statistics_group},
            "input_size": image.input_size,
            "mean": list(image.mean),
            "std": list(image.std),
            "center": image.center,
        },
        "text": {
            "bert": text.structure.plain(),
            "last_layers": text.last_layers,
            "merge_layers": text.merge_layers,
            "merge_pieces": text.merge_pieces,
            "context": text.context,
            "projection": text.projection,
        },
        "localization": source.config.localization.plain(),
    }


def write_inputs_reader(source: Source, folder: Path) -> None:
    """Writes config.json, the tokenizer, and the Python file that turns images and prompts into inputs.

    Raises UsageError for a model that reads equalised, cropped or stretched images, which that file does not make.
    """
    if (geometry := source.config.preprocessing.geometry) != "pad":
        raise UsageError(
            f"{source.folder}: its images are framed by {geometry!r}, and the reader of images in this export pads "
            "them; --format safetensors exports the weights alone"
        )
    if (how := source.config.preprocessing.equalize) != "none":
        raise UsageError(
            f"{source.folder}: it was trained with data.equalize = {how!r}, and the reader of images in this export "
            "does not equalise; --format safetensors or afloc-ckpt exports the weights alone"
        )
    write_json(folder / "config.json", describe(source))
    save_tokenizer(source.tokenizer, folder)
    copy_file("afloc_inputs.py", folder)
    copy_file("afloc_localize.py", folder)


def write_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as an .npz file."""
    np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy's types take them for `allow_pickle`, too


def copy_file(name: str, folder: Path) -> None:
    """Copies a file of copied/ into an export."""
    (folder / name).write_bytes((COPIED / name).read_bytes())
