"""A vocabulary learned from training reports, without the words of few reports or few patients.

Every entry of a vocabulary can be read by whoever gets the model. A word that stands in the reports of one patient,
such as a name, must not become one. Words are therefore counted before pieces are learned, and pieces are learned from
the words that are left.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tokenizers import Tokenizer

from afloc_jax.errors import UserError
from afloc_jax.files import AnyPath, user_path
from afloc_jax.tables import read_text
from data_pipelines.reading import Records
from data_pipelines.tokens import LEARNED_VOCABULARY, SEPARATOR, SPECIAL_TOKENS, learn_from_counts, words_of

_LARGEST_LIST = 1 << 24  # bytes of a file of words


@dataclass(frozen=True)
class VocabularyRule:
    """Which words of the training reports are learned.

    Attributes:
        reports: in how many distinct reports a word must stand.
        patients: of how many patients.
        excluded: words that are never learned.
    """

    reports: int = 5
    patients: int = 3
    excluded: frozenset[str] = frozenset()


PRIVATE = VocabularyRule()  # for reports that may be private, the default


@dataclass(frozen=True)
class VocabularyAccount:
    """How a vocabulary was learned, for the model card: the rule, and the numbers of words by what became of them."""

    reports: int
    patients: int
    kept: int
    rare: int
    excluded: int

    def __str__(self) -> str:
        told = f"vocabulary: {self.kept:,} words of the training reports; left out are {self.rare:,} that stand in "
        told += f"fewer than {self.reports} reports or in those of fewer than {self.patients} patients"
        return told + (f", and {self.excluded:,} excluded ones" if self.excluded else "")

    @property
    def about(self) -> str:
        """What the model card says."""
        listed = f", and {self.excluded:,} that were listed" if self.excluded else ""
        return (
            "`vocab.txt` was learned from the training reports. It has words and pieces of words; each word stood in "
            f"at least {self.reports} distinct reports of at least {self.patients} patients (of reports, where the "
            f"table names no patients). {self.rare:,} rarer words were left out{listed}.\n\n"
            "**Frequent names may remain**, such as those of physicians, hospitals and cities. Read `vocab.txt` before "
            "this folder is shared. `launch.py --exclude_words=FILE` trains without the words in a file, one a line."
        )


class Learned(NamedTuple):
    """A learned vocabulary and how it was learned."""

    tokenizer: Tokenizer
    account: VocabularyAccount


def read_words(path: AnyPath) -> frozenset[str]:
    """The words in a text file, in lower case as reports are split into words; single letters are passed over.

    Raises UserError if the file cannot be read or has no word; the message shows none.
    """
    words = frozenset(word for word in words_in(path, "--exclude_words") if len(word) > 1)
    if not words:
        raise UserError(f"{path} has no word; write the words to leave out of the vocabulary, one a line")
    return words


def words_in(path: AnyPath, option: str) -> frozenset[str]:
    """The words in a text file that `option` names, as a learned vocabulary has them; there may be none.

    Raises UserError if the file cannot be read.
    """
    text = read_text(user_path(path, option), _LARGEST_LIST)
    return frozenset(word for line in text.splitlines() for word in words_of(line))


def learn_vocabulary(source: Records, rule: VocabularyRule = PRIVATE, size: int = LEARNED_VOCABULARY) -> Learned:
    """A vocabulary of at most `size` entries from the reports of `source`.

    A report is distinct by its study, or by its patient and text where no study is named. Where no patient is named,
    every distinct report counts as a patient.

    Raises UserError if the reports have no word, or if the rule leaves none.
    """
    words, characters = defaultdict[str, _Seen](_Seen), defaultdict[str, _Seen](_Seen)
    for row in range(len(source)):
        record = source[row]
        text = ". ".join(record.sentences)
        report = hash((record.patient, record.study or text))
        patient = hash(record.patient) if record.patient else report
        counts = Counter(words_of(text))
        for word, count in counts.items():
            words[word].add(count, report, patient, rule)
        for character in set().union(*counts):
            characters[character].add(1, report, patient, rule)
    kept = {word: seen.count for word, seen in words.items() if seen.is_kept(rule) and word not in rule.excluded}
    excluded = sum(word in rule.excluded for word in words)
    if words and not kept:
        raise UserError(
            f"cannot learn a vocabulary: no word of the training reports stands in {rule.reports} reports of "
            f"{rule.patients} patients; give config.model.text.tokenizer, or, where no word of the reports is "
            "private, lower config.data.vocabulary_reports and config.data.vocabulary_patients"
        )
    spelled = Counter[str]()  # rare words can still be written letter by letter
    for word, seen in words.items():
        spelled["".join(letter for letter in word if characters[letter].is_kept(rule))] += seen.count
    account = VocabularyAccount(rule.reports, rule.patients, len(kept), len(words) - len(kept) - excluded, excluded)
    return Learned(learn_from_counts(kept, size, spelled, rule.excluded), account)


@dataclass
class _Seen:
    """How often a word or character was counted, and as many of its reports and patients as the rule asks for."""

    count: int = 0
    reports: set[int] = field(default_factory=set)
    patients: set[int] = field(default_factory=set)

    def add(self, count: int, report: int, patient: int, rule: VocabularyRule) -> None:
        self.count += count
        if len(self.reports) < rule.reports:
            self.reports.add(report)
        if len(self.patients) < rule.patients:
            self.patients.add(patient)

    def is_kept(self, rule: VocabularyRule) -> bool:
        return len(self.reports) >= rule.reports and len(self.patients) >= rule.patients


def unseen_pieces(tokenizer: Tokenizer, reports: Iterable[Sequence[str]]) -> frozenset[str]:
    """The pieces of the vocabulary that the tokenizer gives for no word of the reports, each a list of sentences.

    Special tokens count as seen.

    >>> from data_pipelines.tokens import learn_tokenizer
    >>> tokenizer = learn_tokenizer(["left effusion"])
    >>> sorted(unseen_pieces(tokenizer, [["left"]]) & {"left", "effusion"})
    ['effusion']
    """
    return frozenset(tokenizer.get_vocab()) - seen_pieces(tokenizer, reports) - {*SPECIAL_TOKENS}


def seen_pieces(tokenizer: Tokenizer, reports: Iterable[Sequence[str]]) -> frozenset[str]:
    """The pieces that the tokenizer gives for a word of the reports, and the period that joins sentences."""
    words = {word for sentences in reports for sentence in sentences for word in sentence.split()}
    found = tokenizer.encode_batch(sorted(words | {SEPARATOR}), add_special_tokens=False)
    return frozenset(piece for encoding in found for piece in encoding.tokens)
