"""What every exporter starts from: a model folder, read and checked, and its settings with every default filled in."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from afloc_jax.inference.heatmaps import HeatmapSettings
from afloc_jax.inference.model import Model
from afloc_jax.models import build
from afloc_jax.models.settings import BACKBONES, ModelSettings, parse
from afloc_jax.weights import torch_names
from afloc_jax.weights.folder import load_model
from data_pipelines.tokens import save_tokenizer

COPIED = Path(__file__).parent / "copied"  # files that exports carry with them


@dataclass(frozen=True, eq=False)
class Source:
    """A model folder in memory."""

    folder: Path
    config: ConfigDict  # contents of config.json
    variables: dict[str, Any]
    tokenizer: Any

    @functools.cached_property
    def settings(self) -> ModelSettings:
        """The architecture, every default filled in."""
        return parse(self.config.architecture)

    @functools.cached_property
    def heatmap_settings(self) -> HeatmapSettings:
        """How embeddings become a heat map."""
        return HeatmapSettings.read(self.config.get("localization", {}))

    @functools.cached_property
    def model(self) -> Model:
        """The model in use: what the outputs of an export are compared with."""
        return Model(self.config, self.variables, self.tokenizer)

    @property
    def image_size(self) -> int:
        """Side of the padded square, pixels."""
        return int(self.config.preprocessing.image_size)

    @property
    def max_tokens(self) -> int:
        """Token slots of a prompt."""
        return int(self.config.prompts.max_tokens)

    @functools.cached_property
    def deep_cells(self) -> int:
        """Cells of the deep map along one side."""
        square = jax.ShapeDtypeStruct((1, self.image_size, self.image_size), np.uint8)
        encode = functools.partial(build(self.settings).apply, method="encode_image")
        levels: Any = jax.eval_shape(encode, self.variables, square)
        return int(levels.deep.shape[1])

    def state_dict(self) -> dict[str, np.ndarray]:
        """The weights with their PyTorch names and layouts."""
        return torch_names.to_torch(self.variables, self.config.architecture)


def read_source(folder: str | Path) -> Source:
    """Read a model folder. Raises `afloc_jax.weights.folder.ModelFolderError` when it is not a usable one."""
    config, variables, tokenizer = load_model(folder)
    return Source(Path(folder), config, variables, tokenizer)


def describe(source: Source) -> dict[str, Any]:
    """config.json of an export: the architecture with every default filled in, so that a reader needs no table."""
    image, text = source.settings.image, source.settings.text
    return {
        "name": source.config.get("name", "afloc"),
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
            "center": image.center,
        },
        "text": {
            "bert": text.structure.plain(),
            "last_layers": text.last_layers,
            "merge_layers": text.merge_layers,
            "merge_pieces": text.merge_pieces,
            "context": text.context,
        },
        "localization": source.heatmap_settings.plain(),
    }


def write_inputs_reader(source: Source, folder: Path) -> None:
    """config.json, the tokenizer, and the file that turns pictures and prompts into inputs."""
    (folder / "config.json").write_text(json.dumps(describe(source), indent=2) + "\n")
    save_tokenizer(source.tokenizer, folder)
    copy_file("afloc_inputs.py", folder)


def copy_file(name: str, folder: Path, new_name: str | None = None) -> None:
    """Copy one of the files that exports carry with them."""
    (folder / (new_name or name)).write_bytes((COPIED / name).read_bytes())
