"""The architecture of foreign weights, from the shapes of their tensors and the config in their file.

Shapes give the backbone, the widths, the numbers of layers and the vocabulary size. The config adds the other settings:
how layers and pieces are merged, what was frozen, token slots. The number of attention heads is in neither. It comes
from a BERT's config.json; without one, the usual number for the width is assumed, and the report says so.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from afloc_jax.errors import UserError
from afloc_jax.models.backbone import Shapes, count_parts
from afloc_jax.models.bert import ONE_VALUE, BertSettings
from afloc_jax.models.settings import BACKBONES, Merge
from afloc_jax.settings import Json
from afloc_jax.weights.draft import Draft
from afloc_jax.weights.pickles import Stub, Value
from afloc_jax.weights.sources import HEAD

_IMAGE, _TEXT = "img_encoder.model.", "text_encoder.model."
_HEADS = {384: 12, 512: 8, 768: 12, 1024: 16}  # hidden size -> attention heads of the published BERTs
_MERGES: dict[str, Merge] = {"sum": "sum", "mean": "mean"}
BERT_TYPES = ("bert", "cxr-bert")  # model types that compute as our encoder does


class FoundBackbone(NamedTuple):
    """The backbone among the sources: its name in `settings.BACKBONES`, and options that differ from its defaults."""

    name: str
    options: dict[str, Json]


def image_backbone(shapes: Shapes, config: Mapping[str, Json] = MappingProxyType({})) -> FoundBackbone:
    """The backbone that has parameters of these shapes.

    Args:
        shapes: shapes by published name; names outside the backbone are ignored.
        config: config.json of a Hugging Face folder; empty when there is none.

    Raises:
        UserError: no known backbone has these parameters, or `config` is not that of the tensors.
    """
    inner = {name.removeprefix(_IMAGE): shape for name, shape in shapes.items() if name.startswith(_IMAGE)}
    for family in dict.fromkeys(backbone.family for backbone in BACKBONES.values()):
        if seen := family.fingerprint(inner):
            names = [name for name in BACKBONES if BACKBONES[name].family is family]
            fitting = [name for name in names if BACKBONES[name].structure.fingerprint() == seen]
            if fitting:
                options, usual = family.options(inner, config), BACKBONES[fitting[0]].structure.plain()
                return FoundBackbone(fitting[0], {key: one for key, one in options.items() if one != usual[key]})
            raise UserError(f"a {family.name} of {seen}: known are {', '.join(names)}")
    raise UserError(f"an image encoder of an unknown family: known are {', '.join(BACKBONES)}")


class FoundBert(NamedTuple):
    """The settings of a text encoder among the sources.

    Attributes:
        fields: the fields of `config.model.text.bert`.
        assumed: a sentence on what had to be assumed; empty if nothing was.
    """

    fields: dict[str, Json]
    assumed: str


def bert_fields(shapes: Shapes, config: Mapping[str, Json]) -> FoundBert:
    """The settings of the text encoder that has parameters of these shapes.

    Args:
        shapes: shapes by published name; names outside the text encoder are ignored.
        config: config.json of a BERT of these sizes; empty when there is none.

    Raises:
        UserError: tensors that sizes are read from are missing, or `config` is not that of a BERT of these sizes.
    """
    inner = {name.removeprefix(_TEXT): shape for name, shape in shapes.items() if name.startswith(_TEXT)}
    names = {
        "vocab_size": ("embeddings.word_embeddings.weight", 0),
        "hidden_size": ("embeddings.word_embeddings.weight", 1),
        "max_position_embeddings": ("embeddings.position_embeddings.weight", 0),
        "type_vocab_size": ("embeddings.token_type_embeddings.weight", 0),
        "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0),
    }
    fields: dict[str, Json] = {}
    for key, (name, axis) in names.items():
        if len(inner.get(name, ())) != 2:
            raise UserError(f"the text encoder lacks {name}, or it is not a matrix: it is not a whole BERT")
        fields[key] = inner[name][axis]
    fields["num_hidden_layers"] = count_parts(inner, r"encoder\.layer\.(\d+)\.", first=0)

    if config.get("model_type", "bert") not in BERT_TYPES:
        raise UserError(f"its config.json is that of a {config['model_type']!r}; only BERT is supported")
    for key, value in fields.items():
        # The vocabulary size may differ: embedding tables are padded or cut without changing config.json.
        if key != "vocab_size" and config.get(key, value) != value:
            raise UserError(
                f"its config.json says {key} {config[key]}, its tensors {value}: they do not belong together"
            )
    stated = {*BertSettings.__dataclass_fields__, *ONE_VALUE} - fields.keys()
    fields |= {key: config[key] for key in sorted(stated & config.keys())}
    if "num_attention_heads" in fields:
        return FoundBert(fields, "")
    width = inner["embeddings.word_embeddings.weight"][1]
    fields["num_attention_heads"] = heads = _HEADS.get(width, max(1, width // 64))
    return FoundBert(
        fields,
        f"{heads} attention head{'s' * (heads > 1)}, as usual for a hidden size of {width} (no config.json states it)",
    )


def head_width(shapes: Shapes) -> int:
    """The width of the projection head of the text encoder that has parameters of these shapes; 0 without a head."""
    return next((shape[0] for name, shape in shapes.items() if name.startswith(HEAD) and shape), 0)


def apply_settings(draft: Draft, settings: Value, *, merges_pieces: bool) -> list[str]:
    """Applies the config inside a checkpoint to a draft. Keys that it lacks keep their published value.

    Args:
        draft: the config to change; its backbone and text encoder are set from shapes already.
        settings: the config as it is in the file, see `lookup`.
        merges_pieces: whether `aggregate_method` also says how word pieces are merged (AFLoc), or not (GLoRIA: a sum).

    Returns:
        Notes for the user: where the file contradicts itself, or has settings that this model does not support.
    """
    notes = []
    title = lookup(settings, "experiment_name")
    if isinstance(title, str) and re.fullmatch(r"[\w.-]+", title):
        draft.name = title
    named = lookup(settings, "model.vision.model_name")
    if isinstance(named, str) and _our_backbone(named) != draft.backbone:
        notes.append(f"its config says {named}, its tensors are those of {draft.backbone}: the tensors count")
    if layers := _count(settings, "model.text.last_n_layers"):
        draft.last_layers = min(layers, draft.bert_count("num_hidden_layers", layers) + 1)
        if layers == 1:
            notes.append("its config takes BERT's pooled output; this model takes the last layer's hidden states")
    merge = lookup(settings, "model.text.aggregate_method")
    if isinstance(merge, str) and merge in _MERGES:
        draft.merge_layers = _MERGES[merge]
        draft.merge_pieces = _MERGES[merge] if merges_pieces else "sum"
    if lookup(settings, "model.text.agg_tokens") is False:
        notes.append("its config does not merge word pieces into words; this model does")
    norms = {norm for place in ("", "text.") if isinstance(norm := lookup(settings, f"model.{place}norm"), bool)}
    if len(norms) == 1:
        draft.normalize = norms.pop()
    elif norms:
        notes.append(
            "its config normalises one side only, this model none: heat maps keep their shape, not their scale"
        )
    draft.freeze_image = lookup(settings, "model.vision.freeze_cnn") is True
    draft.freeze_text = lookup(settings, "model.text.freeze_bert") is True
    if (words := _count(settings, "data.text.word_num")) >= 3:
        draft.max_tokens = min(words, draft.bert_count("max_position_embeddings", words))
    return notes + _image_settings(draft, settings)


def _image_settings(draft: Draft, settings: Value) -> list[str]:
    notes = []
    size, crop = _count(settings, "data.image.imsize"), _count(settings, "transforms.random_crop.crop_size")
    draft.image_size = crop or size or draft.image_size
    if crop and size and crop != size:
        notes.append(f"it was trained on crops of {crop} pixels from images of {size}; here the whole image has {crop}")
    if lookup(settings, "transforms.norm") == "imagenet":
        notes.append("it was trained on pixels scaled by ImageNet's statistics; here they are scaled to [-1, 1]")
    return notes


def _our_backbone(name: str) -> str:
    """Our name of a backbone: resnet_50 -> resnet50. AFLoc and GLoRIA call ResNeXt-101 "resnext_100"."""
    return name.replace("_", "").replace("resnext100", "resnext101")


def _count(settings: Value, path: str) -> int:
    """A positive number of the config inside a checkpoint; 0 where there is none."""
    value = lookup(settings, path)
    return value if type(value) is int and value > 0 else 0


def lookup(settings: Value, path: str) -> Value:
    """A value of the config inside a checkpoint, by dotted path; None where there is none.

    The config may consist of plain dicts, or of stubs of OmegaConf's, argparse's or Lightning's objects. A reference
    to another value ("${...}") counts as None.
    """
    node = settings
    for key in path.split("."):
        content = _content(node)
        if not isinstance(content, dict) or key not in content:
            return None
        node = content[key]
    value = _content(node)
    return None if isinstance(value, str) and "${" in value else value


def _content(node: Value) -> Value:
    """The content of a node of a config: a dict for a section, else its value."""
    if not isinstance(node, Stub):
        return node
    state = node.__dict__["state"]
    if isinstance(state, tuple) and state and isinstance(state[0], dict):
        state = state[0]
    if isinstance(state, dict):
        for key in ("_content", "_val"):  # OmegaConf's sections and values
            if key in state:
                return state[key]
        if state:
            return state
    entries = node.__dict__["entries"]
    if all(isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str) for entry in entries):
        return dict(entries)
    return None
