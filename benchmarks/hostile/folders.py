"""Hostile model folders: damaged files, seals that are none, settings that cannot be."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.hostile.changes import cut, flipped, in_json, leaves, replaced, spoken
from benchmarks.hostile.large_weights import FILES, PLACES
from benchmarks.hostile.models import LOCALIZE, PROMPT, heat_map_of, model_and_picture, model_files, unsealed
from benchmarks.hostile.running import Group, Input

NONSENSE: dict[str, Any] = {"nonsense": 1}  # what no setting may be


def _sealed_files() -> Iterator[Input]:
    """What `afloc localize` says of a sealed model with a damaged file."""
    for name in ("model.safetensors", "tokenizer.json", "seal.json", "config.json", "vocab.txt"):
        yield Input(f"{name} is missing", lambda folder, name=name: (folder / "model" / name).unlink())  # type: ignore[misc]
        yield Input(f"{name} is empty", replaced(f"model/{name}", b""))
        yield Input(f"{name} is a folder", functools.partial(_as_folder, name))
        for part in (1, 3, 5):
            yield Input(f"{name} is cut after {part}/6", cut(f"model/{name}", part / 6))
            yield Input(f"a byte of {name} at {part}/6 is inverted", flipped(f"model/{name}", part / 6))
    yield Input("a second vocabulary", replaced("model/other_vocab.txt", "a\n"))
    for name, (file, content) in FILES.items():
        yield Input(name, lambda folder, file=file, content=content: replaced(f"model/{file}", content())(folder))  # type: ignore[misc]


def _as_folder(name: str, folder: Path) -> None:
    (folder / "model" / name).unlink()
    (folder / "model" / name).mkdir()


def _seals() -> Iterator[Input]:
    """What `afloc verify` says."""
    yield from _sealed_files()
    texts: dict[str, Any] = {
        "a list": [],
        "no files": {"format_version": 1},
        "files that are a list": {"format_version": 1, "files": ["config.json"]},
        "a hash that is a number": {"format_version": 1, "files": {"config.json": 5}},
        "a path that leaves": {"format_version": 1, "files": {"../grey.png": "0" * 64}},
        "an absolute path": {"format_version": 1, "files": {"/etc/hostname": "0" * 64}},
        "no name": {"format_version": 1, "files": {"": "0" * 64}},
        "a later version": {"format_version": 99, "files": {}},
        "no file is sealed": {"format_version": 1, "files": {}},
    }
    for name, content in texts.items():
        yield Input(f"a seal: {name}", replaced("model/seal.json", json.dumps(content)))


def _model_settings() -> Iterator[Input]:
    """config.json of a model folder without a seal, so that nothing but its checks notices a change."""
    stored = json.loads(model_files()["config.json"])

    def changed(name: str, *keys: str, value: Any) -> Input:
        return Input(name, replaced("model/config.json", in_json(stored, *keys, value=value)))

    for keys, value in leaves(stored):
        if keys[0] == "card" or keys == ("name",):
            continue
        for wrong in (NONSENSE, -7 if isinstance(value, int | float) else 7):
            if not (keys == ("seed",) and wrong == -7):
                yield changed(f"{'.'.join(keys)}: {spoken(wrong)}", *keys, value=wrong)
    sections: tuple[Any, ...] = (None, [], "x", {"unknown": 1})
    for section in ("architecture", "preprocessing", "prompts"):
        for other in sections:
            yield changed(f"{section}: {spoken(other)}", section, value=other)
    for name, (*places, large) in PLACES.items():
        yield changed(f"too large: {name}", *places, value=large)
    versions: tuple[Any, ...] = (None, "1", 0, 2, 1.5, -1, True, [])
    for version in versions:
        yield changed(f"format_version: {spoken(version)}", "format_version", value=version)


def groups() -> list[Group]:
    """The groups of this module."""
    localize, told = (*LOCALIZE, *PROMPT), "damaged|edited|not sealed"
    return [
        Group("model folders", model_and_picture, localize, [*_sealed_files()], heat_map_of),
        Group("seals", model_and_picture, ("verify", "IN/model"), [*_seals()], lambda _, said: said, told),
        Group("settings of models", unsealed, localize, [*_model_settings()], heat_map_of),
    ]
