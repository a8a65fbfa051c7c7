"""`config.init_from`: the weights that a run starts from.

A model folder brings everything. Foreign sources (afloc_jax.weights.importers: a checkpoint, an image backbone, a text
encoder, or several of them) bring what they hold; the rest stays as the seed made it. The config decides what the model
is: sources have to fit it. Only an empty `config.model.text.bert` takes over the settings of the text encoder found.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from afloc_jax.errors import UsageError
from afloc_jax.models.bert import BertSettings
from afloc_jax.models.settings import parse
from afloc_jax.weights import torch_names
from afloc_jax.weights.import_report import summary
from afloc_jax.weights.importers import combined, found_backbone, found_bert, read_sources
from afloc_jax.weights.sources import TEXT, Source, folder_config

# Of a text encoder: what its weights were trained with. Dropout and the width of fresh values are the run's own choice.
_BELONGS_TO_WEIGHTS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps"),
)


def is_model_folder(init_from: Any) -> bool:
    """Whether `init_from` is one of our model folders, or a path that can be nothing else."""
    if not init_from or not isinstance(init_from, str):
        return False
    path = Path(init_from)
    return path.is_dir() and ("format_version" in folder_config(path) or not _has_weights(path))


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def foreign_sources(init_from: str | Sequence[str]) -> list[Source]:
    """The sources, read as far as names and shapes; none for an empty `init_from` or a model folder.

    Raises:
        UserError: see `importers.read_sources`.
    """
    if not init_from or is_model_folder(init_from):
        return []
    return read_sources(init_from)


def adopt(config: ConfigDict, found: Sequence[Source]) -> ConfigDict:
    """A copy of the config that says of BERT what the text encoder among the sources is, and where its tokenizer lies.

    Raises:
        UsageError: `config.model` describes another backbone or another BERT than the sources hold, or there is a text
            encoder without a tokenizer.
    """
    config = config.copy_and_resolve_references()
    backbone, ours = found_backbone(found), config.model.image.backbone
    if backbone not in ("", ours):
        raise UsageError(f"config.model.image.backbone = {ours!r}: config.init_from holds a {backbone}; set it so")
    texts = [source for source in found if source.holds(TEXT)]
    if texts:
        with config.unlocked():
            config.model.text.tokenizer = _tokenizer(config, texts[0])
            config.model.text.bert = _bert(config, found)
    parse(config.model)
    return config


def _tokenizer(config: ConfigDict, source: Source) -> str:
    place = config.model.text.tokenizer or str(source.folder or "")
    if not place:
        raise UsageError(
            f"config.model.text.tokenizer is empty: {source.title} in config.init_from holds a text encoder but no "
            "tokenizer; name the folder of its vocabulary (vocab.txt or tokenizer.json)"
        )
    return place


def _bert(config: ConfigDict, found: Sequence[Source]) -> ConfigDict:
    fields, assumed = found_bert(found, config.model.text.tokenizer) or ({}, "")
    given = config.model.text.bert.to_dict()
    if given:
        _check_agreement(given, fields, heads_known=not assumed)
        return ConfigDict({**given, "vocab_size": fields["vocab_size"]})
    if fields["hidden_size"] != config.model.projection_dim:
        raise UsageError(
            f"config.model.projection_dim = {config.model.projection_dim}: the text encoder in config.init_from is "
            f"{fields['hidden_size']} wide and its units are not projected; set it to {fields['hidden_size']}"
        )
    return ConfigDict(fields)


def _check_agreement(given: dict[str, Any], found: dict[str, Any], heads_known: bool) -> None:
    published = {field.name: field.default for field in dataclasses.fields(BertSettings)}
    for key in _BELONGS_TO_WEIGHTS:
        if key == "num_attention_heads" and not heads_known:
            continue  # assumed from the width alone; the config knows better
        if key == "vocab_size" and key not in given:
            continue
        ours = given.get(key, published[key])
        if ours != found.get(key, published[key]):
            raise UsageError(
                f"config.model.text.bert.{key} is {ours!r}: the text encoder in config.init_from has "
                f"{found.get(key, published[key])!r}; set it so, or leave config.model.text.bert empty"
            )


def overlay(variables: Any, found: Sequence[Source], model_config: ConfigDict) -> tuple[dict[str, Any], str]:
    """Variables with the sources' arrays in the place of the random ones.

    Args:
        variables: {"params": ..., "batch_stats": ...} of a fresh model.
        found: from `foreign_sources`.
        model_config: `config.model`, adopted.

    Returns:
        The variables (those of the sources float32 NumPy arrays), and one line on what came from where and what is
        still random.

    Raises:
        UserError: tensors are missing or do not fit.
    """
    rows = torch_names.table(model_config)
    state = combined(found, model_config)
    flat = dict(traverse_util.flatten_dict(variables))
    for row in rows:
        if row.name in state:
            flat[row.path] = row.from_torch(state[row.name]).astype("float32")
    rest = [row.name for row in rows if row.name not in state]
    told = f"starts from {'; '.join(f'{source.title} ({source.kind})' for source in found)}"
    told += f"; random: {summary(rest)}" if rest else ""
    return traverse_util.unflatten_dict(flat), told
