"""Weights of others into a model folder, or into the start of a training run.

A whole checkpoint (AFLoc's, GLoRIA's), or parts: an image backbone, a text encoder, or both. What the sources do not
hold is initialised at random by the seed, and named: in the report and on the model card.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from afloc_jax.errors import UsageError, UserError
from afloc_jax.levels import TokenBatch
from afloc_jax.models import build
from afloc_jax.models.bert import BertSettings
from afloc_jax.weights import architecture, torch_names
from afloc_jax.weights.folder import save_state
from afloc_jax.weights.hub import find_on_hub, looks_like_hub_name
from afloc_jax.weights.sources import AFLOC, GLORIA, IMAGE, TEXT, Source, folder_config, read_source, sha256
from afloc_jax.weights.torch_files import Tensor, UnreadableFile
from configs.afloc import get_config
from data_pipelines.tokens import load_tokenizer

SourcePath = str | Path

_WHOLE = (AFLOC, GLORIA)
_SHALLOW = "img_encoder.local2_embedder.weight"
_POOLER = "text_encoder.model.pooler."  # no output depends on it, and many files come without


@dataclass(frozen=True)
class ImportReport:
    """What became of the sources.

    Attributes:
        folder: the model folder that was written.
        imported: "file: what it is" for each source.
        backbone: of the image encoder.
        missing: published names of parameters that no source held; they have random values.
        left_out: names in the sources that the model has no place for.
        notes: what a user should know: assumptions, and what cannot be expected of the model.
    """

    folder: Path
    imported: tuple[str, ...]
    backbone: str
    missing: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The same for a reader, one line each."""
        told = [f"{self.folder}: {self.backbone} and BERT from {'; '.join(self.imported)}"]
        if self.missing:
            told.append(f"not trained (random by the seed): {summary(self.missing)}")
        if self.left_out:
            told.append(f"left out: {summary(self.left_out)}")
        return told + list(self.notes)


def import_model(
    sources: SourcePath | Sequence[SourcePath], folder: SourcePath, tokenizer: SourcePath | None = None, seed: int = 1
) -> ImportReport:
    """Write a model folder from foreign weights.

    Args:
        sources: a checkpoint of AFLoc or GLoRIA, or an image backbone and a BERT in any order, or one of these two:
            files, Hugging Face folders, or names on the Hugging Face hub.
        folder: the model folder to write.
        tokenizer: folder (or hub name) with vocab.txt or tokenizer.json; needed when no source is a folder that holds
            one. Its config.json, if it is the text encoder's, tells the number of attention heads.
        seed: of what the sources do not hold.

    Raises:
        UserError: a source cannot be read or holds nothing for the model, parts are missing or do not fit together, or
            there is no tokenizer.
    """
    found = read_sources(sources)
    if tokenizer and not Path(tokenizer).exists() and looks_like_hub_name(str(tokenizer)):
        tokenizer = find_on_hub(str(tokenizer), ("vocab.txt", "tokenizer.json"))
    config, notes = foreign_config(found, tokenizer)
    config.seed = seed
    state = combined(found, config.model)
    words = _tokenizer(found, config, tokenizer)
    missing = [row.name for row in torch_names.table(config.model) if row.name not in state]
    left_out = [name for source in found for name in source.left_out]
    left_out += [name for source in found for name in source.tensors if name not in state]
    state |= fresh(config.model, missing, seed)
    report = ImportReport(
        Path(folder),
        tuple(f"{source.title}: {source.kind}" for source in found),
        config.model.image.backbone,
        tuple(missing),
        tuple(left_out),
        tuple(notes + _consequences(missing)),
    )
    complete = {row.name: state[row.name] for row in torch_names.table(config.model)}
    save_state(folder, torch_names.with_counters(complete), config, words, _card(found, report))
    return report


