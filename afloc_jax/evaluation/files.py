"""Result files, each written completely or not at all."""

import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from afloc_jax.errors import UserError
from afloc_jax.files import Path, read_json, write_whole


def write_folder(out: str | os.PathLike[str], files: Mapping[str, str | bytes]) -> None:
    """Writes files to a folder, which is created if needed. Raises UserError if that fails."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_whole(folder / name, content)
    except OSError as error:
        raise UserError(f"{out}: cannot write the results ({error.strerror or error})") from None


def write_pictures(out: str | os.PathLike[str], arrays: Mapping[str, Any], described: Any) -> None:
    """Writes examples.npz (arrays) and examples.json (descriptions)."""
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
    write_folder(out, {"examples.npz": packed.getvalue(), "examples.json": text})


def read_pictures(folder: Path) -> tuple[list[dict[str, Any]], Mapping[str, np.ndarray]]:
    """The content of examples.json, and the arrays of examples.npz; empty if one of the files is absent."""
    if not all((folder / name).is_file() for name in ("examples.json", "examples.npz")):
        return [], {}
    described = read_json(folder / "examples.json", "remove it and run the evaluation again")
    with np.load(io.BytesIO((folder / "examples.npz").read_bytes()), allow_pickle=False) as arrays:
        return described, dict(arrays)


def remove_examples(out: str | os.PathLike[str]) -> None:
    """Removes the examples of an earlier evaluation from a result folder, if any."""
    for name in ("examples.npz", "examples.json"):
        (Path(out) / name).unlink(missing_ok=True)


def json_of(value: Any) -> Any:
    """Dataclasses, mappings and sequences as JSON values: fields become keys, NaN and infinity become null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: json_of(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: json_of(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_of(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def json_text(content: Any) -> str:
    """Indented JSON. Raises ValueError for NaN, which JSON does not have."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
