"""What a report says of a class, by rule: it states it, denies it, or is silent.

A sentence that names the class states it if no word in it denies or doubts, and denies it if it begins with a denial
("no evidence of ..."). Clear lungs deny opacities, and a normal heart denies cardiomegaly. All other sentences that
name it are unclear and count as silent, and so does a report that both states and denies it. The rules of denial are
those of `negatives.py`.
"""

import functools
import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

from data_pipelines.negatives import denied, is_affirmed

Statement: TypeAlias = Literal["stated", "denied", "silent"]

_DOUBT = re.compile(
    r"\b(?:may|might|could|cannot|can not|possible|possibly|question\w*|versus|vs|suspected|if|evaluat\w+|assess\w*"
    r"|concern|consider|limited|rule out|exclu\w+|history|resolv\w+|remov\w+)\b"
)
_SEEN = re.compile(
    r"(?:\b(?:is|are|was|were)\b)?\s*\b(?:seen|identified|noted|present|visualized|demonstrated|evident)$"
)
# What follows these words is not what is denied: "no cardiomegaly with small effusions".
_DENIED_SO_FAR = re.compile(r"\b(?:with|following|after|despite|although|findings|compatible|consistent|given)\b")
# "No new effusion" says nothing of an old one, and "no large effusion" nothing of a small one.
_PARTLY = re.compile(
    r"\b(?:new|further|additional|interval|worsening|residual|recurrent|large|sizable)\b"
    r"|\b(?:in|de)creas(?:e|es|ed|ing)\b"
)

# Sentences that deny without naming: what is normal or clear. A search stops at the next subject, since the last one
# before what is said counts: if it went on, its time would grow with the square of the sentence.
_LUNGS = r"lungs?(?: fields)? (?:are|is|remains?|appears?)"
_CLEAR = re.compile(rf"\b(?:{_LUNGS}(?:(?! {_LUNGS} ) \w+)*? clear|clear lungs)\b(?! of)")
_HEART = r"\b(?:heart|cardiac silhouette|cardiac size|cardiomediastinal silhouette)\b"
_NORMAL_HEART = re.compile(
    rf"{_HEART}(?:(?!\bbut\b|{_HEART}).)*?\b(?:normal|unremarkable|not enlarged)\b|\bnormal (?:heart|cardiac)\b"
)
_DENYING = {"cardiomegaly": _NORMAL_HEART} | dict.fromkeys(
    ("consolidation", "pneumonia", "infiltration", "lung opacity", "atelectasis", "edema", "nodule", "mass"), _CLEAR
)


@functools.cache
def pattern_of(words: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern of any of the words, in singular or plural, the longest first. `words` are in lower case."""
    longest_first = sorted((re.escape(word) for word in words), key=len, reverse=True)
    return re.compile(rf"\b(?:{'|'.join(longest_first)})s?\b")


def statement(sentences: Sequence[str], words: tuple[str, ...]) -> Statement:
    """What the cleaned sentences of a report say of a class.

    Args:
        sentences: in lower case, without punctuation, as in `Record.sentences`.
        words: the names of the class.

    >>> report = ["small left effusion", "no pneumothorax", "the trachea is midline"]
    >>> [statement(report, (name,)) for name in ("effusion", "pneumothorax", "nodule")]
    ['stated', 'denied', 'silent']
    """
    said = {_said(sentence, words) for sentence in sentences} - {"silent"}
    return "silent" if len(said) != 1 else "stated" if "stated" in said else "denied"


def stating(sentences: Sequence[str], words: tuple[str, ...]) -> list[str]:
    """The sentences of a report that state a class.

    >>> stating(["small left effusion", "no pneumothorax"], ("effusion",))
    ['small left effusion']
    """
    return [sentence for sentence in sentences if _said(sentence, words) == "stated"]


def _said(sentence: str, words: tuple[str, ...]) -> Statement:
    names = pattern_of(words)
    if any(_DENYING[word].search(sentence) for word in words if word in _DENYING):
        return "silent" if _DOUBT.search(sentence) else "denied"
    if not names.search(sentence) or _DOUBT.search(sentence):
        return "silent"
    if is_affirmed(sentence):
        return "stated"
    finding = _DENIED_SO_FAR.split(denied(_SEEN.sub("", sentence).strip()))[0]
    return "denied" if names.search(finding) and not _PARTLY.search(finding) else "silent"