def read_sources(sources: SourcePath | Sequence[SourcePath]) -> list[Source]:
    """The sources of one model, checked for not holding the same part twice.

    Raises:
        UserError: see `sources.read_source`; or two sources hold the same part.
    """
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    if not given:
        raise UsageError("no source given: name a checkpoint, or an image backbone and a text encoder")
    found = [read_source(source) for source in given]
    for tower in ("img_encoder.", "text_encoder."):
        holders = [source for source in found if any(name.startswith(tower) for name in source.tensors)]
        if len(holders) > 1:
            which = "the image encoder" if tower.startswith("img") else "the text encoder"
            raise UserError(f"{' and '.join(source.title for source in holders)} both hold {which}: give one of them")
    return found


def foreign_config(found: Sequence[Source], tokenizer: SourcePath | None = None) -> tuple[ConfigDict, list[str]]:
    """The published config, changed to what the sources are, and what a user should know about it."""
    config, notes = get_config(), []
    config.name = Path(found[0].title).stem
    shapes = {name: tensor.shape for source in found for name, tensor in source.tensors.items()}
    if any(name.startswith("img_encoder.model.") for name in shapes):
        config.model.image.backbone = architecture.image_backbone(shapes)
        config.model.image.center = "img_encoder.local_norm.weight" in shapes
    if any(name.startswith("text_encoder.model.") for name in shapes):
        fields, assumed = architecture.bert_fields(shapes, bert_config(found, tokenizer))
        _fit_text_encoder(config, fields)
        if assumed:
            notes.append(f"assumed: {assumed}")
    elif tokenizer and Path(tokenizer).is_dir():
        _describe_text_encoder(config, folder_config(Path(tokenizer)))
    for source in found:
        if source.kind in _WHOLE and source.settings is not None:
            notes += architecture.apply_settings(config, source.settings, merges_pieces=source.kind == AFLOC)
    return config, notes


def _describe_text_encoder(config: ConfigDict, stated: dict[str, Any]) -> None:
    """A text encoder that no source holds is built as the config.json beside the tokenizer says, if it is a BERT's."""
    if stated.get("model_type") in architecture.BERT_TYPES:
        _fit_text_encoder(config, {key: stated[key] for key in BertSettings.__dataclass_fields__ if key in stated})


def _fit_text_encoder(config: ConfigDict, fields: dict[str, Any]) -> None:
    """Set the text encoder's fields, and what depends on them: the shared width, layers that exist, slots it has."""
    config.model.text.bert = ConfigDict(fields)
    config.model.projection_dim = fields.get("hidden_size", config.model.projection_dim)
    config.model.text.last_layers = min(
        config.model.text.last_layers, fields.get("num_hidden_layers", config.model.text.last_layers) + 1
    )
    config.data.max_tokens = min(config.data.max_tokens, fields.get("max_position_embeddings", config.data.max_tokens))


def combined(found: Sequence[Source], model_config: Any) -> dict[str, np.ndarray]:
    """The sources' arrays that the model has a place for, by published name: views of the files, float32 or double.

    Raises:
        UserError: a tensor has another shape than the model's, or a tower that is there is not complete.
    """
    wanted = {row.name: row.shape for row in torch_names.table(model_config)}
    state: dict[str, np.ndarray] = {}
    for source in found:
        fitting = {name: tensor for name, tensor in source.tensors.items() if name in wanted}
        towers = [tower for tower in _TOWERS if any(name.startswith(tower) for name in source.tensors)]
        needed = {name for name in wanted if name.startswith(tuple(towers)) and not name.startswith(_POOLER)}
        torch_names.compare(
            source.title,
            {name: tensor.shape for name, tensor in fitting.items()},
            {name: wanted[name] for name in wanted if name in needed or name in fitting},
        )
        for name, tensor in fitting.items():
            state[name] = _floats(source, name, tensor)
    return state


_TOWERS = ("img_encoder.model.", "text_encoder.model.")


def _floats(source: Source, name: str, tensor: Tensor) -> np.ndarray:
    try:
        array = tensor.array()
    except UnreadableFile as error:
        raise UserError(f"{source.file}: {name}: {error}; get the file again from where it was published") from None
    if array.dtype in (np.float32, np.float64):
        return array
    return array.astype(np.float32)


