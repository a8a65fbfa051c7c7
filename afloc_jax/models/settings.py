"""From `config.model` to validated settings: every wrong key or value is named before any array exists."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from afloc_jax.errors import UsageError
from afloc_jax.models.bert import ACTIVATIONS, BertSettings
from afloc_jax.models.densenet import DENSENETS, DenseNetSettings
from afloc_jax.models.resnet import RESNETS, ResNetSettings

BACKBONES: dict[str, ResNetSettings | DenseNetSettings] = {**RESNETS, **DENSENETS}

# Fields of Hugging Face configs that change nothing here, or that only one value of keeps the computation.
_BERT_IGNORED = frozenset(
    {
        "_name_or_path",
        "add_cross_attention",
        "architectures",
        "attn_implementation",
        "bad_words_ids",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "directionality",
        "do_lower_case",
        "dtype",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "pad_token_id",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "position_embedding_type",
        "prefix",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tie_word_embeddings",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_cache",
    }
)
_BERT_ONLY = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


@dataclass(frozen=True)
class ImageSettings:
    backbone: str = "resnet50"
    structure: ResNetSettings | DenseNetSettings = RESNETS["resnet50"]
    input_size: int = 299
    center: bool = False
    freeze: bool = False


@dataclass(frozen=True)
class TextSettings:
    bert: BertSettings = dataclasses.field(default_factory=BertSettings)
    last_layers: int = 4
    merge_layers: str = "sum"
    merge_pieces: str = "sum"
    context: str = "report"
    freeze: bool = False


@dataclass(frozen=True)
class ModelSettings:
    """Everything that shapes the two towers; hashable, so that it can be a static attribute of a module."""

    projection_dim: int = 768
    normalize: bool = False
    image: ImageSettings = dataclasses.field(default_factory=ImageSettings)
    text: TextSettings = dataclasses.field(default_factory=TextSettings)


def parse(model_config: Mapping[str, Any] | ModelSettings) -> ModelSettings:
    """Settings from `config.model` (a ConfigDict or the same as nested dicts); missing keys take published values.

    Settings that are already parsed come back as they are.

    Raises:
        UsageError: an unknown key, a value of the wrong type or out of range, or sizes that do not fit together.
    """
    if isinstance(model_config, ModelSettings):
        return model_config
    config = _plain(model_config)
    _known_keys("model", config, ("projection_dim", "normalize", "image", "text"))
    settings = ModelSettings(
        projection_dim=_integer(config, "model", "projection_dim", 768),
        normalize=_boolean(config, "model", "normalize", False),
        image=_image(config.get("image", {})),
        text=_text(config.get("text", {})),
    )
    if settings.projection_dim != settings.text.bert.hidden_size:
        raise UsageError(
            f"model.projection_dim is {settings.projection_dim} but model.text.bert.hidden_size is "
            f"{settings.text.bert.hidden_size}: text units are not projected, so both must be the same"
        )
    return settings


def _image(config: Mapping[str, Any]) -> ImageSettings:
    where = "model.image"
    _known_keys(where, config, ("backbone", "input_size", "options", "statistics_group", "center", "freeze"))
    backbone = config.get("backbone", "resnet50")
    if backbone not in BACKBONES:
        raise UsageError(f"{where}.backbone is {backbone!r}: choose one of {', '.join(BACKBONES)}")
    options = dict(config.get("options", {}))
    structure = BACKBONES[backbone]
    if backbone == "resnet_small":
        allowed = tuple(field.name for field in dataclasses.fields(ResNetSettings) if field.name != "statistics_group")
    else:
        # The published networks have fixed structures; only how they start may vary.
        allowed = ("zero_init_last",) if backbone in RESNETS else ()
    _known_keys(f"{where}.options", options, allowed, f" for {backbone}")
    structure = dataclasses.replace(structure, **_checked_options(options, structure, f"{where}.options"))
    if isinstance(structure, ResNetSettings):
        _check_resnet(structure, f"{where}.options")
    group = config.get("statistics_group", 0)
    if type(group) is not int or group < 0:
        raise UsageError(f"{where}.statistics_group is {group!r}: give a number of images, or 0 for the whole batch")
    structure = dataclasses.replace(structure, statistics_group=group)
    return ImageSettings(
        backbone=backbone,
        structure=structure,
        input_size=_integer(config, where, "input_size", 299),
        center=_boolean(config, where, "center", False),
        freeze=_boolean(config, where, "freeze", False),
    )


def _checked_options(options: dict[str, Any], defaults: Any, where: str) -> dict[str, Any]:
    """The options with the types of their defaults; sequences become tuples of positive integers."""
    checked: dict[str, Any] = {}
    for key, value in options.items():
        default = getattr(defaults, key)
        if isinstance(default, bool):
            checked[key] = _boolean(options, where, key, default)
        elif isinstance(default, int):
            checked[key] = _integer(options, where, key, default)
        elif isinstance(default, float):
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise UsageError(f"{where}.{key} is {value!r}: give a number from 0 to below 1")
            checked[key] = float(value)
        else:
            if not isinstance(value, list | tuple) or not value or any(type(v) is not int or v < 1 for v in value):
                raise UsageError(f"{where}.{key} is {value!r}: give a tuple of positive integers, one per stage")
            checked[key] = tuple(value)
    return checked


def _check_resnet(structure: ResNetSettings, where: str) -> None:
    stages = len(structure.blocks)
    for key in ("widths", "strides"):
        value = getattr(structure, key)
        if len(value) != stages:
            raise UsageError(f"{where}.{key} is {value}: blocks {structure.blocks} ask for {stages} values")
    for key in ("shallow_stage", "deep_stage"):
        if getattr(structure, key) > stages:
            raise UsageError(f"{where}.{key} is {getattr(structure, key)}: stages are counted from 1 to {stages}")
    if structure.top_down and structure.deep_stage == stages:
        raise UsageError(f"{where}.top_down is True: needs a stage after deep_stage {structure.deep_stage}")
    if structure.top_down and any(stride > 2 for stride in structure.strides[structure.deep_stage :]):
        raise UsageError(f"{where}.top_down is True: needs strides of 1 or 2 after deep_stage {structure.deep_stage}")
    if structure.stem_kernel % 2 == 0:
        raise UsageError(f"{where}.stem_kernel is {structure.stem_kernel}: give an odd size")
    if structure.stem_pool and structure.stem_stride % 2:
        raise UsageError(f"{where}.stem_stride is {structure.stem_stride}: with stem_pool it must be even")


def _text(config: Mapping[str, Any]) -> TextSettings:
    where = "model.text"
    choices = ("last_layers", "merge_layers", "merge_pieces", "context")
    _known_keys(where, config, ("bert", "tokenizer", *choices, "freeze"))
    bert = _bert(config.get("bert", {}))
    last_layers = _integer(config, where, "last_layers", 4)
    if last_layers > bert.num_hidden_layers + 1:
        raise UsageError(
            f"{where}.last_layers is {last_layers}: the text encoder has {bert.num_hidden_layers} layers, so "
            f"{bert.num_hidden_layers + 1} hidden states with the embeddings"
        )
    return TextSettings(
        bert=bert,
        last_layers=last_layers,
        merge_layers=_choice(config, where, "merge_layers", ("sum", "mean")),
        merge_pieces=_choice(config, where, "merge_pieces", ("sum", "mean")),
        context=_choice(config, where, "context", ("report", "sentence")),
        freeze=_boolean(config, where, "freeze", False),
    )


def _bert(config: Mapping[str, Any]) -> BertSettings:
    where = "model.text.bert"
    names = tuple(field.name for field in dataclasses.fields(BertSettings))
    _known_keys(where, {key: value for key, value in config.items() if key not in _BERT_IGNORED}, names)
    for key, only in _BERT_ONLY.items():
        if config.get(key, only) != only:
            raise UsageError(f"{where}.{key} is {config[key]!r}: only {only!r} is supported")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(BertSettings):
        if field.type is int or field.type == "int":
            values[field.name] = _integer(config, where, field.name, field.default)
        elif field.name == "hidden_act":
            values[field.name] = _choice(config, where, field.name, tuple(ACTIVATIONS))
        else:
            upper = 1.0 if field.name.endswith("_prob") else float("inf")
            value = config.get(field.name, field.default)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < upper:
                raise UsageError(f"{where}.{field.name} is {value!r}: give a number from 0 to below {upper}")
            values[field.name] = float(value)
    if values["hidden_size"] % values["num_attention_heads"]:
        raise UsageError(
            f"{where}.hidden_size is {values['hidden_size']}: it must be a multiple of num_attention_heads, "
            f"{values['num_attention_heads']}"
        )
    return BertSettings(**values)


def _plain(config: Any) -> Any:
    """ConfigDicts as plain dicts (a ConfigDict has no defaults to ask for, and turns lists of its own)."""
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        raise UsageError(f"the model's config is a {type(config).__name__}: give config.model, a mapping")
    return {key: _plain(value) if hasattr(value, "items") else value for key, value in config.items()}


def _known_keys(where: str, config: Any, allowed: tuple[str, ...], whose: str = "") -> None:
    if not isinstance(config, Mapping):
        raise UsageError(f"{where} is {config!r}: give a mapping with keys {', '.join(allowed)}")
    for key in config:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, 1)
            hint = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(allowed) or 'none'}"
            raise UsageError(f"{where}.{key} is not a setting{whose}: {hint}")


def _integer(config: Mapping[str, Any], where: str, key: str, default: Any) -> int:
    value = config.get(key, default)
    if type(value) is not int or value < 1:
        raise UsageError(f"{where}.{key} is {value!r}: give a positive integer")
    return value


def _boolean(config: Mapping[str, Any], where: str, key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"{where}.{key} is {value!r}: give True or False")
    return value


def _choice(config: Mapping[str, Any], where: str, key: str, choices: tuple[str, ...]) -> str:
    value = config.get(key, choices[0])
    if value not in choices:
        raise UsageError(f"{where}.{key} is {value!r}: choose one of {', '.join(choices)}")
    return value
