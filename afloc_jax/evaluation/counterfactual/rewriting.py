"""Rules that turn a prompt into one with the other side, the other zone, or its negation. The words are in words.json.

A prompt that names both places, a word that keeps its place in every wording ("right ventricle", "shift to the right"),
or a sentence that these rules cannot negate, is not rewritten: the reason is given instead.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from afloc_jax.inference.class_prompts import NEGATIVE
from data_pipelines.reports import split_sentences


@dataclass(frozen=True)
class Rewritten:
    """A rewritten prompt, or the reason why there is none.

    Attributes:
        text: the new prompt; empty if there is none.
        place: the place that it names: 0 for left and upper, 1 for right and lower.
        why: the reason; empty if there is a prompt.
    """

    text: str = ""
    place: int = 0
    why: str = ""


@dataclass(frozen=True)
class Places:
    """The words of two opposite places.

    Attributes:
        name: "side" or "zone".
        pairs: words of the first place with those of the second.
        both: words that name both places.
        fixed: words beside which a place has no opposite: names, directions, and what is spared.

    >>> SIDES.other("Small LEFT effusion in the left lower lobe").text
    'small right effusion in the right lower lobe'
    >>> SIDES.other("bilateral effusions").why
    'names both sides'
    """

    name: str
    pairs: Sequence[tuple[str, str]]
    both: Sequence[str]
    fixed: Sequence[str]

    def named(self, prompt: str) -> frozenset[int]:
        """The places that a prompt names: 0 the first, 1 the second."""
        text = _plain(prompt)
        words = [found.group() for found in self._words.finditer(text)]
        both = {0, 1} if _pattern(self.both).search(text) else set()
        return frozenset(both | {self._opposite[word][0] for word in words})

    def other(self, prompt: str) -> Rewritten:
        """The prompt with every word of its place replaced by that of the other place."""
        text, named = _plain(prompt), self.named(prompt)
        if not named:
            return Rewritten(why=f"names no {self.name}")
        if len(named) > 1:
            return Rewritten(why=f"names both {self.name}s")
        if _pattern(self.fixed).search(text):
            return Rewritten(why=f"names a {self.name} that has no opposite")
        changed = self._words.sub(lambda found: self._opposite[found.group()][1], text)
        return Rewritten(self._with_articles(changed), 1 - min(named))

    def _with_articles(self, text: str) -> str:
        """The text with "a" or "an" before words of places, as their first letter needs it."""
        before = re.compile(rf"\ban? (?={self._words.pattern})")
        return before.sub(lambda found: "an " if text[found.end()] in "aeiou" else "a ", text)

    @cached_property
    def _opposite(self) -> dict[str, tuple[int, str]]:
        """The place of every word, and the word of the other place."""
        opposite: dict[str, tuple[int, str]] = {}
        for first, second in self.pairs:
            opposite.setdefault(first, (0, second))
            opposite.setdefault(second, (1, first))
        return opposite

    @cached_property
    def _words(self) -> re.Pattern[str]:
        return _pattern(list(self._opposite))


def negate(prompt: str) -> Rewritten:
    """The prompt with "no" before it, or "not" behind its verb.

    >>> negate("There is a small left effusion.").text, negate("the heart is enlarged").text
    ('no small left effusion.', 'heart is not enlarged')
    >>> negate("no effusion").why
    'is negated or normal already'
    """
    text = _plain(prompt)
    if len(split_sentences(text)) != 1:
        return Rewritten(why="has several sentences")
    if _NEGATIVE.search(text):
        return Rewritten(why="is negated or normal already")
    rest = text
    while opening := _OPENING.match(rest):
        rest = rest[opening.end() :].lstrip()
    if _OTHER_VERBS.search(rest) or not rest:
        return Rewritten(why="has a verb that is not negated by these rules")
    if _NEGATABLE.search(rest):
        return Rewritten(_NEGATABLE.sub(r"\g<0> not", rest, count=1))
    return Rewritten(NEGATIVE.format_map({"class": rest}).strip())


def _plain(prompt: str) -> str:
    """The prompt in lower case, with single spaces and without a final period."""
    return " ".join(prompt.lower().split()).rstrip(". ")


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    """A pattern of any of the words, the longest first; "*" stands for any ending."""
    longest_first = sorted(words, key=len, reverse=True)
    either = "|".join(re.escape(word).replace(r"\*", r"\w*") for word in longest_first)
    return re.compile(rf"\b(?:{either})\b")


_WORDS = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
SIDES, ZONES = (Places(name, **_WORDS[name]) for name in ("side", "zone"))
_NEGATIVE, _OPENING, _NEGATABLE, _OTHER_VERBS = (
    _pattern(_WORDS["negation"][key]) for key in ("negative", "opening", "negatable", "other_verbs")
)
