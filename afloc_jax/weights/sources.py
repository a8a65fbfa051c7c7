"""Foreign weights: the file, its kind, and its tensors under the published names.

The kind of a file follows from the names of its tensors, never from the name of the file. Tensors are renamed to the
published names (`afloc_jax.weights.torch_names`): those of an image backbone to `img_encoder.model.*`, those of a text
encoder to `text_encoder.model.*`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from afloc_jax.errors import UserError
from afloc_jax.files import AnyPath, Path, read_json, user_path
from afloc_jax.settings import Json
from afloc_jax.weights.config import LARGEST_CONFIG
from afloc_jax.weights.hub import find_on_hub, looks_like_hub_name
from afloc_jax.weights.pickles import Stub, Value
from afloc_jax.weights.sentence_encoders import sentence_encoder
from afloc_jax.weights.tensors import Tensor
from afloc_jax.weights.torch_files import read_file

AFLOC, GLORIA, IMAGE, TEXT = "AFLoc checkpoint", "GLoRIA checkpoint", "image backbone", "text encoder"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # in a Hugging Face folder; the first that exists is read

TOWERS = ("img_encoder.model.", "text_encoder.model.")  # prefixes of backbone and BERT, without the projections
HEAD = "text_encoder.cls_projection_head."  # that of the projection head of CXR-BERT

_EITHER = re.compile(r"(.*?)((?:img|text)_encoder\..+)")
# Counters and constants, which the model does not need.
_NOTHING = re.compile(r"(.*\.)?(num_batches_tracked|position_ids|token_type_ids)")
_OLD_NORM = re.compile(r"(.*LayerNorm)\.(gamma|beta)")
_OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
# The names in a checkpoint of both towers that the model uses.
_KNOWN = re.compile(
    r"img_encoder\.(model\.(?!fc\.|classifier\.)|(local2?|global)_embedder\.|(local2?|global)_norm\.)"
    r"|text_encoder\.(model|cls_projection_head)\."
)
_BACKBONE = re.compile(r"(conv1|bn1|layer\d+|features)\.")
_BERT = re.compile(r"(embeddings|encoder|pooler)\.")
_HEAD = re.compile(r"cls_projection_head\.((?:dense_to_hidden|LayerNorm|dense_to_output)\.(?:weight|bias))")
# The pooler of a ViT and the mask token of DINOv2 are not used.
_VISION_TRANSFORMER = re.compile(
    r"(embeddings\.(cls_token|position_embeddings|register_tokens|patch_embeddings\.)|encoder\.layer\.|layernorm\.)"
)
# Names of transformers from version 5 on -> those in files on the hub, which it also writes. The first three are ViT's.
_RECENT = (
    (re.compile(r"layers\.(\d+)\.mlp\.fc1\."), r"encoder.layer.\1.intermediate.dense."),
    (re.compile(r"layers\.(\d+)\.mlp\.fc2\."), r"encoder.layer.\1.output.dense."),
    (re.compile(r"^layers\.(\d+)\."), r"encoder.layer.\1."),
    (re.compile(r"\.attention\.q_proj\."), ".attention.attention.query."),
    (re.compile(r"\.attention\.k_proj\."), ".attention.attention.key."),
    (re.compile(r"\.attention\.v_proj\."), ".attention.attention.value."),
    (re.compile(r"\.attention\.o_proj\."), ".attention.output.dense."),
)


@dataclass(frozen=True)
class Source:
    """The tensors of one file that a model can use.

    Attributes:
        file: the weights file.
        kind: AFLOC, GLORIA, IMAGE or TEXT.
        tensors: tensors by published name; their values are not read yet.
        settings: the config inside the file, unparsed (see `architecture.lookup`); None if there is none.
        left_out: names in the file that the model does not use.
        folder: the folder of the source, which may hold a tokenizer; None if the source is a file.
        title: the name for messages: that on the hub, or that of the folder or file without its path.
        pooling: how a sentence encoder was trained to pool its pieces, see `sentence_encoders`; empty if not known.
    """

    file: Path
    kind: str
    tensors: Mapping[str, Tensor]
    settings: Value = None
    left_out: tuple[str, ...] = ()
    folder: Path | None = None
    title: str = ""
    pooling: str = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors by published name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def holds(self, tower: str) -> bool:
        """Whether the file holds the backbone (IMAGE) or the BERT (TEXT)."""
        prefix = TOWERS[(IMAGE, TEXT).index(tower)]
        return any(name.startswith(prefix) for name in self.tensors)


def read_source(source: AnyPath) -> Source:
    """Opens a source and finds its kind. Only names and shapes are read.

    Args:
        source: a weights file, a Hugging Face folder (weights, config.json, tokenizer), or a name on the Hugging Face
            hub.

    Raises:
        UserError: the source does not exist, cannot be read, or holds nothing for this model.
    """
    name, title = os.fspath(source), ""
    if not os.path.exists(name) and looks_like_hub_name(name):
        path, title = find_on_hub(name, WEIGHT_FILES), name
    else:
        path = user_path(name)
    folder, pooling = sentence_encoder(path) if path.is_dir() else (None, "")
    file = _weights_of(folder) if folder else path
    if not file.is_file():
        raise UserError(f"{source}: no such file or folder; give a checkpoint, a weights file or a Hugging Face folder")
    contents = read_file(file)
    state = _state_dict(contents, file)
    settings = contents.get("hyper_parameters") if isinstance(contents, dict) and state is not contents else None
    kind, tensors, left_out = _recognise(file, state)
    title = title or (path.resolve().name if folder else file.name)
    return Source(file, kind, tensors, settings, tuple(left_out), folder, title, pooling)


def folder_config(folder: Path | None) -> dict[str, Json]:
    """The content of config.json of a Hugging Face folder; empty if there is none."""
    path = folder / "config.json" if folder else None
    if path is None or not path.is_file():
        return {}
    config = read_json(path, "copy the folder again", LARGEST_CONFIG)
    return config if isinstance(config, dict) else {}


def _weights_of(folder: Path) -> Path:
    if "format_version" in folder_config(folder):
        raise UserError(f"{folder} is a model folder already; use it as it is")
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: no weights there; expected {' or '.join(WEIGHT_FILES)}, as Hugging Face folders have")


def _state_dict(contents: Value, file: Path) -> dict[str, Tensor]:
    """The parameters by name: the content of the file, or its entry for them ("state_dict", for example)."""
    if isinstance(contents, Stub):
        raise UserError(
            f"{file}: a whole pickled object ({contents.path}), not its weights; save its state_dict() and import that"
        )
    places: list[Value] = [contents]
    if isinstance(contents, dict):
        places = [contents.get(key) for key in ("state_dict", "model_state_dict", "model")] + places
    for place in places:
        if isinstance(place, dict):
            tensors = {key: value for key, value in place.items() if isinstance(key, str) and isinstance(value, Tensor)}
            if tensors:
                return tensors
    raise UserError(f"{file}: no weights in it; give a file that holds a state_dict")


def _recognise(file: Path, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor], list[str]]:
    """The kind of a file, its tensors by published name, and the names that the model does not use."""
    if any(match and _KNOWN.match(match[2]) for match in map(_EITHER.match, state)):
        kind, tensors, left_out = _whole(file, state)
    else:
        networks = _prefixes(state, ("conv1.weight", "layer1.0.conv1.weight"), ("features.conv0.weight",))
        patches = _prefixes(state, ("embeddings.patch_embeddings.projection.weight", "embeddings.cls_token"))
        images = networks + patches
        texts = _prefixes(state, ("embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"))
        if len(images) + len(texts) != 1:
            found = "nothing that this model has a place for" if not images + texts else "several encoders"
            raise UserError(
                f"{file}: holds {found} (its first name is {min(state)!r}); expected a checkpoint of AFLoc or GLoRIA, "
                "a ResNet or DenseNet with torchvision's names, or a BERT, ViT or DINOv2 with those of Hugging Face"
            )
        kind, known = (IMAGE, _VISION_TRANSFORMER if patches else _BACKBONE) if images else (TEXT, _BERT)
        ours = "img_encoder.model." if images else "text_encoder.model."
        prefix = (images + texts)[0]
        tensors, left_out = _renamed(state, prefix, known, ours)
        if kind == TEXT:
            left_out = _with_head(state, prefix.removesuffix("bert."), tensors, left_out)
    return kind, tensors, left_out


def _whole(file: Path, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor], list[str]]:
    """Kind, tensors and unused names of a checkpoint with both towers. Its names may have any common prefix."""
    matches = {name: _EITHER.match(name) for name in state}
    prefixes = {match[1] for match in matches.values() if match and _KNOWN.match(match[2])}
    if len(prefixes) > 1:
        raise UserError(f"{file}: holds several models ({', '.join(sorted(prefixes))}); save one of them alone")
    prefix = prefixes.pop()
    tensors, left_out = _renamed(state, prefix, _KNOWN)
    shallow = any(name.startswith("img_encoder.local2_embedder.") for name in tensors)
    gloria = prefix.endswith("gloria.") or not (shallow or prefix.endswith("afloc."))
    return (GLORIA if gloria else AFLOC), tensors, [name.removeprefix(prefix) for name in left_out]


def _renamed(
    state: Mapping[str, Tensor], prefix: str, known: re.Pattern[str], ours: str = ""
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors whose names match `known` behind a prefix, by published name, and the names of the others."""
    tensors, left_out = {}, []
    for name, tensor in state.items():
        inner = name.removeprefix(prefix)
        if _NOTHING.fullmatch(name):
            continue
        renamed = modern_name(inner)
        if name.startswith(prefix) and known.match(renamed):
            tensors[ours + renamed] = tensor
        else:
            left_out.append(name)
    return tensors, left_out


