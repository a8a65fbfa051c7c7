"""Hashes of sentences and reports, by which the losses see that two of a batch have the same text."""

import functools
import hashlib
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import UInt32

_REMEMBERED = 2**16


class HashArrays(TypedDict):
    """The hashes of B reports: the arrays of `afloc_jax.levels.TextHashes`, which describes their values."""

    report_hash: UInt32[np.ndarray, "B 2"]
    sentence_hashes: UInt32[np.ndarray, "B S 2"]


def hashed_sentences(max_tokens: int) -> int:
    """S, the most sentences that fit into `max_tokens` slots: each has a word and, but for the last, a period."""
    return (max_tokens - 1) // 2


def text_hashes(reports: Sequence[Sequence[str]], max_tokens: int) -> HashArrays:
    """The hashes of reports as drawn, lists of cleaned sentences; a report is its sentences in their order.

    Sentences beyond those that `max_tokens` slots can hold have none.

    >>> a, b = text_hashes([["no effusion", "small heart"], ["small heart"]], max_tokens=5)["sentence_hashes"]
    >>> a.shape, (a[1] == b[0]).all(), b[1].any()
    ((2, 2), np.True_, np.False_)
    """
    most = hashed_sentences(max_tokens)
    whole, parts = np.zeros((len(reports), 2), np.uint32), np.zeros((len(reports), most, 2), np.uint32)
    for row, sentences in enumerate(reports):
        whole[row] = hash_of(". ".join(sentences))
        for place, sentence in enumerate(sentences[:most]):
            parts[row, place] = hash_of(sentence)
    return HashArrays(report_hash=whole, sentence_hashes=parts)


@functools.lru_cache(_REMEMBERED)
def hash_of(text: str) -> tuple[int, int]:
    """The hash of a text: two numbers below 2^32, never both 0."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") or 1
    return number >> 32, number & 0xFFFFFFFF
