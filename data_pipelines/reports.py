"""Cleaning of radiology reports (sections, then sentences) and of prompts, by the same rules.

There are two cleaners. The default keeps the content: one-word sentences ("edema"), decimals ("1.5 cm"; ".5 cm" becomes
"0.5 cm"), and letters of any alphabet (accents of Latin letters are folded: "café" becomes "cafe"). The compatible
cleaner reproduces the published release with its defects.
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

# Abbreviations whose period does not end a sentence where the text continues in lower case or with a number.
_ABBREVIATIONS = frozenset(
    {"approx", "ca", "resp", "al", "eg", "ie", "incl", "dept", "hosp", "yr", "yrs", "a.m", "p.m"}
)
_NUMBER_FOLLOWS = frozenset({"no", "nos", "fig", "figs"})  # abbreviations only before a number: "fig. 2", but "no."
_TITLES = frozenset({"dr", "mr", "mrs", "ms", "prof", "st", "vs", "e.g", "i.e", "cf"})  # abbreviations before any text
_LONGEST_ABBREVIATION = max(map(len, _ABBREVIATIONS | _NUMBER_FOLLOWS | _TITLES))

# A period right before a marker must end a word: the "1." of "2.1." and the "5." of "/.5." are no markers.
_LIST_MARKER = re.compile(r"(?:(?<=^)|(?<=[\s;:])|(?<=[^\W\d_][.])|(?<=[.)\]\"'][.]))\(?\d{1,2}[.)](?=\s|[A-Za-z(]|$)")
_SPACES, _VISIBLE = re.compile(r"\s+"), re.compile(r"\S")
_BREAKS = re.compile(r"[!?;\n]+|\.{2,}|\.(?=\s|$|[A-Z\"')\]])")

# Combining marks, such as vowel signs, which `re` does not count as letters.
_MARKS = "".join(
    character for character in map(chr, range(0x300, 0x20000)) if unicodedata.category(character)[0] == "M"
)
_LETTERS = rf"[^\W_]+(?:[{_MARKS}]+[^\W_]*)*"
_WORD = re.compile(rf"{_LETTERS}(?:(?<=\d)[.,](?=\d){_LETTERS})*")
_DIGIT = re.compile(r"\d")
_NUMBERS = (  # in this order
    (re.compile(r"(?<=\d)[\u00b7\u066b](?=\d)"), "."),  # raised and Arabic decimal points
    (re.compile(r"(?<=\d)(\s*[mcd]?m)?\s*[x\u00d7]\s*(?=[.]?\d)"), r"\1 x "),  # "2x1.5", "2cm x 3"
    (re.compile(r"(?<![\w.])[.](?=\d)"), "0."),  # a point without a digit before it would end a sentence
    (re.compile(r"(\d[.,]\d+)(?=[^\W\d_])"), r"\1 "),  # "1.5cm"
)
# Only from the first digit of a number: from each digit, a long number would be read once per digit.
_FRACTION = re.compile(r"(?:(?<!\d)(\d{1,9})\s?)?([\u00bc-\u00be\u2150-\u215e\u2189])")  # one character, as in "1½"

_RELEASE_SPLIT = re.compile(r"(?<![0-9])[0-9]+\.|\.")
_RELEASE_WORD = re.compile(r"\w+")
_RELEASE_WORDS_STOP = 5  # the release ends a report when its number of words so far is exactly this


@dataclass(frozen=True)
class CleanReport:
    """A cleaned report."""

    sentences: list[str]  # lower case, words separated by one space, no period; those of the impression come first
    impression_count: int  # the number of leading sentences that belong to the impression


def sections(text: str) -> dict[str, str]:
    r"""Splits a report at its headings ("FINDINGS:", "IMPRESSION:", ...), each at the start of a line.

    Returns:
        Heading in a normal form (lower case; "findings", "impression", "indication", ...) -> text below it. Text before
        the first heading has the key "". The texts of a repeated heading are joined by a newline.

    >>> sections("FINDINGS: The heart is enlarged.\nIMPRESSION: No pneumothorax.")
    {'findings': 'The heart is enlarged.', 'impression': 'No pneumothorax.'}
    """
    bodies: dict[str, list[str]] = {}
    name, begin = "", 0
    for match in [*_SECTION.finditer(text), None]:
        body = text[begin : match.start() if match else len(text)].strip()
        if body:
            bodies.setdefault(name, []).append(body)
        if match:
            heading = re.sub(r"\s+", " ", match.group(1).lower())
            name, begin = _SECTION_NAMES.get(heading, heading), match.end()
    return {name: "\n".join(parts) for name, parts in bodies.items()}


def clean_report(findings: str, impression: str = "", *, compatible: bool = False) -> CleanReport:
    """The cleaned sentences of a report.

    By default the sentences of the impression come first, then those sentences of the findings that do not repeat them.

    With `compatible`, `findings` is all text that the release trains on, in its order, and `impression` only gives the
    number of sentences that belong to the impression. The release ends a report as soon as its number of words so far
    is exactly 5.

    A report without any content has no sentences. Builders drop it, as the release does.

    >>> clean_report(findings="Heart is enlarged. No pneumothorax.", impression="No pneumothorax.")
    CleanReport(sentences=['no pneumothorax', 'heart is enlarged'], impression_count=1)
    """
    if compatible:
        kept = _release_sentences(findings)
        return CleanReport(kept, min(len(_release_sentences(impression)), len(kept)))
    first = list(dict.fromkeys(split_sentences(impression)))
    return CleanReport(list(dict.fromkeys([*first, *split_sentences(findings)])), len(first))


def clean_sections(findings: str, impression: str, compatible: bool) -> CleanReport:
    """`clean_report` for two sections.

    With `compatible` they are cleaned as one text that ends with the impression, because the release takes the last
    sentences of a report for its impression. These then come first, as in every record.
    """
    if not compatible:
        return clean_report(findings, impression)
    report = clean_report(f"{findings} {impression}".strip(), impression, compatible=True)
    findings_count = len(report.sentences) - report.impression_count
    sentences = [*report.sentences[findings_count:], *report.sentences[:findings_count]]
    return CleanReport(sentences, report.impression_count)


def clean_prompt(text: str, *, compatible: bool = False) -> str:
    """The cleaned prompt that a model reads: its sentences joined by ". ", without a final period.

    With `compatible` it is cleaned as by the release, which drops one-word sentences and joins sentences by a space.
    Raises UserError if nothing is left.

    >>> clean_prompt("Small LEFT effusion.  No pneumothorax.")
    'small left effusion. no pneumothorax'
    """
    sentences = _release_sentences(text, stop=None) if compatible else split_sentences(text)
    if not sentences:
        why = "it has no word; write what to look for, e.g. 'small left pleural effusion'"
        if compatible:
            why = "the release drops one-word sentences; leave --compatible out or write more words"
        raise UserError(f"the prompt {text!r} is empty after cleaning: {why}")
    return (" " if compatible else ". ").join(sentences)


def split_sentences(text: str) -> list[str]:
    r"""The cleaned sentences of a text in their order. Pieces without a letter are left out.

    >>> split_sentences("1. Small left effusion, approx. 1.5 cm.\n2. No pneumothorax.")
    ['small left effusion approx 1.5 cm', 'no pneumothorax']
    """
    return [cleaned for _, cleaned in _pieces(text) if _has_letter(cleaned)]


def rejected_sentences(text: str) -> list[tuple[str, str]]:
    """The pieces of a text that `split_sentences` leaves out, with the reason. None of them has a letter."""
    pieces = [(piece.strip(), cleaned) for piece, cleaned in _pieces(text) if not _has_letter(cleaned)]
    return [(piece, "a number alone" if cleaned else "no letter and no digit") for piece, cleaned in pieces]


def _pieces(text: str) -> list[tuple[str, str]]:
    """All sentences of a text, original and cleaned, also those without a letter."""
    pieces = [piece for part in _split_lists(fold(text)) for piece in _split_periods(part)]
    return [(piece, " ".join(_words(piece))) for piece in pieces if piece.strip()]


def _words(sentence: str) -> list[str]:
    """The words in lower case. A number keeps its decimal point and the letters attached to it."""
    text = sentence.lower()
    for pattern, replacement in _NUMBERS if _DIGIT.search(text) else ():
        text = pattern.sub(replacement, text)
    return _WORD.findall(text)


def _has_letter(text: str) -> bool:
    return any(character.isalpha() for character in text)


def fold(text: str) -> str:
    """The text with accents of Latin letters folded ("é" to "e") and Unicode compatibility forms unified.

    Other alphabets keep their marks, which distinguish letters there. Marks without a letter are removed.
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
    return unicodedata.normalize("NFC", "".join(kept))  # composes Hangul syllables and others again


