"""The whole config checked before any work, and the one config a working directory belongs to.

`config_flags` catches wrong names and types on the command line; it lets `lr = -1` through, and a config file may set
anything. Here every value is checked against `configs/afloc.py` (names and types) and a table of rules (ranges and
names); every error says key, value and what is allowed.
"""

import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from afloc_jax.errors import UsageError
from afloc_jax.files import write_whole
from afloc_jax.levels import LEVELS
from configs.afloc import get_config as published_config

# Sections whose keys belong to someone else (a builder, a backbone, Hugging Face) and are checked there.
FREE_SECTIONS = ("data.builder", "model.image.options", "model.text.bert", "evaluation.datasets")

# What a rerun in the same working directory may change: where files lie, what is logged and kept, and what is
# evaluated afterwards, and over how many devices the state is split. Nothing here changes a parameter of the trained
# model (the last by rounding alone, as another number of devices does).
MAY_CHANGE = (
    "data.directory",
    "data.raw",
    "data.workers",
    "model.text.tokenizer",  # the working directory keeps its own copy from the first run on
    "training.log_every",
    "training.keep_best",
    "training.fsdp",
    "evaluation",
)

CONFIG = "config.json"  # in a working directory: the config that it belongs to

Rule = tuple[Callable[[Any], bool], str]
_POSITIVE: Rule = (lambda value: value > 0, "greater than 0")
_NOT_NEGATIVE: Rule = (lambda value: value >= 0, "0 or greater")
_BELOW_ONE: Rule = (lambda value: 0 <= value < 1, "at least 0 and below 1")
_FACTOR: Rule = (lambda value: 0 < value <= 1, "greater than 0 and at most 1")
_NOT_EMPTY: Rule = (lambda value: value != "", "not empty")


def _one_of(*names: str) -> Rule:
    return (lambda value: value in names, "one of " + ", ".join(names))


RULES: dict[str, Rule] = {
    "name": _NOT_EMPTY,
    "seed": _NOT_NEGATIVE,
    "data.dataset": _NOT_EMPTY,
    "data.directory": _NOT_EMPTY,
    "data.train_split": _NOT_EMPTY,
    "data.validation_split": _NOT_EMPTY,
    "data.sentences": _one_of("subset", "impression", "all"),
    "data.max_tokens": (lambda value: value >= 3, "3 or greater ([CLS], a word, [SEP])"),
    "data.workers": _NOT_NEGATIVE,
    "model.projection_dim": _POSITIVE,
    "model.image.input_size": (lambda value: value >= 32, "32 or greater (the encoder divides the side by 32)"),
    "model.image.statistics_group": _NOT_NEGATIVE,
    "model.text.last_layers": _POSITIVE,
    "model.text.merge_layers": _one_of("sum", "mean"),
    "model.text.merge_pieces": _one_of("sum", "mean"),
    "model.text.context": _one_of("report", "sentence"),
    **{f"loss.weights.{level}": _NOT_NEGATIVE for level in LEVELS},
    "loss.attention_temperature": _POSITIVE,
    "loss.pooling_temperature": _POSITIVE,
    "loss.contrast_temperature": _POSITIVE,
    "loss.region_pooling": _one_of("attention", "logsumexp"),
    "loss.region_sharpness": _POSITIVE,
    "loss.contrast_unit": _one_of("caption", "unit"),
    "loss.contrast_group": _NOT_NEGATIVE,
    "loss.implementation": _one_of("auto", "definition", "tiled", "ring"),
    "loss.kernel": _one_of("xla", "pallas"),
    "optimizer.name": _one_of("adam", "adamw", "sgd"),
    "optimizer.lr": _POSITIVE,
    "optimizer.b1": _BELOW_ONE,
    "optimizer.b2": _BELOW_ONE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.clip_norm": _NOT_NEGATIVE,
    "optimizer.schedule": _one_of("exponential", "cosine", "plateau", "constant"),
    "optimizer.decay": _FACTOR,
    "optimizer.warmup_steps": _NOT_NEGATIVE,
    "training.batch_size": (lambda value: value >= 2, "2 or greater (a contrast needs two pairs)"),
    "training.epochs": _NOT_NEGATIVE,
    "training.steps": _NOT_NEGATIVE,
    "training.precision": _one_of("float32", "bfloat16"),
    "training.micro_batch": _NOT_NEGATIVE,
    "training.remat": _one_of("none", "blocks", "full"),
    "training.fsdp": _POSITIVE,
    "training.log_every": _POSITIVE,
    "training.validate_every": _NOT_NEGATIVE,
    "training.keep_best": _POSITIVE,
    "training.checkpoint_every": _NOT_NEGATIVE,
    "training.early_stopping": _NOT_NEGATIVE,
    "localization.sigma": _NOT_NEGATIVE,
    "localization.cells": _one_of("tiles", "receptive_field"),
    "localization.prompt_level": _one_of("report", "sentence"),
    "localization.similarity": _one_of("dot", "presence"),
    "localization.presence_sharpness": _POSITIVE,
    "localization.presence_threshold": (lambda value: -1 < value < 1, "a cosine, between -1 and 1"),
    "localization.presence_growth": _NOT_NEGATIVE,
    "evaluation.bootstrap": _NOT_NEGATIVE,
}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping | ConfigDict):
        return {str(key): _plain(value[key]) for key in value}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def load_module(path: Path) -> Any:
    """A config or sweep file as a Python module; whatever it raises goes through."""
    specification = importlib.util.spec_from_file_location(f"afloc_{path.stem}", path)
    assert specification is not None and specification.loader is not None  # a path always has a loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """The config of a file such as configs/demo.py with some values replaced ("optimizer.lr": 1e-4).

    Raises:
        UsageError: no such file, a file that fails, or a key that it does not have.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; configs/afloc.py is one")
    try:
        config = load_module(path).get_config()
    except Exception as error:
        raise UsageError(f"{path}: {type(error).__name__}: {error}; it must define get_config()") from error
    for key, value in (overrides or {}).items():
        override(config, key, value)
    return config


