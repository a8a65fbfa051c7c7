"""The prompts of a class in zero-shot classification, with the rules of the published release.

A prompt set is a JSON file, either of this package (`prompt_sets/`, listed in `SETS`) or a user's. It has one of two
forms:

    {"pneumonia": ["pneumonia in the left lung", ...], ...}          classes alone
    {"description": ..., "template": ..., "negative": ..., "fallback": ..., "multiclass": ..., "classes": {...}}

The value of a class is a list of positive phrases, or `{"positive": [...], "negative": [...]}`, or word lists
`severity`, `subtype` and `location`. With word lists every combination of words, put into the template, is a phrase.
"""

import itertools
import math
import os
import pathlib
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from afloc_jax.errors import UsageError, UserError
from data_pipelines.constants import CLASS_PROMPT

Phrases: TypeAlias = str | Sequence[str]
ClassPhrases: TypeAlias = Phrases | Mapping[str, Phrases] | None
"""The value of a class in a prompt set; None stands for the fallback phrase."""

WORD_LISTS = ("severity", "subtype", "location")  # in the order of the words in a phrase
MOST_PHRASES = 10_000  # of a class
TEMPLATE = "{severity} {subtype} {location}"
NEGATIVE = "no {class}. "
FALLBACK = CLASS_PROMPT.replace("{finding}", "{class}")
FOLDER = pathlib.Path(__file__).parent / "prompt_sets"
SETS = tuple(sorted(path.stem for path in FOLDER.glob("*.json")))
# Other names of classes in data sets. A set's entry under the class's own name is preferred to one under its synonym.
SYNONYMS = {
    "effusion": "pleural effusion",
    "pulmonary edema": "edema",
    "pulmonary fibrosis": "fibrosis",
    "infiltrate": "infiltration",
    "support devices": "device",
    "airspace opacity": "lung opacity",
}
_SET_KEYS = ("description", "template", "negative", "fallback", "multiclass", "classes")


@dataclass(frozen=True)
class PromptSet:
    """A prompt set. Names of classes are compared in lower case, with "_" as a space, then by `SYNONYMS`.

    Attributes:
        name: the name of the set, recorded beside results; empty where no set was given.
        classes: class -> phrases, positive and negative phrases, or word lists.
        template: the form of a phrase from word lists; fields {class}, {severity}, {subtype}, {location}.
        negative: the negative phrase of a class; field {class}.
        fallback: the positive phrase of a class that is not in `classes`; field {class}.
        multiclass: whether every image has exactly one of the classes (such as a tissue). Probabilities are then a
            softmax over the classes.

    >>> PromptSet().prompts("edema")
    (['Findings suggesting edema.'], ['no edema. '])
    >>> lists = {"edema": {"severity": ["mild", "severe"], "subtype": ["pulmonary edema"]}}
    >>> PromptSet(classes=lists).prompts("Pulmonary_Edema")
    (['mild pulmonary edema', 'severe pulmonary edema'], ['no Pulmonary Edema. '])
    """

    name: str = ""
    classes: Mapping[str, ClassPhrases] = field(default_factory=dict)
    template: str = TEMPLATE
    negative: str = NEGATIVE
    fallback: str = FALLBACK
    multiclass: bool = False

    def __post_init__(self) -> None:
        for key, fields in (("template", ("class", *WORD_LISTS)), ("negative", ("class",)), ("fallback", ("class",))):
            _check_template(self._where(key), getattr(self, key), fields)
        if not isinstance(self.multiclass, bool):
            raise UsageError(f"{self._where('multiclass')} is {self.multiclass!r}; it must be true or false")
        seen: dict[str, str] = {}
        for name in self.classes:
            if class_key(name) in seen:
                raise UsageError(f"{self._where('classes')}: {name!r} and {seen[class_key(name)]!r} are the same class")
            seen[class_key(name)] = name
            self.prompts(name)

    def prompts(self, name: str) -> tuple[list[str], list[str]]:
        """The positive and negative prompts of a class, such as "pneumonia".

        The negative prompt of "No finding" is "finding", unless the prompt file gives others.

        Raises UsageError: the name is empty, there is no phrase, or a key is unknown.

        >>> PromptSet().prompts("No finding")
        (['no finding'], ['finding'])
        """
        if not name.strip():
            raise UsageError("a class has an empty name; write what to look for, e.g. pneumonia")
        known = find_class(name, self.classes)
        given = None if known is None else self.classes[known]
        spoken = name.replace("_", " ")
        normal = class_key(name) == "no finding"
        absent = ["finding"] if normal else [self.negative.format_map({"class": spoken})]
        if given is None:
            return ["no finding"] if normal else [self.fallback.format_map({"class": spoken})], absent
        if not isinstance(given, Mapping):
            return _phrases(name, given), absent
        if set(given) <= {"positive", "negative"}:
            negative = _phrases(name, given["negative"]) if "negative" in given else absent
            return _phrases(name, given.get("positive")), negative
        if set(given) <= set(WORD_LISTS):
            words = [_phrases(name, given[key], empty_word=True) if given.get(key) else [""] for key in WORD_LISTS]
            if math.prod(map(len, words)) > MOST_PHRASES:
                raise UsageError(f"the words of class {name!r} make more than {MOST_PHRASES:,} phrases")
            phrases = []
            for choice in itertools.product(*words):
                filled = self.template.format_map({"class": spoken, **dict(zip(WORD_LISTS, choice, strict=True))})
                phrases.append(" ".join(filled.split()))
            return _phrases(name, list(dict.fromkeys(phrases))), absent
        raise UsageError(
            f"prompts of class {name!r} have keys {', '.join(sorted(map(str, given)))}; "
            f"use positive and negative, or {', '.join(WORD_LISTS)}"
        )

    def without_entry(self, classes: Sequence[str]) -> list[str]:
        """The classes that the set does not list; they get the fallback phrase.

        >>> PromptSet(classes={"edema": ["fluid"]}).without_entry(["Edema", "nodule"])
        ['nodule']
        """
        return [name for name in classes if find_class(name, self.classes) is None]

    def listing(self, classes: Sequence[str]) -> dict[str, dict[str, list[str]]]:
        """The positive and negative phrases of each class, to be recorded beside results.

        >>> PromptSet().listing(["edema"])
        {'edema': {'positive': ['Findings suggesting edema.'], 'negative': ['no edema. ']}}
        """
        return {name: dict(zip(("positive", "negative"), self.prompts(name), strict=True)) for name in classes}

    def _where(self, key: str) -> str:
        return f"prompt set {self.name}: {key}" if self.name else key


