"""Prompts without the words that do not localise, such as "small" or "unchanged": the data are prompts/modifiers.txt.

After KAF-Ground (2026), which drops such words from a query before it is asked.
"""

import functools
import pathlib
import re

LEXICON = pathlib.Path(__file__).parent / "prompts" / "modifiers.txt"


def pruned(prompt: str) -> tuple[str, tuple[str, ...]]:
    """A cleaned prompt without the words of the lexicon, and what was dropped in its order.

    A sentence of such words alone stays as it is, because there must be something to ask for.

    >>> pruned("small left pleural effusion. mild edema is unchanged")
    ('left pleural effusion. edema', ('small', 'mild', 'is unchanged'))
    """
    kept, dropped = [], list[str]()
    for sentence in prompt.split(". "):
        rest = " ".join(_modifiers().sub(" ", sentence).split())
        if re.search(r"[^\W\d_]", rest):
            dropped += [found.group().strip() for found in _modifiers().finditer(sentence)]
            kept.append(rest)
        else:
            kept.append(sentence)
    return ". ".join(kept), tuple(dropped)


@functools.cache
def _modifiers() -> re.Pattern[str]:
    """A pattern of all words and phrases, the longest first. A verb that one was said with goes with it."""
    lines = (line.strip().lower() for line in LEXICON.read_text(encoding="utf-8").splitlines())
    words = sorted({line for line in lines if line and not line.startswith("#")}, key=len, reverse=True)
    found = "|".join(r"\s+".join(map(re.escape, word.split())) for word in words)
    return re.compile(rf"(?<![\w-])(?:(?:is|are)\s+)?(?:{found})(?![\w-])")
