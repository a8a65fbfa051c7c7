"""Hard negatives (`loss.hard_negatives`): captions in which rules have made sentences false.

A rule changes one sentence of a report into a sentence that is false of its image:

    side     the other side         small left effusion         ->  small effusion on the right
    negated  a finding is denied    small left effusion         ->  there is no small left effusion
    absent   a denied finding is    no pneumothorax             ->  there is pneumothorax
             said to be there

The zone is left out, so that evaluation can ask whether training on the other kinds carries over to it. A sentence is
not changed where that could be true: where the report states it, or has another affirmed sentence on the same finding
that is not clearly of the same side. The words are in negatives.json. About half of the drawn sentences are read in the
same words, true as they are (`worded_alike`).
"""

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

import numpy as np
from jaxtyping import Int32, Shaped, UInt32

from data_pipelines.hashes import hash_of, hashed_sentences
from data_pipelines.tokens import SentenceTokenizer

Kind = Literal["side", "negated", "absent"]
_SIDES = ("left", "right")
_LEAST_LETTERS = 4  # shorter words name no finding
_REMEMBERED = 2**16


class Made(NamedTuple):
    """A sentence that was made false.

    Attributes:
        text: the sentence that the model reads.
        plain: the same statement as reports word it, by which it is seen that a report states it.
        kind: the rule.
    """

    text: str
    plain: str
    kind: Kind


MadeCaption = Sequence[Made | str]  # a caption: sentences that were changed, and sentences that were not


class NegativeArrays(TypedDict):
    """The n made captions of each of B reports, in L token slots each (`afloc_jax.levels.TokenBatch`).

    Sentence s of a made caption is sentence s of the drawn caption, changed or not. `negative_hashes` has the hashes of
    what was made, as read and in plain words; 0 where the sentence was not changed, or was cut.
    """

    negative_token_ids: Int32[np.ndarray, "B n L"]
    negative_word_ids: Int32[np.ndarray, "B n L"]
    negative_sentence_ids: Int32[np.ndarray, "B n L"]
    negative_word_count: Int32[np.ndarray, "B n"]
    negative_sentence_count: Int32[np.ndarray, "B n"]
    negative_hashes: UInt32[np.ndarray, "B n S 2 2"]


def made_captions(
    drawn: Sequence[str], report: Sequence[str], number: int, rng: np.random.Generator
) -> list[MadeCaption]:
    """So many captions made from a drawn one. In each, every sentence is changed that still can be.

    Captions differ: the m-th takes the m-th way to change a sentence, of which there are few. Kinds come in random
    order, each with a random wording, then again with another one.

    Args:
        drawn: the sentences of the caption.
        report: all sentences of its report.
        number: n.
        rng: the random generator, which is advanced.
    """
    ways = [_ways(sentence, report, rng) for sentence in drawn]
    return [
        [way[m] if m < len(way) else sentence for sentence, way in zip(drawn, ways, strict=True)] for m in range(number)
    ]