def _as_decimal(fraction: re.Match[str]) -> str:
    """The value of a one-character fraction: "1½" becomes "1.5". Unicode normalisation would give "11/2"."""
    return f"{int(fraction[1] or 0) + unicodedata.numeric(fraction[2]):.6g}"


def _split_lists(text: str) -> list[str]:
    """Splits at the markers of a numbered list: "1." at the start, then "2.", and so on.

    A number at the end of a sentence ("grade 2.") is not a marker, because it does not continue the numbering.
    """
    parts, begin, expected = [], 0, 1
    for match in _LIST_MARKER.finditer(text):
        number = int(re.sub(r"\D", "", match.group()))
        end = match.start()  # of the text before the marker, without the blanks between them
        while end and text[end - 1].isspace():
            end -= 1
        at_start = not end or text[end - 1] in ".;:!?" or "\n" in text[end : match.start()]
        if (at_start and number in (expected, 1)) or (number == expected and expected > 1):
            parts.append(text[begin : match.start()])
            begin, expected = match.end(), number + 1
    parts.append(text[begin:])
    return parts


def _split_periods(text: str) -> list[str]:
    """Splits at the ends of sentences. Periods of decimals, abbreviations and initials do not end a sentence."""
    text = _SPACES.sub(_joined, text.strip())
    pieces, begin = [], 0
    for match in _BREAKS.finditer(text):
        if match.group() == "." and _is_abbreviation(text, begin, match.start()):
            continue
        pieces.append(text[begin : match.start()])
        begin = match.end()
    pieces.append(text[begin:])
    return pieces


def _joined(blanks: re.Match[str]) -> str:
    """A single line break inside a sentence is ignored; a blank line ends a paragraph."""
    breaks = blanks.group().count("\n")
    return blanks.group() if not breaks else " " if breaks == 1 else "\n"


def _is_abbreviation(text: str, begin: int, period: int) -> bool:
    """Whether the word before a period, in a sentence that starts at `begin`, is an abbreviation.

    It reads a few characters before the period and none twice: a text may have millions of periods.
    """
    start = period
    while start > begin and (text[start - 1].isalnum() or text[start - 1] in "_."):
        start -= 1
        if period - start > _LONGEST_ABBREVIATION:
            return False
    word, follows = text[start:period].lower(), _VISIBLE.search(text, period + 1)
    if follows is None:
        return False
    if word in _NUMBER_FOLLOWS:
        return follows.group().isdigit()
    if word in _TITLES:
        return True
    # "approx. 2 cm", "5 p.m. yesterday": the sentence goes on in lower case or with a number.
    return word in _ABBREVIATIONS and (follows.group().islower() or follows.group().isdigit())


def _release_sentences(text: str, stop: int | None = _RELEASE_WORDS_STOP) -> list[str]:
    """The sentences as cleaned by the published release."""
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
