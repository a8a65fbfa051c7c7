"""Hostile tokenizers, prompts and prompt sets."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.hostile.changes import cut, in_json, replaced, spoken
from benchmarks.hostile.models import LOCALIZE, PROMPT, heat_map_of, model_and_picture, model_files, unsealed
from benchmarks.hostile.running import Group, Input

# Tokenizers


def _tokenizers() -> Iterator[Input]:
    stored = json.loads(model_files()["tokenizer.json"])

    def changed(name: str, *keys: str | int, value: Any) -> Input:
        return Input(name, replaced("model/tokenizer.json", in_json(stored, *keys, value=value)))

    words = stored["model"]["vocab"]
    vocabularies: dict[str, Any] = {
        "empty": {},
        "without [UNK]": {word: number for word, number in words.items() if word != "[UNK]"},
        "without [CLS]": {word: number for word, number in words.items() if word != "[CLS]"},
        "[PAD] is not 0": {word: number + 1 for word, number in words.items()},
        "an id of 4 billion": {**words, "zebra": 2**32 - 1},
        "an id beyond the embeddings": {**words, "effusion": len(words) + 5},
        "a negative id": {**words, "zebra": -1},
        "an id that is a text": {**words, "zebra": "5"},
        "a list": list(words),
    }
    for name, vocabulary in vocabularies.items():
        yield changed(f"vocabulary: {name}", "model", "vocab", value=vocabulary)
    parts: dict[str, tuple[Any, ...]] = {
        "type": (None, "BPE", "Unigram", "WordLevel", "none"),
        "unk_token": (None, "none", 5),
        "continuing_subword_prefix": (None, "@@", 5),
        "max_input_chars_per_word": (-1, "x", 0),
    }
    for key, values in parts.items():
        for value in values:
            yield changed(f"model.{key}: {spoken(value)}", "model", key, value=value)
    regex = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    wholes: dict[str, tuple[Any, ...]] = {
        "pre_tokenizer": (None, {"type": "none"}, {"type": "Whitespace"}, regex, [], 5),
        "normalizer": ({"type": "none"}, {"type": "Replace", "pattern": {"String": ""}, "content": "x"}, 5),
        "post_processor": ({"type": "none"}, 5),
        "added_tokens": (None, 5, [{"id": 2**32, "content": "a"}], [{}]),
        "version": (None, "9.9", 5),
        "padding": (5, {"strategy": {"Fixed": 10**9}}),
        "truncation": (5, {"max_length": 0}),
    }
    for key, values in wholes.items():
        for value in values:
            yield changed(f"{key}: {spoken(value)}", key, value=value)
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        yield Input(f"cut after {share:.0%}", cut("model/tokenizer.json", share))
    texts = {
        "empty": b"",
        "no UTF-8": b"\xff\xfe",
        "a list": b"[]",
        "one line": b"[PAD]\n",
        "a line twice": b"[PAD]\na\na\n",
    }
    for name, text in texts.items():
        yield Input(f"vocab.txt alone: {name}", functools.partial(_vocabulary_alone, text))


def _vocabulary_alone(text: bytes, folder: Path) -> None:
    (folder / "model/tokenizer.json").unlink()
    (folder / "model/vocab.txt").write_bytes(text)


# Prompts and prompt sets


def _prompts() -> Iterator[Input]:
    prompts = {
        "empty": "",
        "blanks": " \t\n",
        "punctuation": ". , ;",
        "NUL": "\0",
        "control characters": "\x01\x02",
        "half a surrogate pair": "\udcff",
        "unknown words": "small zebra",
        "another script": "\u5de6\u80f8\u6c34",
        "marks": "e\u0301" * 50,
        "an emoji": "\U0001f600",
        "special tokens": "[CLS] [SEP] [PAD]",
        "[MASK]": "[MASK]",
        "too long": "small effusion " * 50,
        "a megabyte": "effusion " * 120_000,
        "one word of a megabyte": "a" * 100_000,
        "periods": "." * 50_000,
        "digits": "1." * 50_000,
        "a format": "{0.__class__} %s %n",
        "HTML": "<script>alert(1)</script>",
    }
    for name, prompt in prompts.items():
        yield Input(name, words=("--prompt", prompt), compared=False)
        yield Input(f"{name}, --strict", words=("--prompt", prompt, "--strict"), compared=False)
    for words in (("--threshold", "nan"), ("--threshold", "1"), ("--threshold", "x"), ("--map", "none"), ("--none",)):
        yield Input(" ".join(words), words=(*PROMPT, *words), compared=False)


def _prompt_set(folder: Path) -> None:
    model_and_picture(folder)
    (folder / "set.json").write_text(json.dumps(PROMPT_SET))


PROMPT_SET: dict[str, Any] = {
    "template": "{severity} {class}",
    "classes": {"effusion": {"severity": ["small", "left"]}, "nodule": ["small nodule"]},
}


def _probabilities(out: Path, _: str) -> object:
    return (out / "scores.csv").read_text().partition("grey.png")[2]


def _prompt_sets() -> Iterator[Input]:
    def changed(name: str, *keys: str, value: Any) -> Input:
        return Input(name, replaced("set.json", in_json(PROMPT_SET, *keys, value=value)))

    templates: tuple[Any, ...] = (
        None,
        5,
        [],
        "",
        "{",
        "}",
        "{}",
        "{0}",
        "{other}",
        "{class.__init__}",
        "{class!x}",
        "{class:>{class}}",
    )
    for key in ("template", "negative", "fallback"):
        for template in templates:
            yield changed(f"{key}: {spoken(template)}", key, value=template)
        yield changed(f"{key} of a billion blanks", key, value="{class:>1000000000}")
    classes: tuple[Any, ...] = (None, 5, [], "x", {}, {"": ["x"]}, {"a": []}, {"a": [""]}, {"a": [5]}, {"a": 5})
    for value in (*classes, {"a": {"none": ["x"]}}):
        yield changed(f"classes: {spoken(value)}", "classes", value=value)
    yield changed("two names of one class", "classes", value={"a b": ["x"], "A_b": ["y"]})
    many = {key: [f"{key}{number}" for number in range(1000)] for key in ("severity", "subtype", "location")}
    yield changed("a billion phrases", "classes", value={"effusion": many})
    yield changed("half a surrogate pair", "classes", value={"effusion": ["\ud800"]})
    yield changed("an unknown key", "more", value=1)
    yield changed("multiclass: 'x'", "multiclass", value="x")
    for text in ("", "[]", "{", '{"a": ["x"], "a": ["y"]}', "[" * 100_000):
        yield Input(f"text {text[:10]!r}", replaced("set.json", text))


def groups() -> list[Group]:
    """The groups of this module."""
    classify = ("classify", "IN/model", "IN/grey.png", "--prompts", "IN/set.json", "--out", "OUT/scores.csv")
    return [
        Group("tokenizers", unsealed, (*LOCALIZE, *PROMPT), [*_tokenizers()], heat_map_of),
        Group("prompts", model_and_picture, LOCALIZE, [*_prompts()], heat_map_of),
        Group("prompt sets", _prompt_set, classify, [*_prompt_sets()], _probabilities),
    ]