def read_prompt_set(given: str | os.PathLike[str] | None) -> PromptSet:
    """The prompt set in a file, or of that name in this package. None gives an empty set: fallback phrases only.

    Raises:
        UsageError: the file or set does not exist, is not JSON, or has unknown keys or unusable phrases.

    >>> SETS
    ('chest', 'dhmc_luad', 'plain', 'sicapv2', 'wsss4luad')
    >>> len(read_prompt_set("chest").prompts("pneumothorax")[0]) > 10  # phrases
    True
    """
    from afloc_jax.files import Path, read_json, user_path  # etils takes a tenth of a second, which --help has not

    if given is None:
        return PromptSet()
    path = user_path(given, "--prompts")
    if os.fspath(given) in SETS and not path.is_file():
        path = Path(FOLDER / f"{given}.json")
    try:
        if not path.exists():
            raise UsageError(f"--prompts {given}: No such file, and no set of that name; there are {', '.join(SETS)}")
        content = read_json(path)
    except UserError as error:
        raise error if isinstance(error, UsageError) else UsageError(f"--prompts {error}") from None
    if not isinstance(content, dict) or not content:
        raise UsageError(
            f'--prompts {given}: must be an object such as {{"pneumonia": ["pneumonia in the left lung"]}}'
        )
    if "classes" not in content:
        content = {"classes": content}
    unknown = sorted(set(content) - set(_SET_KEYS))
    if unknown:
        raise UsageError(f"--prompts {given}: unknown key {unknown[0]!r}; known: {', '.join(_SET_KEYS)}")
    if not isinstance(content["classes"], dict):
        raise UsageError(f"--prompts {given}: classes must be an object of class -> phrases")
    content.pop("description", None)
    try:
        return PromptSet(path.stem, **content)
    except UsageError as error:
        raise UsageError(f"--prompts {given}: {error}") from None


def _phrases(name: str, given: Phrases | None, empty_word: bool = False) -> list[str]:
    """The phrases of a list, without surrounding spaces. With `empty_word` one may be empty: the word is left out."""
    texts = [given] if isinstance(given, str) else given
    right = isinstance(texts, Sequence) and len(texts) > 0 and all(isinstance(text, str) for text in texts)
    if texts is None or not right or not (any if empty_word else all)(text.strip() for text in texts):
        raise UsageError(f"prompts of class {name!r} must be a list of at least one text, none of them empty")
    return list(texts)


def _check_template(where: str, template: str, fields: Sequence[str]) -> None:
    try:
        parsed = [field for field in string.Formatter().parse(template) if field[1] is not None]
        found = [f"{name}{'!' * bool(conversion)}{':' * bool(spec)}" for _, name, spec, conversion in parsed]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where} is {template!r}; it must be a text with {{{fields[0]}}} in it ({error})") from None
    wrong = [name for name in found if name not in fields]
    if wrong or not found:
        shown = ", ".join(f"{{{name}}}" for name in fields)
        raise UsageError(f"{where} {template!r} has {'field ' + repr(wrong[0]) if wrong else 'no field'}; use {shown}")


def class_key(name: str) -> str:
    """The form in which names of classes are compared: lower case, with "_" as a space."""
    return " ".join(name.replace("_", " ").lower().split())


def find_class(name: str, names: Iterable[str]) -> str | None:
    """The entry of `names` for this class: the same name (see `class_key`), else a synonym, else None."""
    by_key = {class_key(known): known for known in names}
    key = class_key(name)
    same = [key, SYNONYMS.get(key, key), *(other for other, main in SYNONYMS.items() if main == key)]
    return next((by_key[candidate] for candidate in same if candidate in by_key), None)
