"""How a model reads a prompt: what cleaning leaves of it, which words it does not know, whether its end is cut off.

The rule, for `afloc localize`, `afloc classify`, the page of `afloc serve` and calls from Python: a word is unknown if
the tokenizer gives [UNK] for a part of it, or a piece that no training report held (`FolderConfig.unseen_pieces`). For
a model folder that does not say which pieces those are, [UNK] alone counts.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from afloc_jax.errors import UsageError, UserError
from afloc_jax.inference.pruning import pruned
from afloc_jax.settings import Json
from data_pipelines.reports import clean_prompt

_SHOWN = 5  # prompts on stderr; the JSON file has all of them
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class PromptReading:
    """A prompt as a model reads it.

    Attributes:
        given: the prompt as the user wrote it.
        text: the prompt after cleaning; empty if it has no word.
        unknown_words: words of `text` that the model does not know, in their order, each once.
        truncated: whether the end of `text` does not fit into the token slots of the model and is not read.
        dropped: the words that `pruning` took out of the prompt, in their order; `text` is without them.
    """

    given: str
    text: str = field(default="")
    unknown_words: tuple[str, ...] = ()
    truncated: bool = False
    dropped: tuple[str, ...] = ()

    @property
    def complaint(self) -> str:
        """What is wrong with the prompt, in a line; empty if nothing is."""
        problems = [] if self.text else ["empty after cleaning: it has no word"]
        if self.unknown_words:
            problems.append(f"unknown words: {', '.join(map(_short, self.unknown_words))}")
        if self.truncated:
            problems.append("too long: its end is not read")
        return f"prompt {_short(self.given)!r}: {'; '.join(problems)}" if problems else ""

    @property
    def plain(self) -> dict[str, Json]:
        """The entries of localize.json."""
        dropped: dict[str, Json] = {"dropped_words": [*self.dropped]} if self.dropped else {}
        return {"unknown_words": [*self.unknown_words], "truncated": self.truncated, **dropped}


def read_prompt(
    given: str,
    tokenizer: Tokenizer,
    max_tokens: int,
    unseen: frozenset[str] | None = None,
    *,
    compatible: bool = False,
    prune: bool = False,
) -> PromptReading:
    """The reading of one prompt.

    Args:
        given: the prompt as the user wrote it.
        tokenizer: the model's.
        max_tokens: token slots of a prompt, including [CLS] and [SEP].
        unseen: pieces of the vocabulary that no training report held; None if that is not known.
        compatible: clean the prompt as the published release does.
        prune: take out words that do not localise, see `pruning`.

    >>> from data_pipelines.tokens import learn_tokenizer
    >>> read_prompt("Small zebra.", learn_tokenizer(["small left effusion"]), max_tokens=8)
    PromptReading(given='Small zebra.', text='small zebra', unknown_words=('zebra',), truncated=False, dropped=())
    """
    try:
        text = clean_prompt(given, compatible=compatible)
    except UserError:
        return PromptReading(given)
    text, dropped = pruned(text) if prune else (text, ())
    encoding = tokenizer.encode(text, add_special_tokens=False)
    strange = {"[UNK]", *(unseen or ())}
    starts = [begin for piece, (begin, _) in zip(encoding.tokens, encoding.offsets, strict=True) if piece in strange]
    words = [word for word in _WORD.finditer(text) if any(word.start() <= begin < word.end() for begin in starts)]
    unknown = dict.fromkeys(word.group().rstrip(".") for word in words)
    return PromptReading(given, text, tuple(unknown), len(encoding.ids) > max_tokens - 2, dropped)


def report_readings(readings: Sequence[PromptReading], strict: bool) -> None:
    """Names on stderr the prompts that the model does not understand as a whole.

    Raises:
        UsageError: there is such a prompt and `strict` is on.
    """
    complaints = list(dict.fromkeys(reading.complaint for reading in readings if reading.complaint))
    if complaints and strict:
        more = f"; and {len(complaints) - _SHOWN:,} more" if len(complaints) > _SHOWN else ""
        raise UsageError(f"--strict: {'; '.join(complaints[:_SHOWN])}{more}")
    for complaint in complaints[:_SHOWN]:
        print(f"afloc: {complaint}", file=sys.stderr)
    if len(complaints) > _SHOWN:
        print(f"afloc: {len(complaints) - _SHOWN:,} more prompts of that kind, named in the JSON file", file=sys.stderr)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
