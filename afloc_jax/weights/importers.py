"""Foreign weights into a model folder, or into the start of a training run.

Sources are a whole checkpoint (AFLoc's, GLoRIA's), or parts: an image backbone, a text encoder, or both. What they do
not hold gets random values by the seed, and is named in the report and on the model card.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import numpy as np
from flax import traverse_util
from tokenizers import Tokenizer

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import AnyPath, Path, user_path
from afloc_jax.models import build, initial_variables
from afloc_jax.models.bert import BertSettings
from afloc_jax.models.settings import ModelSettings
from afloc_jax.settings import Json
from afloc_jax.weights import architecture, torch_names
from afloc_jax.weights.architecture import FoundBert
from afloc_jax.weights.draft import Draft
from afloc_jax.weights.folder import save_state
from afloc_jax.weights.hub import find_on_hub, looks_like_hub_name
from afloc_jax.weights.import_report import ImportReport, card, consequences
from afloc_jax.weights.sources import AFLOC, GLORIA, IMAGE, TEXT, TOWERS, Source, folder_config, read_source
from afloc_jax.weights.tensors import Tensor, UnreadableFile
from data_pipelines.tokens import load_tokenizer

_WHOLE = (AFLOC, GLORIA)
_MANY = 10_000_000  # parameters, from which on optimised code for random draws pays
_POOLER = "text_encoder.model.pooler."  # no output depends on it, and many files come without


def import_model(
    sources: AnyPath | Sequence[AnyPath], folder: AnyPath, tokenizer: AnyPath | None = None, seed: int = 1
) -> ImportReport:
    """Write a model folder from foreign weights.

    Args:
        sources: a checkpoint of AFLoc or GLoRIA, or an image backbone and a BERT in any order, or one of these two:
            files, Hugging Face folders, or names on the Hugging Face hub.
        folder: the model folder to write.
        tokenizer: folder (or hub name) with vocab.txt or tokenizer.json; needed when no source is a folder that holds
            one. Its config.json, if it is the text encoder's, tells the number of attention heads.
        seed: of the random values.

    Raises:
        UserError: a source cannot be read or holds nothing for the model, parts are missing or do not fit together,
            there is no tokenizer, or `folder` holds something else than a model.
    """
    folder = user_path(folder)
    check_destination(folder)
    found = read_sources(sources)
    place = _tokenizer_folder(tokenizer) if tokenizer else None
    draft, notes = foreign_config(found, place)
    state = combined(found, draft.architecture())
    words = _tokenizer(found, draft, place)
    model = draft.architecture()
    rows = torch_names.table(model)
    missing = [row.name for row in rows if row.name not in state]
    left_out = [name for source in found for name in source.left_out]
    left_out += [name for source in found for name in source.tensors if name not in state]
    state |= fresh(model, missing, seed)
    report = ImportReport(
        folder,
        tuple(f"{source.title}: {source.kind}" for source in found),
        draft.backbone,
        tuple(missing),
        tuple(left_out),
        tuple(notes + consequences(missing)),
    )
    complete = torch_names.with_counters({row.name: state[row.name] for row in rows})
    save_state(folder, complete, draft.config(seed, card(found, report)), words)
    return report


def read_sources(sources: AnyPath | Sequence[AnyPath]) -> list[Source]:
    """The sources of one model, checked for not holding the same part twice.

    Raises:
        UserError: see `sources.read_source`; or two sources hold the same part.
    """
    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not given:
        raise UsageError("no source given: name a checkpoint, or an image backbone and a text encoder")
    found = [read_source(source) for source in given]
    for tower, which in ((IMAGE, "an image encoder"), (TEXT, "a text encoder")):
        holders = [source.title for source in found if source.holds(tower)]
        if len(holders) > 1:
            raise UserError(f"{' and '.join(holders)} both hold {which}: give one of them")
    return found


def foreign_config(found: Sequence[Source], tokenizer: Path | None = None) -> tuple[Draft, list[str]]:
    """The published config, changed to what the sources are, and what a user should know about it."""
    draft, notes = Draft(Path(found[0].title).stem), []
    if backbone := found_backbone(found):
        draft.backbone = backbone
        draft.center = any("img_encoder.local_norm.weight" in source.tensors for source in found)
    if bert := found_bert(found, tokenizer):
        draft.fit_text_encoder(bert.fields)
        if bert.assumed:
            notes.append(f"assumed: {bert.assumed}")
    elif tokenizer:
        _describe_text_encoder(draft, folder_config(tokenizer))
    for source in found:
        if source.kind in _WHOLE and source.settings is not None:
            notes += architecture.apply_settings(draft, source.settings, merges_pieces=source.kind == AFLOC)
    return draft, notes


def _describe_text_encoder(draft: Draft, stated: dict[str, Json]) -> None:
    """A text encoder that no source holds is built as the config.json beside the tokenizer says, if it is a BERT's."""
    if stated.get("model_type") in architecture.BERT_TYPES:
        draft.fit_text_encoder({key: stated[key] for key in BertSettings.__dataclass_fields__ if key in stated})