def fresh(model_config: Any, names: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Random values of some parameters by published name, those that training would start from with this seed."""
    if not names:
        return {}
    rows = [row for row in torch_names.table(model_config) if row.name in set(names)]
    slots, count = jnp.zeros((1, 4), jnp.int32), jnp.ones(1, jnp.int32)  # sizes of inputs do not matter to parameters
    model = build(model_config)

    def chosen(key: jax.Array) -> dict[str, jax.Array]:
        variables = model.init(key, jnp.zeros((1, 32, 32), jnp.uint8), TokenBatch(slots, slots, slots, count, count))
        picked = {}
        for row in rows:
            leaf: Any = variables
            for key_ in row.path:
                leaf = leaf[key_]
            picked[row.name] = leaf
        return picked

    # Compiled, so that the network and all other parameters fall away; optimising random draws takes longer than
    # running them.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    leaves = jax.device_get(jax.jit(chosen, compiler_options=options)(jax.random.key(seed)))
    return {row.name: np.ascontiguousarray(row.to_torch(leaves[row.name])) for row in rows}


def bert_config(found: Sequence[Source], tokenizer: SourcePath | None = None) -> dict[str, Any]:
    """config.json of the text encoder: beside its weights, or beside the tokenizer if it is as wide; or empty."""
    for source in found:
        if source.folder and source.kind == TEXT:
            return folder_config(source.folder)
    folder = Path(tokenizer) if tokenizer and Path(tokenizer).is_dir() else None
    config = folder_config(folder)
    name = "text_encoder.model.embeddings.word_embeddings.weight"
    widths = [source.tensors[name].shape[-1:] for source in found if name in source.tensors]
    return config if (config.get("hidden_size"),) in widths else {}


def _tokenizer(found: Sequence[Source], config: ConfigDict, tokenizer: SourcePath | None) -> Any:
    """The tokenizer given, or of a source that is a folder; sets the vocabulary size where no source has fixed it."""
    places = [tokenizer] if tokenizer else [s.folder for s in found if s.folder and s.kind != IMAGE]
    if not places:
        wanted = [architecture.lookup(s.settings, "model.text.bert_type") for s in found if s.settings is not None]
        which = f" of {wanted[0]}" if wanted and isinstance(wanted[0], str) else ""
        raise UsageError(
            f"{found[0].title} holds no tokenizer: give --tokenizer DIR, a folder with the vocabulary{which} "
            "(vocab.txt or tokenizer.json)"
        )
    words = load_tokenizer(places[0])
    size = 1 + max(words.get_vocab().values())
    bert = config.model.text.bert
    if "vocab_size" not in bert:
        bert.vocab_size = size
    elif size > bert.vocab_size:
        raise UserError(
            f"{places[0]}: a vocabulary of {size} entries, but the text encoder has {bert.vocab_size} embeddings; "
            "give the tokenizer that it was trained with"
        )
    return words


def _consequences(missing: Sequence[str]) -> list[str]:
    """What a model with these random parameters cannot do."""
    told = []
    absent = {tower for tower in _TOWERS if sum(name.startswith(tower) for name in missing) > 2}
    if absent or "img_encoder.local_embedder.weight" in missing:
        told.append("to be trained before use: image and text do not meet yet")
    elif _SHALLOW in missing:
        told.append(
            "not trained: shallow level. Heat maps come from the deep map and are not concerned; similarities of words "
            "mean nothing"
        )
    return told


def _card(found: Sequence[Source], report: ImportReport) -> dict[str, Any]:
    data = {f"imported from {source.title}": f"{source.kind}, SHA-256 {sha256(source.file)}" for source in found}
    if report.missing:
        data["not trained, random by the seed"] = summary(report.missing)
    if report.left_out:
        data["left out"] = summary(report.left_out)
    if report.notes:
        data["to know"] = "; ".join(report.notes)
    return {"data": data}


def summary(names: Sequence[str], shown: int = 12) -> str:
    """Names in one line; those beyond `shown` are counted by tower."""
    if len(names) <= shown:
        return ", ".join(names)
    groups: dict[str, int] = {}
    for name in names:
        parts = name.split(".")
        group = ".".join(parts[:2] if name.startswith(("img_encoder.", "text_encoder.")) else parts[:1])
        groups[group] = groups.get(group, 0) + 1
    return ", ".join(f"{group}.* ({count})" for group, count in groups.items())
