"""Radiology report -> sections -> clean sentences; and prompts, which are cleaned by the same rules.

Two cleaners stand side by side. The default keeps what a reader would call the content: one-word sentences ("edema"),
decimals ("1.5 cm", ".5 cm" as "0.5 cm"), letters of any alphabet (accents of Latin letters folded: "café" becomes
"cafe"). The compatible one reproduces the published release, its defects included (algorithm description: text,
section 5).
"""

import re
import unicodedata
from dataclasses import dataclass

from afloc_jax.errors import UserError

_SECTION = re.compile(
    r"(?im)^[^\S\n]*(findings?(?: and impression)?|impressions?|conclusions?|indications?|history"
    r"|clinical (?:history|information)|reason for exam(?:ination)?|comparisons?|techniques?|examination|exam|procedure"
    r"|recommendations?|notification)[^\S\n]*:"
)
_SECTION_NAMES = {
    "finding": "findings",
    "conclusion": "impression",
    "conclusions": "impression",
    "impressions": "impression",
    "indications": "indication",
    "comparisons": "comparison",
    "techniques": "technique",
    "recommendations": "recommendation",
    "clinical information": "clinical history",
    "reason for examination": "reason for exam",
    "exam": "examination",
}

# Abbreviations whose period does not end a sentence. Titles and Latin ones, and units that stand before more text.
_ABBREVIATIONS = frozenset(
    {"approx", "ca", "resp", "al", "eg", "ie", "incl", "dept", "hosp", "yr", "yrs", "a.m", "p.m"}
)
_NUMBER_FOLLOWS = frozenset({"no", "nos", "fig", "figs"})  # an abbreviation only before a number: "fig. 2", but "no."
_TITLES = frozenset({"dr", "mr", "mrs", "ms", "prof", "st", "vs", "e.g", "i.e", "cf"})  # whatever follows

# The point right before a marker ends a sentence only behind a word: the end of "2.1." and of "/.5." is no marker.
_LIST_MARKER = re.compile(r"(?:(?<=^)|(?<=[\s;:])|(?<=[^\W\d_][.])|(?<=[.)\]\"'][.]))\(?\d{1,2}[.)](?=\s|[A-Za-z(]|$)")
_BREAKS = re.compile(r"[!?;\n]+|\.{2,}|\.(?=\s|$|[A-Z\"')\]])")

# Marks of the scripts in Unicode so far: `re` does not count vowel signs and the like among letters.
_MARKS = "".join(
    character for character in map(chr, range(0x300, 0x20000)) if unicodedata.category(character)[0] == "M"
)
_LETTERS = rf"[^\W_]+(?:[{_MARKS}]+[^\W_]*)*"
_WORD = re.compile(rf"{_LETTERS}(?:(?<=\d)[.,](?=\d){_LETTERS})*")
_DIGIT = re.compile(r"\d")
_NUMBERS = (  # in this order
    (re.compile(r"(?<=\d)[\u00b7\u066b](?=\d)"), "."),  # the raised and the Arabic decimal point
    (re.compile(r"(?<=\d)(\s*[mcd]?m)?\s*[x\u00d7]\s*(?=[.]?\d)"), r"\1 x "),  # "2x1.5", "2cm x 3"
    (re.compile(r"(?<![\w.])[.](?=\d)"), "0."),  # a bare point before a digit would separate sentences
    (re.compile(r"(\d[.,]\d+)(?=[^\W\d_])"), r"\1 "),  # "1.5cm"
)
_FRACTION = re.compile(r"(?:(\d+)\s?)?([\u00bc-\u00be\u2150-\u215e\u2189])")  # one character, as in "1½"

_RELEASE_SPLIT = re.compile(r"[0-9]+\.|\.")
_RELEASE_WORD = re.compile(r"\w+")
_RELEASE_WORDS_STOP = 5  # the release stops a report when its running number of words is exactly this


@dataclass(frozen=True)
class CleanReport:
    """A report as training reads it."""

    sentences: list[str]  # lower case, words separated by one space, no period; the impression's sentences first
    impression_count: int  # how many leading sentences belong to the impression


def sections(text: str) -> dict[str, str]:
    """Splits a report at its headings ("FINDINGS:", "IMPRESSION:", ...), each at the start of a line.

    Returns:
        Heading in a normal form (lower case; "findings", "impression", "indication", ...) -> text below it. What stands
        before the first heading is under "". A heading that comes twice has its texts joined by a newline.
    """
    result: dict[str, str] = {}
    name, begin = "", 0
    for match in [*_SECTION.finditer(text), None]:
        body = text[begin : match.start() if match else len(text)].strip()
        if body:
            result[name] = f"{result[name]}\n{body}" if name in result else body
        if match:
            heading = re.sub(r"\s+", " ", match.group(1).lower())
            name, begin = _SECTION_NAMES.get(heading, heading), match.end()
    return result


def clean_report(findings: str, impression: str = "", *, compatible: bool = False) -> CleanReport:
    """Cleans a report to sentences.

    By default the sentences of the impression come first, then those of the findings that do not repeat one of them.

    Compatible: `findings` is all the text that the release trains on (its impression, if any, first) and `impression`
    only decides how many leading sentences belong to the impression. The release ends a report as soon as its running
    number of words is exactly 5.

    A report of which nothing is left has no sentences. The release drops it, and so do the builders.
    """
    if compatible:
        kept = _release_sentences(findings)
        return CleanReport(kept, min(len(_release_sentences(impression)), len(kept)))
    first = list(dict.fromkeys(split_sentences(impression)))
    return CleanReport(list(dict.fromkeys([*first, *split_sentences(findings)])), len(first))


