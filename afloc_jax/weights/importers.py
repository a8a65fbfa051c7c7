"""Import of foreign weights, into a model folder or as initial values of a training run.

Sources are a checkpoint of AFLoc or GLoRIA, or parts: an image backbone, a text encoder, or both. Parameters that no
source holds get random values from the seed, and are named in the report and on the model card.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import numpy as np
from flax import traverse_util
from tokenizers import Tokenizer

from afloc_jax.buckets import WRITING
from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import AnyPath, Path, bucket_path, user_path
from afloc_jax.models import build, initial_variables
from afloc_jax.models.bert import BertSettings
from afloc_jax.models.settings import ModelSettings
from afloc_jax.settings import Json
from afloc_jax.weights import architecture, torch_names
from afloc_jax.weights.architecture import FoundBackbone, FoundBert
from afloc_jax.weights.draft import Draft
from afloc_jax.weights.folder import save_state
from afloc_jax.weights.hub import find_on_hub, looks_like_hub_name
from afloc_jax.weights.import_report import ImportReport, card, consequences
from afloc_jax.weights.processors import XRAYVISION_STD, Processor, read_processor
from afloc_jax.weights.sources import AFLOC, GLORIA, HEAD, IMAGE, TEXT, TOWERS, Source, folder_config, read_source
from afloc_jax.weights.tensors import Tensor, UnreadableFile, fault_of
from data_pipelines.tokens import load_tokenizer

_WHOLE = (AFLOC, GLORIA)
_MANY = 10_000_000  # from this number of random parameters on, optimising the code of random draws saves time
_POOLER = "text_encoder.model.pooler."  # no output depends on it, and many files do not have it


def import_model(
    sources: AnyPath | Sequence[AnyPath], folder: AnyPath, tokenizer: AnyPath | None = None, seed: int = 1
) -> ImportReport:
    """Writes a model folder from foreign weights.

    Args:
        sources: a checkpoint of AFLoc or GLoRIA, or an image backbone, a BERT, or both in any order. Each is a file, a
            Hugging Face folder, or a name on the Hugging Face hub.
        folder: the model folder to write.
        tokenizer: a folder (or hub name) with vocab.txt or tokenizer.json. It is needed when no source is a folder with
            a tokenizer. If its config.json is that of the text encoder, the number of attention heads is read from it.
        seed: the seed of random values.

    Raises:
        UserError: a source cannot be read or holds nothing for the model, parts are missing or do not fit together,
            there is no tokenizer, or `folder` exists and is not a model folder.
    """
    folder = bucket_path(folder)
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
    """The sources of one model.

    Raises:
        UserError: see `sources.read_source`; or two sources hold the same tower.
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
    """The published config with the settings of the sources, and notes for the user."""
    draft, notes = Draft(Path(found[0].title).stem), []
    if backbone := found_backbone(found):
        draft.backbone, draft.options = backbone
        draft.mean, draft.std = found_scale(found, backbone)
        notes += draft.fit_image(found_processor(found))
        draft.center = any("img_encoder.local_norm.weight" in source.tensors for source in found)
    if bert := found_bert(found, tokenizer):
        draft.fit_text_encoder(bert.fields)
        if bert.assumed:
            notes.append(f"assumed: {bert.assumed}")
        notes += _fit_sentences(draft, next(source for source in found if source.holds(TEXT)))
    elif tokenizer:
        _describe_text_encoder(draft, folder_config(tokenizer))
    for source in found:
        if source.kind in _WHOLE and source.settings is not None:
            notes += architecture.apply_settings(draft, source.settings, merges_pieces=source.kind == AFLOC)
    return draft, notes


def _fit_sentences(draft: Draft, source: Source) -> list[str]:
    """Sets what a text encoder says of the embeddings that it was trained for, and returns notes for the user."""
    stated = folder_config(source.folder).get("projection_size")
    if width := architecture.head_width(source.shapes):
        draft.projection, draft.projection_dim, draft.last_layers = width, width, 1
        return [f"the projection head gives text units {width} features; it reads the last layer, as it was trained to"]
    notes = []
    if stated:
        notes.append(
            f"no projection head: config.json states one of {stated}, and the tensors of {HEAD.split('.')[1]} are not "
            f"in the file; text units keep the width of the encoder, {draft.projection_dim}"
        )
    if source.pooling == "mean":
        draft.last_layers = 1
        notes.append("a report is the mean of the last layer, as this sentence encoder was trained, but for its scale")
    elif source.pooling:
        notes.append(
            f"this sentence encoder was trained with the pooling {source.pooling!r}; here a report is a mean of pieces"
        )
    return notes


