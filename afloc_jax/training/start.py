"""The initial values of a run: random ones, or the weights that `config.init_from` names.

A model folder provides all weights. Foreign sources (afloc_jax.weights.importers: a checkpoint, an image backbone, a
text encoder, or several of them) provide the weights that they hold; the others stay random. The config decides on the
model, and sources must fit it. Only an empty `config.model.text.bert` takes the settings of their text encoder.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Array, PyTree
from tokenizers import Tokenizer

from afloc_jax.buckets import is_bucket
from afloc_jax.errors import UsageError
from afloc_jax.files import Path, bucket_path
from afloc_jax.models import build, initial_variables
from afloc_jax.models.bert import BertSettings
from afloc_jax.models.settings import ImageSettings, ModelSettings
from afloc_jax.settings import Json
from afloc_jax.training.settings import RunConfig
from afloc_jax.weights import torch_names
from afloc_jax.weights.config import read_config
from afloc_jax.weights.folder import Variables, load_model
from afloc_jax.weights.import_report import summary
from afloc_jax.weights.importers import combined, found_backbone, found_bert, found_scale, read_sources
from afloc_jax.weights.sources import TEXT, Source, folder_config

# Settings that belong to the weights of a text encoder. Others (dropout, initial scale) are the run's own choice.
_BELONGS_TO_WEIGHTS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps"),
)


def model_folder(config: RunConfig) -> Path | None:
    """The model folder that `config.init_from` names; None where it is empty or names foreign sources.

    A folder without weights counts as a model folder: reading it then says what is missing.
    """
    if not config.init_from or not isinstance(config.init_from, str):
        return None
    path = bucket_path(config.init_from)
    if is_bucket(path):  # foreign sources are read on this machine alone
        return path
    return path if path.is_dir() and ("format_version" in folder_config(path) or not _has_weights(path)) else None


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def foreign_sources(config: RunConfig) -> list[Source]:
    """The sources in `config.init_from`, with names and shapes read. Empty for a model folder or an empty `init_from`.

    Raises:
        UserError: see `importers.read_sources`.
    """
    if not config.init_from or model_folder(config):
        return []
    return read_sources(config.init_from)


def adopt(config: RunConfig, sources: Sequence[Source]) -> RunConfig:
    """The config with the settings that belong to the weights of the sources, and the folder of their tokenizer.

    From a model folder an empty `config.model.text.bert` takes its text encoder.

    Raises:
        UsageError: `config.model` describes another backbone or another BERT than the sources hold, or a text encoder
            has no tokenizer.
    """
    folder = model_folder(config)
    if folder and not config.model.text.bert:
        found = read_config(folder).architecture.text.bert
        return with_text(config, bert={key: value for key, value in found.items() if key != "vocab_size"})
    config = _with_image(config, sources)
    texts = [source for source in sources if source.holds(TEXT)]
    if texts:
        tokenizer = config.model.text.tokenizer or str(texts[0].folder or "")
        if not tokenizer:
            raise UsageError(
                f"config.model.text.tokenizer is empty: {texts[0].title} in config.init_from holds a text encoder but "
                "no tokenizer; name the folder of its vocabulary (vocab.txt or tokenizer.json)"
            )
        config = with_text(config, tokenizer=tokenizer, bert=_bert(config.model, sources, tokenizer))
    config.model.check_text_encoder()
    return config


def _with_image(config: RunConfig, sources: Sequence[Source]) -> RunConfig:
    """The config with the options of the image encoder among the sources, and the scale of pixels that it expects.

    An option that the config states must be that of the weights. Published values of `mean` and `std` count as not
    stated.
    """
    found, image = found_backbone(sources), config.model.image
    if found is None:
        return config
    if found.name != image.backbone:
        raise UsageError(
            f"config.model.image.backbone = {image.backbone!r}: config.init_from holds a {found.name}; set it so"
        )
    for key, value in found.options.items():
        if image.options.get(key, value) != value:
            raise UsageError(
                f"config.model.image.options.{key} = {image.options[key]!r}: the {found.name} in config.init_from has "
                f"{value!r}; set it so, or leave it out"
            )
    image = dataclasses.replace(image, options={**found.options, **image.options})
    if (image.mean, image.std) == (ImageSettings.mean, ImageSettings.std):
        mean, std = found_scale(sources, found)
        image = dataclasses.replace(image, mean=mean, std=std)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, image=image))


def with_text(config: RunConfig, *, tokenizer: str | None = None, bert: Mapping[str, Json]) -> RunConfig:
    """The config with another text encoder, and another tokenizer unless that is None."""
    text = config.model.text
    text = dataclasses.replace(text, bert=bert, tokenizer=text.tokenizer if tokenizer is None else tokenizer)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))


def _bert(model: ModelSettings, sources: Sequence[Source], tokenizer: str) -> dict[str, Json]:
    found = found_bert(sources, tokenizer)
    assert found is not None  # one of the sources holds a text encoder
    fields, assumed = found
    if model.text.bert:
        _check_agreement(model.text.bert, fields, heads_known=not assumed)
        return {**model.text.bert, "vocab_size": fields["vocab_size"]}
    if fields["hidden_size"] != model.projection_dim and not model.text.projection:
        raise UsageError(
            f"config.model.projection_dim = {model.projection_dim}: the text encoder in config.init_from is "
            f"{fields['hidden_size']} wide and its units are not projected; set it to {fields['hidden_size']}, or set "
            f"config.model.text.projection = {model.projection_dim}"
        )
    return fields


def _check_agreement(given: Mapping[str, Json], found: Mapping[str, Json], heads_known: bool) -> None:
    published = {field.name: field.default for field in dataclasses.fields(BertSettings)}
    for key in _BELONGS_TO_WEIGHTS:
        if key == "num_attention_heads" and not heads_known:
            continue  # only assumed from the width, so the config decides
        if key == "vocab_size" and key not in given:
            continue
        ours, theirs = given.get(key, published[key]), found.get(key, published[key])
        if ours != theirs:
            raise UsageError(
                f"config.model.text.bert.{key} is {ours!r}: the text encoder in config.init_from has {theirs!r}; "
                "set it so, or leave config.model.text.bert empty"
            )


def with_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """The config with a vocabulary size that suits the tokenizer: one embedding for each of its entries.

    Raises:
        UsageError: the config names a tokenizer and a vocabulary size that is smaller than the tokenizer's.
    """
    size = 1 + max(tokenizer.get_vocab().values())
    text, folder = config.model.text, model_folder(config)
    if folder and "vocab_size" not in text.bert:
        size = max(size, read_config(folder).architecture.text.structure.vocab_size)
    elif text.tokenizer and "vocab_size" in text.bert:
        given = text.structure.vocab_size
        if given < size:
            raise UsageError(f"config.model.text.bert.vocab_size = {given}: must be at least {size}, the tokenizer's")
        size = given
    # A learned vocabulary may be smaller than the config's size.
    return with_text(config, bert={**text.bert, "vocab_size": size})


def first_variables(config: RunConfig) -> Variables:
    """Parameters and batch statistics before step 0: random from the seed, or those of the model folder `init_from`.

    Raises:
        UsageError: the model folder holds arrays of other shapes than the config's model.
    """
    make, key, folder = build(config.model), jax.random.key(config.seed), model_folder(config)
    if folder is None:
        # The program runs once. On a CPU, optimising its hundreds of random draws would take longer than running it.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        variables: Variables = jax.jit(lambda key: initial_variables(make, key), compiler_options=options)(key)
        return variables
    loaded = load_model(folder).variables
    wanted = _shapes(jax.eval_shape(lambda key: initial_variables(make, key), key))
    there = _shapes(loaded)
    for name in sorted({*wanted, *there}):
        if wanted.get(name) != there.get(name):
            raise UsageError(
                f"config.init_from = {folder}: {name} is {there.get(name)} there and {wanted.get(name)} in "
                "config.model; make config.model that of the folder's config.json"
            )
    return loaded


def _shapes(tree: PyTree[Array]) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def overlay(variables: Variables, sources: Sequence[Source], model: ModelSettings) -> tuple[Variables, str]:
    """The variables with the arrays of the sources in place of random ones.

    Args:
        variables: random variables of the model.
        sources: from `foreign_sources`.
        model: `config.model`, after `adopt`.

    Returns:
        The variables, in which the sources' arrays are float32 NumPy arrays, and one line that names the sources and
        what is still random.

    Raises:
        UserError: tensors are missing or do not fit.
    """
    rows = torch_names.table(model)
    state = combined(sources, model)
    flat = dict(traverse_util.flatten_dict(variables))
    for row in rows:
        if row.name in state:
            flat[row.path] = row.from_torch(state[row.name]).astype(np.float32)
    rest = [row.name for row in rows if row.name not in state]
    told = f"starts from {'; '.join(f'{source.title} ({source.kind})' for source in sources)}"
    told += f"; random: {summary(rest)}" if rest else ""
    return traverse_util.unflatten_dict(flat), told