def clean_sections(findings: str, impression: str, compatible: bool) -> CleanReport:
    """`clean_report` of two sections. The release trains on one text, in which the impression comes first."""
    text = f"{impression} {findings}".strip() if compatible else findings
    return clean_report(text, impression, compatible=compatible)


def clean_prompt(text: str, *, compatible: bool = False) -> str:
    """A prompt as the model reads it: sentences cleaned and joined with ". ", no final period.

    Compatible: as the release cleans a prompt: one-word sentences vanish and sentences are joined by a space.
    Raises UserError when nothing is left.
    """
    sentences = _release_sentences(text, stop=None) if compatible else split_sentences(text)
    if not sentences:
        why = "it holds no word; write what to look for, e.g. 'small left pleural effusion'"
        if compatible:
            why = "the release drops one-word sentences; leave --compatible out or write more words"
        raise UserError(f"the prompt {text!r} is empty after cleaning: {why}")
    return (" " if compatible else ". ").join(sentences)


def split_sentences(text: str) -> list[str]:
    """Cleaned sentences of a text in their order; pieces without a letter are left out."""
    return [cleaned for _, cleaned in _pieces(text) if _has_letter(cleaned)]


def rejected_sentences(text: str) -> list[tuple[str, str]]:
    """The pieces of a text that `split_sentences` leaves out, each with the reason. None of them holds a letter."""
    pieces = [(piece.strip(), cleaned) for piece, cleaned in _pieces(text) if not _has_letter(cleaned)]
    return [(piece, "a number alone" if cleaned else "no letter and no digit") for piece, cleaned in pieces]


def _pieces(text: str) -> list[tuple[str, str]]:
    """The sentences of a text as written and cleaned, those without a letter included."""
    pieces = [piece for part in _split_lists(fold(text)) for piece in _split_periods(part)]
    return [(piece, " ".join(_words(piece))) for piece in pieces if piece.strip()]


def _words(sentence: str) -> list[str]:
    """Lower-case words; a number keeps its decimal point, and what it is written together with."""
    text = sentence.lower()
    for pattern, replacement in _NUMBERS if _DIGIT.search(text) else ():
        text = pattern.sub(replacement, text)
    return _WORD.findall(text)


def _has_letter(text: str) -> bool:
    return any(character.isalpha() for character in text)


def fold(text: str) -> str:
    """Text with accents of Latin letters folded ("é" to "e") and compatibility forms unified.

    Other alphabets keep their marks, which make other letters of them, and marks without a letter are removed.
    """
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFKD", _FRACTION.sub(_as_decimal, text))
    kept, marked = [], False
    for character in decomposed:
        kind = unicodedata.category(character)[0]
        if kind != "M":
            marked = kind == "L" and not unicodedata.name(character, "").startswith("LATIN")
        if kind != "M" or marked:
            kept.append(character)
    return unicodedata.normalize("NFC", "".join(kept))  # Hangul syllables and the like are put together again


def _as_decimal(fraction: re.Match[str]) -> str:
    """The value of a one-character fraction: "1½" becomes "1.5"; taken apart by compatibility it would read "11/2"."""
    return f"{int(fraction[1] or 0) + unicodedata.numeric(fraction[2]):.6g}"


def _split_lists(text: str) -> list[str]:
    """Splits at the markers of a numbered list ("1. ... 2. ..."), which are counted: "1." at the start, then "2.", ...

    A number at the end of a sentence ("grade 2.") is no marker, because it does not continue the count.
    """
    parts, begin, expected = [], 0, 1
    for match in _LIST_MARKER.finditer(text):
        number = int(re.sub(r"\D", "", match.group()))
        before = text[: match.start()].rstrip()
        at_start = not before or before[-1] in ".;:!?" or "\n" in text[len(before) : match.start()]
        if (at_start and number in (expected, 1)) or (number == expected and expected > 1):
            parts.append(text[begin : match.start()])
            begin, expected = match.end(), number + 1
    parts.append(text[begin:])
    return parts


def _split_periods(text: str) -> list[str]:
    """Splits at sentence ends; periods of decimals, abbreviations and initials do not end a sentence."""
    # A single line break inside a sentence is layout; a blank line ends a paragraph.
    text = re.sub(r"\s*\n\s*\n\s*", "\n", re.sub(r"(?<!\n)[^\S\n]*\r?\n[^\S\n]*(?!\s*\n)", " ", text.strip()))
    pieces, begin = [], 0
    for match in _BREAKS.finditer(text):
        if match.group() == "." and _is_abbreviation(text[begin : match.start()], text[match.end() :]):
            continue
        pieces.append(text[begin : match.start()])
        begin = match.end()
    pieces.append(text[begin:])
    return pieces


def _is_abbreviation(before: str, after: str) -> bool:
    words = re.findall(r"[\w.]+$", before)
    word, rest = (words[0].lower() if words else ""), after.lstrip()
    if not rest:
        return False
    if word in _NUMBER_FOLLOWS:
        return rest[0].isdigit()
    if word in _TITLES:
        return True
    # "approx. 2 cm", "5 p.m. yesterday": the sentence goes on in lower case or with a number.
    return word in _ABBREVIATIONS and (rest[0].islower() or rest[0].isdigit())


def _release_sentences(text: str, stop: int | None = _RELEASE_WORDS_STOP) -> list[str]:
    """Sentences as the published release cleans them."""
    sentences: list[str] = []
    word_total = 0
    for piece in _RELEASE_SPLIT.split(text.replace("\n", " ")):
        words = _RELEASE_WORD.findall(piece.lower())
        if len(words) <= 1:
            continue
        kept = [word for word in (word.encode("ascii", "ignore").decode() for word in words) if word]
        if not kept:
            continue
        sentences.append(" ".join(kept))
        word_total += len(kept)
        if word_total == stop:
            break
    return sentences