def _with_head(state: Mapping[str, Tensor], prefix: str, tensors: dict[str, Tensor], left_out: list[str]) -> list[str]:
    """Adds the projection head of CXR-BERT, which lies beside its encoder, and returns the names that stay unused."""
    unused = []
    for name in left_out:
        if name.startswith(prefix) and (match := _HEAD.fullmatch(modern_name(name.removeprefix(prefix)))):
            tensors[HEAD + match[1]] = state[name]
        else:
            unused.append(name)
    return unused


def modern_name(name: str) -> str:
    """The name as published: old files have gamma and beta in layer norms, and dots in torchvision's DenseNets.

    Recent state dicts of vision transformers have other names than files on the hub.
    """
    if match := _OLD_NORM.fullmatch(name):
        return f"{match[1]}.{'weight' if match[2] == 'gamma' else 'bias'}"
    if match := _OLD_DENSENET.fullmatch(name):
        return match[1] + match[2]
    for recent, published in _RECENT:
        name = recent.sub(published, name)
    return name


def _prefixes(names: Iterable[str], *signs: tuple[str, ...]) -> list[str]:
    """The prefixes under which `names` has all names of one of the `signs`."""
    names = set(names)
    found = []
    for first, *others in signs:
        for name in names:
            prefix = name.removesuffix(first)
            starts = name.endswith(first) and (not prefix or prefix.endswith("."))
            if starts and all(prefix + other in names for other in others):
                found.append(prefix)
    return found
