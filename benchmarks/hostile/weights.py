"""Hostile files of weights, which are imported. None is a whole model, so that all must be refused."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.hostile import valid_files as valid
from benchmarks.hostile.changes import in_json, replaced, spoken
from benchmarks.hostile.large_weights import PICKLES, TENSORS
from benchmarks.hostile.running import Group, Input


def _words(folder: Path) -> None:
    (folder / "words").mkdir()
    (folder / "words/vocab.txt").write_text("".join(f"{piece}\n" for piece in valid.PIECES))


def _nothing(out: Path, _: str) -> object:
    return [path.name for path in out.iterdir()]


def _checkpoints() -> Iterator[Input]:
    """Files of PyTorch. None is a whole model, so that all must be refused."""

    def written(name: str, content: bytes) -> Input:
        return Input(name, replaced("weights.pth", content), compared=False)

    for name, program in PICKLES.items():
        yield written(f"{name}, zip", valid.torch_archive(program))
        yield written(f"{name}, before PyTorch 1.6", valid.legacy_file(program))
    program = valid.state_pickle({"conv1.weight": 4, "layer1.0.conv1.weight": 2})
    storages = (bytes(16), bytes(8))
    files = {"zip": valid.torch_archive(program, *storages), "old": valid.legacy_file(program, ("0", "1"), *storages)}
    for kind, content in files.items():
        for part in range(1, 12):
            yield written(f"{kind}, cut after {part}/12", content[: len(content) * part // 12])
            position = len(content) * part // 12
            changed = content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]
            yield written(f"{kind}, a byte at {part}/12 inverted", changed)
    calls = {
        "os.system": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        "eval": b"\x80\x02c__builtin__\neval\nX\x06\x00\x00\x00exit()\x85R.",
        "exec of a name with dots": b"\x80\x04\x8c\x02os\x8c\rsystem.__call\x93.",
        "an object that builds itself": b"\x80\x02)\x81}b.",
    }
    for name, hostile in calls.items():
        yield written(f"a pickle that calls {name}", valid.torch_archive(hostile))
    one = valid.state_pickle({"conv1.weight": 4})
    for count in (-1, 0, 3, 5, 2**31 - 1):
        wrong = one.replace(b"J\x04\0\0\0", b"J" + struct.pack("<i", count))
        yield written(f"a tensor of {count} numbers in 16 bytes", valid.torch_archive(wrong, bytes(16)))
    yield written("without its storage", valid.torch_archive(one))
    yield written("a storage twice", valid.torch_archive(one, bytes(16), bytes(16)).replace(b"data/1", b"data/0"))
    yield written("text", b"no weights")
    yield written("empty", b"")


def _tensor_files() -> Iterator[Input]:
    """Safetensors files. None is a whole model, so that all must be refused."""

    def written(name: str, content: bytes) -> Input:
        return Input(name, replaced("weights.safetensors", content), compared=False)

    for name, content in TENSORS.items():
        yield written(name, content)
    header, data = valid.tensor_header(), bytes(24)
    fields: dict[str, tuple[Any, ...]] = {
        "dtype": (..., None, 5, "F9", "F64", "F8_E4M3", "", []),
        "shape": (..., None, 5, [3], [-2, -2], [2.0, 2], ["2", 2], [2**63, 2], [2**64], [1] * 70),
        "data_offsets": (..., None, [], [0], [0, 15], [16, 0], [-4, 12], [0, 2**63], [0, 2**64], [4, 20], ["0", "16"]),
    }
    for field, values in fields.items():
        for value in values:
            text = in_json(header, "conv1.weight", field, value=value)
            yield written(f"{field}: {spoken(value)}", valid.safetensors(text, data))
    whole = valid.safetensors(header, data)
    for part in range(1, 10):
        yield written(f"cut after {part}/10", whole[: len(whole) * part // 10])
    texts = {
        "a list": "[]",
        "no JSON": "{x",
        "a name twice": json.dumps(header).replace("bn1.bias", "conv1.weight"),
        "half a surrogate pair": json.dumps(header).replace("bn1.bias", "\\ud800"),
        "metadata that are numbers": in_json(header, "__metadata__", "format", value=5),
        "no tensor": "{}",
    }
    for name, text in texts.items():
        yield written(name, valid.safetensors(text, data))
    yield written("bytes behind it", whole + b"more")
    yield written("no length", b"\xff" * 8)


def groups() -> list[Group]:
    """The groups of this module."""
    command = ("import", "IN/weights{}", "--tokenizer", "IN/words", "OUT/model")
    pth, tensors = (tuple(word.format(suffix) for word in command) for suffix in (".pth", ".safetensors"))
    return [
        Group("PyTorch files", _words, pth, [*_checkpoints()], _nothing),
        Group("safetensors", _words, tensors, [*_tensor_files()], _nothing),
    ]