def worded_alike(drawn: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The drawn sentences, about half of them in the wordings of hard negatives.

    Otherwise the text alone would tell what was made ("on the right" at the end), and no image would be looked at.
    """
    worded = []
    for sentence in drawn:
        ways = _rewordings(sentence)
        worded.append(ways[int(rng.integers(len(ways)))] if ways and rng.random() < 0.5 else sentence)
    return worded


def negative_arrays(
    captions: Sequence[Sequence[MadeCaption]], tokenize: SentenceTokenizer, max_tokens: int
) -> NegativeArrays:
    """The arrays of the n made captions of each report."""
    rows, number = len(captions), len(captions[0])
    flat = [caption for row in captions for caption in row]
    tokens = tokenize([[_text(sentence) for sentence in caption] for caption in flat])
    most = hashed_sentences(max_tokens)
    hashes = np.zeros((len(flat), most, 2, 2), np.uint32)
    for found, caption, count, last in zip(
        hashes, flat, tokens["sentence_count"], tokens["word_ids"][:, -1], strict=True
    ):
        # A caption that fills all slots may have been cut in its last sentence, and so may be true again.
        whole = int(count) - 1 - (last >= 0)
        for place, sentence in enumerate(caption[: min(whole, most)]):
            if isinstance(sentence, Made):
                found[place] = hash_of(sentence.text), hash_of(sentence.plain)

    def by_report(array: Shaped[np.ndarray, "rows *S"]) -> Shaped[np.ndarray, "B n *S"]:
        return array.reshape(rows, number, *array.shape[1:])

    return NegativeArrays(
        negative_token_ids=by_report(tokens["token_ids"]),
        negative_word_ids=by_report(tokens["word_ids"]),
        negative_sentence_ids=by_report(tokens["sentence_ids"]),
        negative_word_count=by_report(tokens["word_count"]),
        negative_sentence_count=by_report(tokens["sentence_count"]),
        negative_hashes=by_report(hashes),
    )


def _text(sentence: Made | str) -> str:
    return sentence.text if isinstance(sentence, Made) else sentence


def _ways(sentence: str, report: Sequence[str], rng: np.random.Generator) -> list[Made]:
    """The ways to make a sentence false, in the order in which they are taken."""
    by_kind = [[made for made in ways if not _may_be_true(made, sentence, report)] for ways in _changes(sentence)]
    by_kind = [[ways[i] for i in rng.permutation(len(ways))] for ways in by_kind]
    by_kind = [by_kind[i] for i in rng.permutation(len(by_kind))]
    longest = max(map(len, by_kind))
    return [ways[turn] for turn in range(longest) for ways in by_kind if turn < len(ways)]


def _may_be_true(made: Made, sentence: str, report: Sequence[str]) -> bool:
    if made.text in report or made.plain in report:
        return True
    if made.kind == "negated":  # the sentence itself says that this is false
        return False
    others = (other for other in report if other != sentence and is_affirmed(other))
    alike = [other for other in others if _findings(other) & _findings(sentence)]
    return any(made.kind == "absent" or _sides(other) != _sides(sentence) for other in alike)


@functools.lru_cache(_REMEMBERED)
def _changes(sentence: str) -> tuple[tuple[Made, ...], ...]:
    """The changes of a sentence, by kind."""
    side, finding, lacking = _one_side(sentence), _affirmed(sentence), denied(sentence)
    return (
        _other_side(sentence, side) if side else (),
        tuple(Made(text, f"no {finding}", "negated") for text in _worded("negated", finding)),
        tuple(Made(text, lacking, "absent") for text in _worded("absent", lacking)),
    )


@functools.lru_cache(_REMEMBERED)
def _rewordings(sentence: str) -> tuple[str, ...]:
    """The sentence itself, as true as it is, in the wordings in which others are made false."""
    side = _one_side(sentence)
    moved = _moved(sentence, side, side) if side and not _is_in_place(sentence, side) else ()
    return moved or _worded("absent", _affirmed(sentence)) or _worded("negated", denied(sentence))


def _other_side(sentence: str, own: str) -> tuple[Made, ...]:
    other = _SIDES[1 - _SIDES.index(own)]
    plain = re.sub(rf"\b{own}\b", other, sentence)
    texts = (plain,) if _is_in_place(sentence, own) else _moved(sentence, own, other)
    return tuple(Made(text, plain, "side") for text in texts)


def _moved(sentence: str, own: str, side: str) -> tuple[str, ...]:
    """The sentence without its own side, and with a side behind it."""
    rest = " ".join(re.sub(rf"\b(?:on the {own}|{own} sided|{own})\b", "", sentence).split())
    return tuple(f"{rest} {wording.format(side)}" for wording in _WORDS["side"]["moved"])


def _is_in_place(sentence: str, own: str) -> bool:
    """Whether the side stands in phrases alone in which it may be exchanged."""
    return own not in _IN_PLACE.sub("", sentence).split()


def _worded(kind: Literal["negated", "absent"], finding: str) -> tuple[str, ...]:
    return tuple(wording.format(finding) for wording in _WORDS[kind]) if finding else ()


def _one_side(sentence: str) -> str:
    """The one side of an affirmed sentence, if it has an opposite."""
    named = _sides(sentence)
    return next(iter(named)) if len(named) == 1 and is_affirmed(sentence) and not _FIXED.search(sentence) else ""


def _affirmed(sentence: str) -> str:
    """The finding that a sentence affirms, without "there is a"; empty if it has a verb, or affirms none."""
    finding = sentence
    while opening := _OPENING.match(finding):
        finding = finding[opening.end() :]
    return finding if is_affirmed(sentence) and not _VERBS.search(finding) else ""


def denied(sentence: str) -> str:
    """The finding that a sentence denies."""
    denial = _DENIAL.match(sentence)
    finding = sentence[denial.end() :] if denial else ""
    return finding if is_affirmed(finding) and not _NOT_AFFIRMABLE.search(finding) else ""


@functools.lru_cache(_REMEMBERED)
def _sides(sentence: str) -> frozenset[str]:
    """The sides that a sentence names."""
    return frozenset(_SIDES) if _BOTH.search(sentence) else frozenset(_SIDES) & frozenset(sentence.split())


@functools.lru_cache(_REMEMBERED)
def _findings(sentence: str) -> frozenset[str]:
    """The words of a sentence that may name a finding, without a plural's ending."""
    words = (word for word in sentence.split() if len(word) >= _LEAST_LETTERS and word not in _NEUTRAL)
    return frozenset(word.removesuffix("s") for word in words)


@functools.lru_cache(_REMEMBERED)
def is_affirmed(sentence: str) -> bool:
    """Whether a sentence has no word that denies, or that says that all is normal."""
    return not _NOT_AFFIRMED.search(sentence)


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})\b")


_WORDS = json.loads(Path(__file__).with_name("negatives.json").read_text(encoding="utf-8"))
_RECOGNISED = _WORDS["recognised"]
_NEUTRAL = frozenset(_RECOGNISED["neutral"])
_BOTH, _FIXED, _NOT_AFFIRMED, _VERBS, _NOT_AFFIRMABLE = (
    _pattern(_RECOGNISED[name]) for name in ("both_sides", "fixed_sides", "not_affirmed", "verbs", "not_affirmable")
)
_OPENING, _DENIAL = (re.compile(_pattern(_RECOGNISED[name]).pattern + r"\s*") for name in ("openings", "denials"))
_IN_PLACE = _pattern([wording.format(side) for wording in _WORDS["side"]["in_place"] for side in _SIDES])