def _describe_text_encoder(draft: Draft, stated: dict[str, Json]) -> None:
    """Sets the text encoder that no source holds from the config.json beside the tokenizer, if that is a BERT's."""
    if stated.get("model_type") in architecture.BERT_TYPES:
        draft.fit_text_encoder({key: stated[key] for key in BertSettings.__dataclass_fields__ if key in stated})


def combined(found: Sequence[Source], model: ModelSettings) -> dict[str, np.ndarray]:
    """The arrays of the sources that the model uses, by published name: views of the files, or float32 copies.

    Raises:
        UserError: a tensor has another shape than in the model, or a source holds a tower only in part.
    """
    wanted = {row.name: row.shape for row in torch_names.table(model)}
    state: dict[str, np.ndarray] = {}
    for source in found:
        fitting = {name: tensor for name, tensor in source.tensors.items() if name in wanted}
        towers = [tower for tower in (*TOWERS, HEAD) if any(name.startswith(tower) for name in source.tensors)]
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
    if fault := fault_of(array):
        raise UserError(f"{source.file}: {name} {fault}; get the file again, or save the weights of an earlier step")
    if array.dtype in (np.float32, np.float64):
        return array
    return array.astype(np.float32)


def fresh(settings: ModelSettings, names: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Random values of the parameters `names`, by published name. Training with this seed starts from the same ones."""
    if not names:
        return {}
    chosen_names = set(names)
    rows = [row for row in torch_names.table(settings) if row.name in chosen_names]
    model = build(settings)

    def chosen(key: jax.Array) -> dict[str, jax.Array]:
        variables = traverse_util.flatten_dict(initial_variables(model, key))
        return {row.name: variables[row.path] for row in rows}

    # jit removes the network and all other parameters. Optimising the code of random draws takes longer than running it
    # unoptimised, unless there are many.
    quick = jax.default_backend() == "cpu" and sum(math.prod(row.shape) for row in rows) < _MANY
    options = {"xla_backend_optimization_level": 0} if quick else None
    leaves = jax.device_get(jax.jit(chosen, compiler_options=options)(jax.random.key(seed)))
    return {row.name: np.ascontiguousarray(row.to_torch(leaves[row.name])) for row in rows}


def found_backbone(found: Sequence[Source]) -> FoundBackbone | None:
    """The backbone among the sources; None if there is none. Raises UserError if it is unknown."""
    for source in found:
        if source.holds(IMAGE):
            with _naming(source):
                config = folder_config(source.folder) if source.kind == IMAGE else {}
                return architecture.image_backbone(source.shapes, config)
    return None


def found_scale(found: Sequence[Source], backbone: FoundBackbone) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and deviation of pixels that the image encoder among the sources expects.

    Its preprocessor_config.json states them. Without one they are the published ones, or those of torchxrayvision,
    whose networks are the ones with a single input channel.
    """
    if processor := found_processor(found):
        return processor.mean, processor.std
    return (0.5,), (XRAYVISION_STD if backbone.options.get("channels") == 1 else 0.5,)


def found_processor(found: Sequence[Source]) -> Processor | None:
    """How the image encoder among the sources reads images, from the folder of its weights; None where none says so."""
    folders = [source.folder for source in found if source.kind == IMAGE]
    return read_processor(folders[0]) if folders else None


def found_bert(found: Sequence[Source], tokenizer: AnyPath | None = None) -> FoundBert | None:
    """The settings of the text encoder among the sources; None if there is none.

    Its config.json lies beside its weights or beside the tokenizer. The latter is used only if its hidden size agrees.

    Raises:
        UserError: the text encoder is incomplete or not a BERT.
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
    """A context in which errors name the file of the source."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source.file}: {error}") from None


def check_destination(folder: Path) -> None:
    """Refuses a destination that exists and is not a model folder: where an argument is missing, it may be a source.

    Raises:
        UsageError: `folder` is a file, or a folder with other content.
    """
    if (folder / WRITING).is_file():  # an import into a bucket was killed
        return
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and "format_version" not in folder_config(folder)
    ):
        raise UsageError(f"{folder}: exists and is not a model folder; the last argument is the model folder to write")


def _tokenizer_folder(given: AnyPath) -> Path:
    """The folder of the tokenizer that the user named, which may be in the cache of the hub."""
    name = os.fspath(given)
    if not os.path.exists(name) and looks_like_hub_name(name):
        return find_on_hub(name, ("vocab.txt", "tokenizer.json"))
    return user_path(name, "--tokenizer")


def _tokenizer(found: Sequence[Source], draft: Draft, given: Path | None) -> Tokenizer:
    """The given tokenizer, or that of a source folder. Sets the draft's vocabulary size where no source states it."""
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