def override(config: ConfigDict, key: str, value: Any) -> None:
    """Set a dotted key in place; `validate` says later what type and range it must have. Raises UsageError."""
    section, _, last = key.rpartition(".")
    target: Any = config
    for part in section.split(".") if section else ():
        target = target.get(part) if isinstance(target, ConfigDict) else None
    if not isinstance(target, ConfigDict) or (last not in target and not is_free(key)):
        raise UsageError(f"config.{key}: unknown key")
    with config.unlocked(), target.ignore_type():
        target[last] = value


def resolve(config: ConfigDict) -> dict[str, Any]:
    """The config as plain dicts, lists, strings and numbers, references resolved: what `config.json` holds."""
    return _plain(config)


def from_plain(plain: Mapping[str, Any]) -> ConfigDict:
    """The inverse of `resolve`: dicts, also those inside lists, become ConfigDicts."""

    def convert(value: Any) -> Any:
        if isinstance(value, Mapping):
            section = ConfigDict()
            for key, item in value.items():
                section[key] = convert(item)
            return section
        return tuple(convert(item) for item in value) if isinstance(value, list | tuple) else value

    return convert(plain)


def flatten(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value; an empty section yields nothing."""
    for key, value in plain.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _within(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(section + ".") for section in sections)


def is_free(key: str) -> bool:
    """Whether a dotted key lies in a section whose keys configs/afloc.py does not list."""
    return _within(key, FREE_SECTIONS)


def _check_type(key: str, value: Any, example: Any) -> None:
    if key == "init_from":  # one path or several
        paths = value if isinstance(value, list) else [value]
        if not all(isinstance(path, str) for path in paths) or (isinstance(value, list) and not all(value)):
            raise UsageError(f"config.init_from = {value!r}: must be a path or a tuple of paths")
        return
    if isinstance(example, bool) or isinstance(value, bool):
        right = isinstance(value, bool) and isinstance(example, bool)
    elif isinstance(example, float):
        right = isinstance(value, int | float)
    else:
        right = isinstance(value, type(example))
    if not right:
        raise UsageError(f"config.{key} = {value!r}: must be of type {type(example).__name__}, as in configs/afloc.py")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"config.{key} = {value!r}: must be a finite number")


def _check_names_and_types(given: Mapping[str, Any], schema: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in given.items():
        dotted = f"{prefix}{key}"
        if key not in schema:
            raise UsageError(f"config.{dotted}: unknown key; allowed here: {', '.join(sorted(schema))}")
        if isinstance(schema[key], Mapping) != isinstance(value, Mapping):
            kind = "a section" if isinstance(schema[key], Mapping) else "a single value"
            raise UsageError(f"config.{dotted} = {value!r}: must be {kind}, as in configs/afloc.py")
        if dotted in FREE_SECTIONS:
            continue
        if isinstance(value, Mapping):
            _check_names_and_types(value, schema[key], dotted + ".")
        elif not isinstance(schema[key], list):
            _check_type(dotted, value, schema[key])
    for key in schema:
        if key not in given:
            raise UsageError(f"config.{prefix}{key}: missing; start from configs/afloc.py and state only what differs")


def _check_with_devices(config: ConfigDict, device_count: int) -> None:
    from afloc_jax.training.mesh import check_fsdp

    batch_size = config.training.batch_size
    if batch_size % device_count:
        raise UsageError(
            f"config.training.batch_size = {batch_size}: must be a multiple of the number of devices, {device_count}"
        )
    check_fsdp(config.training.fsdp, device_count)


def _check_together(config: ConfigDict) -> None:
    batch_size, group = config.training.batch_size, config.loss.contrast_group
    if group and (group < 2 or batch_size % group):
        raise UsageError(
            f"config.loss.contrast_group = {group}: must be 0 (the whole batch) or at least 2 and a divisor of "
            f"config.training.batch_size = {batch_size}"
        )
    images = config.model.image.statistics_group
    if images and batch_size % images:
        raise UsageError(
            f"config.model.image.statistics_group = {images}: must be 0 (the whole batch) or a divisor of "
            f"config.training.batch_size = {batch_size}"
        )
    if config.loss.low_rank:
        wanted: dict[str, Any] = {"model.image.center": False, "model.normalize": False}
        wanted |= {"loss.contrast_unit": "caption"}
        for key, given in flatten(resolve(config)):
            if key in wanted and given != wanted[key]:
                raise UsageError(f"config.loss.low_rank = True: needs config.{key} = {wanted[key]!r}")
    if not any(config.loss.weights[level] > 0 for level in LEVELS):
        raise UsageError("config.loss.weights: all 0, nothing to learn from; set at least one level above 0")
    if config.training.steps == 0 and config.training.epochs == 0:
        raise UsageError("config.training.epochs = 0 and config.training.steps = 0: set one of them above 0")


def _model_before_start(config: ConfigDict) -> ConfigDict:
    """`config.model` as far as it is known before `init_from` is read, which may bring the fields of BERT."""
    model = config.model
    if not config.init_from or model.text.bert:
        return model
    model = model.copy_and_resolve_references()
    with model.unlocked():
        model.text.bert = ConfigDict({"hidden_size": model.projection_dim, "num_attention_heads": 1})
        model.text.bert.num_hidden_layers = max(model.text.last_layers, 1)
    return model


def _check_with_owners(config: ConfigDict) -> None:
    """What the free sections hold, checked by those who read them."""
    from afloc_jax.evaluation.tasks import EvaluationSettings
    from afloc_jax.losses import LossSettings
    from afloc_jax.models.settings import parse

    parse(_model_before_start(config))
    LossSettings.read(config.loss, prefix="config.")
    EvaluationSettings.read(config.evaluation, prefix="config.")


def validate(config: ConfigDict, device_count: int = 0) -> None:
    """Check every key and value before any work.

    Args:
        config: a config with the keys of `configs/afloc.py`.
        device_count: devices that share the batch; 0: not known yet.

    Raises:
        UsageError: naming the first wrong key, its value and what is allowed.
    """
    plain = resolve(config)
    _check_names_and_types(plain, resolve(published_config()))
    for key, value in flatten(plain):
        if key in RULES and not RULES[key][0](value):
            raise UsageError(f"config.{key} = {value!r}: must be {RULES[key][1]}")
    _check_together(config)
    if device_count:
        _check_with_devices(config, device_count)
    _check_with_owners(config)


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON; the file appears whole."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def differences(plain: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Dotted keys, leaving out those of MAY_CHANGE, whose values differ between two resolved configs."""
    ours, theirs = dict(flatten(plain)), dict(flatten(other))
    missing = object()
    keys = [key for key in sorted({*ours, *theirs}) if not _within(key, MAY_CHANGE)]
    return [key for key in keys if ours.get(key, missing) != theirs.get(key, missing)]


def check_workdir(config: ConfigDict, workdir: Path) -> None:
    """Refuse a `workdir` that belongs to another config (keys of MAY_CHANGE aside); changes nothing.

    Raises:
        UsageError: with the keys that differ, or because there is no reading what is there.
    """
    path = workdir / CONFIG
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir}: is a file, not a folder; choose another")
    if not path.exists():
        return
    try:
        other = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path}: not readable as JSON; restore it or choose another --workdir") from error
    plain = _as_json(config)
    keys = differences(plain, other)
    if keys:
        ours, theirs = dict(flatten(plain)), dict(flatten(other))
        listed = "; ".join(f"{key}: there {theirs.get(key)!r}, now {ours.get(key)!r}" for key in keys[:8])
        more = f"; and {len(keys) - 8} more" if len(keys) > 8 else ""
        raise UsageError(f"{workdir} belongs to another config ({listed}{more}); choose another --workdir")


def claim_workdir(config: ConfigDict, workdir: Path) -> None:
    """Make `workdir` this config's own: check it, then write config.json.

    Called when the data are open and the model is built, so that a mistake found before can be mended in place.

    Raises:
        UsageError: it belongs to another config, or cannot be a folder.
    """
    check_workdir(config, workdir)
    make_folder(workdir)
    write_json(workdir / CONFIG, _as_json(config))


def make_folder(workdir: Path) -> None:
    """Make the working directory. Raises UsageError where that cannot be."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UsageError(f"--workdir={workdir}: cannot be made a folder ({error.strerror}); choose another") from error


def _as_json(config: ConfigDict) -> dict[str, Any]:
    return json.loads(json.dumps(resolve(config)))