def combined(found: Sequence[Source], model: ModelSettings) -> dict[str, np.ndarray]:
    """The sources' arrays that the model has a place for, by published name: views of the files, float32 or double.

    Raises:
        UserError: a tensor has another shape than the model's, or a tower that is there is not complete.
    """
    wanted = {row.name: row.shape for row in torch_names.table(model)}
    state: dict[str, np.ndarray] = {}
    for source in found:
        fitting = {name: tensor for name, tensor in source.tensors.items() if name in wanted}
        towers = [tower for tower in TOWERS if any(name.startswith(tower) for name in source.tensors)]
        needed = {name for name in wanted if name.startswith(tuple(towers)) and not name.startswith(_POOLER)}
        torch_names.compare(
            source.title,
            {name: tensor.shape for name, tensor in fitting.items()},
            {name: wanted[name] for name in wanted if name in needed or name in fitting},
        )
        for name, tensor in fitting.items():
            state[name] = _floats(source, name, tensor)
    return state


def _floats(source: Source, name: str, tensor: Tensor) -> np.ndarray:
    try:
        array = tensor.array()
    except UnreadableFile as error:
        raise UserError(f"{source.file}: {name}: {error}; get the file again from where it was published") from None
    if array.dtype in (np.float32, np.float64):
        return array
    return array.astype(np.float32)


def fresh(settings: ModelSettings, names: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Random values of some parameters by published name, those that training would start from with this seed."""
    if not names:
        return {}
    chosen_names = set(names)
    rows = [row for row in torch_names.table(settings) if row.name in chosen_names]
    model = build(settings)

    def chosen(key: jax.Array) -> dict[str, jax.Array]:
        variables = traverse_util.flatten_dict(initial_variables(model, key))
        return {row.name: variables[row.path] for row in rows}

    # Compiled, so that the network and all other parameters fall away. Optimising the code of random draws takes longer
    # than running it unoptimised, unless there are many.
    quick = jax.default_backend() == "cpu" and sum(math.prod(row.shape) for row in rows) < _MANY
    options = {"xla_backend_optimization_level": 0} if quick else None
    leaves = jax.device_get(jax.jit(chosen, compiler_options=options)(jax.random.key(seed)))
    return {row.name: np.ascontiguousarray(row.to_torch(leaves[row.name])) for row in rows}


def found_backbone(found: Sequence[Source]) -> str:
    """The backbone among the sources; empty when there is none. Raises UserError when it is not a known one."""
    for source in found:
        if source.holds(IMAGE):
            with _naming(source):
                return architecture.image_backbone(source.shapes)
    return ""


def found_bert(found: Sequence[Source], tokenizer: AnyPath | None = None) -> FoundBert | None:
    """The text encoder among the sources; None when there is none.

    Its config.json lies beside its weights, or beside the tokenizer (which has to be as wide to count).

    Raises:
        UserError: it is not whole, or not a BERT.
    """
    for source in found:
        if source.holds(TEXT):
            config = folder_config(source.folder)
            if source.folder is None and tokenizer and Path(tokenizer).is_dir():
                beside = folder_config(Path(tokenizer))
                width = source.shapes.get("text_encoder.model.embeddings.word_embeddings.weight", ())[-1:]
                config = beside if (beside.get("hidden_size"),) == width else {}
            with _naming(source):
                return architecture.bert_fields(source.shapes, config)
    return None


@contextmanager
def _naming(source: Source) -> Iterator[None]:
    """Errors about what a source holds name its file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source.file}: {error}") from None


def check_destination(folder: Path) -> None:
    """Refuse to replace what is not a model folder: with an argument forgotten, a source may stand in its place.

    Raises:
        UsageError: a file, or a folder that holds something else.
    """
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and "format_version" not in folder_config(folder)
    ):
        raise UsageError(f"{folder}: exists and is not a model folder; the last argument is the model folder to write")


def _tokenizer_folder(given: AnyPath) -> Path:
    """The folder of a tokenizer that a user named, which may be one in the cache of the hub."""
    name = os.fspath(given)
    if not os.path.exists(name) and looks_like_hub_name(name):
        return find_on_hub(name, ("vocab.txt", "tokenizer.json"))
    return user_path(name, "--tokenizer")


def _tokenizer(found: Sequence[Source], draft: Draft, given: Path | None) -> Tokenizer:
    """The tokenizer given, or of a source that is a folder; sets the vocabulary size where no source has fixed it."""
    places = [given] if given else [source.folder for source in found if source.folder and source.kind != IMAGE]
    if not places:
        wanted = [architecture.lookup(s.settings, "model.text.bert_type") for s in found if s.settings is not None]
        which = f" of {wanted[0]}" if wanted and isinstance(wanted[0], str) else ""
        raise UsageError(
            f"{found[0].title} holds no tokenizer: give --tokenizer DIR, a folder with the vocabulary{which} "
            "(vocab.txt or tokenizer.json)"
        )
    words = load_tokenizer(places[0])
    size = 1 + max(words.get_vocab().values())
    embeddings = draft.bert_count("vocab_size", size)
    if size > embeddings:
        raise UserError(
            f"{places[0]}: a vocabulary of {size} entries, but the text encoder has {embeddings} embeddings; "
            "give the tokenizer that it was trained with"
        )
    draft.bert["vocab_size"] = embeddings
    return words
