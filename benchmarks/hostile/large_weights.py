"""Weights and files of model folders that would take minutes or gigabytes, were their sizes not bounded."""

import struct
from collections.abc import Callable
from typing import Any

from benchmarks.hostile.valid_files import safetensors

MIB = 1 << 20
_TWICE = b")q\x00" + b"h\x00h\x00\x86q\x00" * 40  # a tuple that holds the one before it twice
_BIG = b"\x80\x02(" + b"K\x01" * 100_000 + b"tq\x01" + b"0"  # a tuple of 100,000 numbers in memo slot 1
_LARGE = b"\x80\x02\x8b" + struct.pack("<i", 8 * MIB) + b"\x01" * (8 * MIB)
PICKLES = {
    "a key of nested tuples": b"\x80\x02}" + _TWICE + b"K\x01s.",
    "keys of nested tuples": b"\x80\x02}(" + _TWICE + b"K\x01u.",
    "a set of nested tuples": b"\x80\x02c__builtin__\nset\n(" + _TWICE + b"l\x85R.",
    "a frozen set of nested tuples": b"\x80\x04(" + _TWICE + b"\x91.",
    "an ordered dict of nested tuples": b"\x80\x02ccollections\nOrderedDict\n((" + _TWICE + b"K\x01\x86ltR.",
    "a dict of nested tuples": b"\x80\x02(" + _TWICE + b"K\x01d.",
    "lists in lists": b"\x80\x02" + b"]" * 2_000_000 + b"a" * 1_999_999 + b".",
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 250_000 + b".",
    "many instructions": b"\x80\x02" + b"N0" * 4_000_000 + b"N.",
    "many sets": b"\x80\x04(" + b"\x8f" * 3_000_000 + b"l.",
    "many names": b"\x80\x02(" + b"".join(b"cm\nf%d\n" % k for k in range(60_000)) + b"l.",
    "many calls with many arguments": _BIG + b"cm\nf\nh\x01R0" * 20_000 + b"N.",
    "many sets of many numbers": _BIG + b"c__builtin__\nset\nh\x01\x85R0" * 20_000 + b"N.",
    "many shapes of many axes": _BIG + b"ctorch\nSize\nh\x01\x85R0" * 20_000 + b"N.",
    "many objects with many arguments": _BIG + b"cm\nf\nh\x01\x810" * 20_000 + b"N.",
    "large numbers as keys": _LARGE + b"q\x000}(" + b"h\x00N" * 9999 + b"u.",
    "a long text": b"\x80\x02X" + struct.pack("<I", 40 * MIB) + b"x" * (40 * MIB) + b".",
    "a memo slot far away": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a text that is cut": b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x.",
}

_ENTRY = '"{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
TENSORS = {
    "a header beyond the file": struct.pack("<Q", 2**62) + b"{}",
    "many tensors": safetensors("{" + ",".join(map(_ENTRY.format, range(200_000))) + "}"),
    "many axes": safetensors(f'{{"a":{{"dtype":"F32","shape":[{"1," * 500_000}1],"data_offsets":[0,4]}}}}', b"0000"),
    "a nested header": safetensors('{"a":' * 500_000 + "1" + "}" * 500_000),
    "a large shape": safetensors('{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}', b"0000"),
    "none of its bytes": safetensors('{"a":{"dtype":"F32","shape":[0,4611686018427387904],"data_offsets":[0,0]}}'),
}

PLACES: dict[str, tuple[Any, ...]] = {  # of config.json: keys, and a value that is too large
    "layers": ("architecture", "text", "bert", "num_hidden_layers", 10**7),
    "words": ("architecture", "text", "bert", "vocab_size", 10**15),
    "width": ("architecture", "text", "bert", "intermediate_size", 10**12),
    "positions": ("architecture", "text", "bert", "max_position_embeddings", 10**12),
    "projection": ("architecture", "projection_dim", 10**9),
    "blocks": ("architecture", "image", "options", "blocks", [10**7] * 4),
    "stages": ("architecture", "image", "options", "blocks", [1] * 10**5),
    "image": ("preprocessing", "image_size", 10**9),
}

FILES: dict[str, tuple[str, Callable[[], bytes]]] = {  # of a model folder: name and content
    "config.json of 60 MB": ("config.json", lambda: b"[" + b"{}," * (20 * MIB) + b"{}]"),
    "a nested config.json": ("config.json", lambda: b"[" * MIB + b"]" * MIB),
    "tokenizer.json of 60 MB": ("tokenizer.json", lambda: b"[" + b"{}," * (20 * MIB) + b"{}]"),
    "a nested tokenizer.json": ("tokenizer.json", lambda: b'{"a":' * MIB),
    "unseen_pieces.txt of 60 MB": ("unseen_pieces.txt", lambda: b"a\n" * (30 * MIB)),
    "seal.json of 60 MB": ("seal.json", lambda: b"[" + b"{}," * (20 * MIB) + b"{}]"),
    "weights that are none": ("model.safetensors", lambda: TENSORS["many tensors"]),
}
