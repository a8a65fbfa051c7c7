"""Token ids of texts, and the segment ids that merge pieces into words and words into sentences.

The tokenizer is a BERT WordPiece tokenizer of the `tokenizers` library. Segment ids are computed on the host, by array
operations over the whole batch; the compiled step then only sums segments (`afloc_jax.levels.TokenBatch`). Text is
always lower-cased: the vocabulary of Bio_ClinicalBERT is cased, but the published system gives it lower-case text.
"""

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Int32
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from afloc_jax.errors import UserError
from afloc_jax.files import Path, matching, read_regular
from afloc_jax.settings import Json

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # in this order in a learned vocabulary: [PAD] is 0
LEARNED_VOCABULARY = 4096  # default size of a learned vocabulary
TOKENIZER_FILE, VOCABULARY_FILE = "tokenizer.json", "vocab.txt"
LARGEST_TOKENIZER = 1 << 22  # bytes of such a file; that of multilingual BERT, with 119,547 entries, has 3 MB
_LONGEST_WORD = 1000  # letters of a word that is split into pieces, which takes the square of their number
_REQUIRED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_CONTINUATION = "##"
_DECIMAL = re.compile(r"\d\.(?=\d)")
SEPARATOR = "."  # between the sentences of a text, followed by a space
_REMEMBERED_SENTENCES = 2**16  # size of the cache, about 30 MB
_LEARNING_ALPHABET = 200  # distinct characters of a learned vocabulary; rarer ones become [UNK]


class TokenArrays(TypedDict):
    """B texts in L token slots each: the arrays of `afloc_jax.levels.TokenBatch`, which describes their values."""

    token_ids: Int32[np.ndarray, "B L"]
    word_ids: Int32[np.ndarray, "B L"]
    sentence_ids: Int32[np.ndarray, "B L"]
    word_count: Int32[np.ndarray, " B"]
    sentence_count: Int32[np.ndarray, " B"]


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer in a folder that holds `tokenizer.json` or `vocab.txt`, or in a file of that kind.

    Raises UserError if there is none, or if it is not a BERT WordPiece vocabulary with [PAD] at id 0.
    """
    path = Path(folder)
    inside = [path / TOKENIZER_FILE, path / VOCABULARY_FILE, *matching(path, f"*{VOCABULARY_FILE}")]
    candidates = [path] if path.is_file() else inside
    file = next((candidate for candidate in candidates if candidate.is_file()), None)
    if file is None:
        raise UserError(f"no tokenizer in {path}: expected tokenizer.json or vocab.txt (one token per line)")
    try:
        text = read_regular(file, LARGEST_TOKENIZER).decode()
        if file.suffix == ".json":
            tokenizer = Tokenizer.from_str(text)
            tokenizer.no_padding()  # `tokenize` cuts and pads, to a size that is not the file's
            tokenizer.no_truncation()
        else:
            tokenizer = from_vocabulary(text.rstrip("\n").split("\n"))
    except Exception as error:  # the library raises bare Exception for malformed JSON
        raise UserError(f"{file} is not a readable tokenizer: {error}") from error
    _check(tokenizer, file)
    # Text is always lower-cased, whatever the file says. Accents are removed if the file's own tokenizer removes them,
    # because its vocabulary expects that.
    strip_accents = getattr(tokenizer.normalizer, "strip_accents", None)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=strip_accents)
    return tokenizer


def learn_tokenizer(texts: Iterable[str], vocabulary_size: int = LEARNED_VOCABULARY) -> Tokenizer:
    """Learns a lower-case WordPiece vocabulary of at most `vocabulary_size` entries from all words of `texts`.

    Vocabularies of patients' reports are learned by `data_pipelines.vocabulary`, which leaves out rare words. Raises
    UserError if the texts have no word.
    """
    return learn_from_counts(Counter(word for text in texts for word in words_of(text)), vocabulary_size)


def words_of(text: str) -> list[str]:
    """The words of a text as a learned vocabulary has them: in lower case, with punctuation apart."""
    splitter = _splitter()
    normal = splitter.normalizer.normalize_str(text)
    return [word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normal)]


def learn_from_counts(
    counts: Mapping[str, int],
    vocabulary_size: int,
    spelled: Mapping[str, int] | None = None,
    without: frozenset[str] = frozenset(),
) -> Tokenizer:
    """Learns a vocabulary from words and how often they occur.

    The vocabulary does not depend on the order of the words. Marks on letters are kept, because cleaned text has only
    marks that distinguish letters. Raises UserError if there is no word.

    Args:
        counts: the words that pieces are learned from.
        vocabulary_size: the largest number of entries.
        spelled: the words whose characters are entries; None for those of `counts`.
        without: words that are no piece.
    """
    if not counts:
        raise UserError("cannot learn a vocabulary: the training reports hold no word")
    alphabet, continuations = _characters(spelled or counts)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        # Equally frequent pairs are merged in the order of their ids. The library would number the continuation
        # characters in the random order of a hash table; naming them here fixes their ids and so the vocabulary.
        special_tokens=[*SPECIAL_TOKENS, *continuations],
        continuing_subword_prefix=_CONTINUATION,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer = _empty(models.WordPiece(vocab={"[UNK]": 0}, unk_token="[UNK]"), strip_accents=False)
    tokenizer.train_from_iterator((word for word in sorted(counts) for _ in range(counts[word])), trainer)
    learned = set(tokenizer.get_vocab(with_added_tokens=False)) - set(SPECIAL_TOKENS)
    learned = {piece for piece in learned if piece.removeprefix(_CONTINUATION) not in without}
    rest = sorted(learned, key=lambda piece: (piece.startswith(_CONTINUATION), piece))
    return from_vocabulary([*SPECIAL_TOKENS, *rest], strip_accents=False)


@functools.cache
def _splitter() -> Tokenizer:
    return _empty(models.WordPiece(vocab={"[UNK]": 0}, unk_token="[UNK]"), strip_accents=False)


def save_tokenizer(tokenizer: Tokenizer, folder: str | os.PathLike[str]) -> None:
    """Writes tokenizer.json, vocab.txt and tokenizer_config.json, which `transformers.AutoTokenizer` reads."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(vocabulary, key=lambda piece: vocabulary[piece])
    if [vocabulary[piece] for piece in pieces] == list(range(len(pieces))):  # a vocab.txt cannot express gaps
        (target / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (target / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    config: dict[str, Json] = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    strip_accents = getattr(tokenizer.normalizer, "strip_accents", None)
    config |= {} if strip_accents is None else {"strip_accents": strip_accents}
    config |= {f"{name[1:-1].lower()}_token": name for name in SPECIAL_TOKENS}
    (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int, *, compatible: bool = False) -> TokenArrays:
    """The token ids of texts, and the ids of the words and sentences that tokens belong to.

    A word is a piece with the `##` pieces that follow it; sentences are separated by the word ".". A text that does not
    fit is cut and still ends with [SEP]. An empty text becomes [CLS] [SEP].

    Args:
        tokenizer: from `load_tokenizer` or `learn_tokenizer`.
        texts: B texts: cleaned sentences joined by ". ".
        max_tokens: L, token slots of each text, including [CLS] and [SEP].
        compatible: count valid words as the published release does, which does not count [UNK] although it has a slot.
            A report with an unknown word then loses its last word in the local loss.

    Raises UserError if `max_tokens` is below 3.

    >>> tokenizer = learn_tokenizer(["small left effusion. no pneumothorax"])
    >>> tokens = tokenize(tokenizer, ["no effusion. small"], max_tokens=8)
    >>> tokens["word_ids"].tolist(), tokens["word_count"].tolist()  # [CLS] no effusion . small [SEP], two of padding
    ([[0, 1, 2, 3, 4, 5, -1, -1]], [5])
    >>> tokens["sentence_ids"].tolist(), tokens["sentence_count"].tolist()  # of words: the period belongs to none
    ([[0, 1, 1, -1, 2, 3, -1, -1]], [3])
    """
    if max_tokens < 3:
        raise UserError(f"max_tokens is {max_tokens}; [CLS], one piece and [SEP] need at least 3")
    texts = list(texts)
    pieces = _pieces(tokenizer)
    token_ids = _pad(tokenizer.encode_batch_fast(texts, add_special_tokens=False), max_tokens, pieces)
    period = token_ids == pieces.period
    if not compatible:
        _unmark_decimal_points(tokenizer, texts, period)
    return _segments(token_ids, period, pieces, compatible)


class SentenceTokenizer:
    """`tokenize` with a cache of sentences, for reports whose sentences repeat.

    WordPiece splits one word at a time and a period is a word. The pieces of a report are therefore those of its
    sentences, with periods between them. `compatible` is that of `tokenize`.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, compatible: bool = False):
        self._tokenizer, self._max_tokens, self._compatible = tokenizer, max_tokens, compatible
        # Sentence -> its piece ids, and for each piece whether it is a period that separates sentences.
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, reports: Sequence[Sequence[str]]) -> TokenArrays:
        """The result of `tokenize` for B reports, each a list of sentences, joined by ". "."""
        known = self._lookup({SEPARATOR, *(sentence for report in reports for sentence in report)})
        separator = known[SEPARATOR]
        parts = [[known[sentence] for sentence in report] for report in reports]
        joined = [[piece for part in report for piece in (separator, part)][1:] for report in parts]
        lengths = np.array([sum(len(ids) for ids, _ in report) for report in joined])
        rows = np.repeat(np.arange(len(reports)), lengths)
        slots = 1 + np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        kept = slots <= self._max_tokens - 2

        pieces = _pieces(self._tokenizer)
        token_ids = np.zeros((len(reports), self._max_tokens), np.int32)
        period = np.zeros(token_ids.shape, bool)
        for array, which in ((token_ids, 0), (period, 1)):
            flat = [part[which] for report in joined for part in report]
            if flat:
                array[rows[kept], slots[kept]] = np.concatenate(flat)[kept]
        token_ids[:, 0] = pieces.cls
        token_ids[np.arange(len(reports)), np.minimum(lengths, self._max_tokens - 2) + 1] = pieces.sep
        return _segments(token_ids, period, pieces, self._compatible)

    def _lookup(self, sentences: set[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        known = {sentence: self._known[sentence] for sentence in sentences if sentence in self._known}
        missing = [sentence for sentence in sentences if sentence not in known]
        if not missing:
            return known
        encodings = self._tokenizer.encode_batch_fast(missing, add_special_tokens=False)
        pieces = _pieces(self._tokenizer)
        # No more pieces than a report has slots: one long sentence would make all rows as long.
        longest = min(self._max_tokens, max(len(encoding.ids) for encoding in encodings))
        token_ids = _pad(encodings, 2 + longest, pieces)
        period = token_ids == pieces.period
        if not self._compatible:
            _unmark_decimal_points(self._tokenizer, missing, period)
        for row, (sentence, encoding) in enumerate(zip(missing, encodings, strict=True)):
            used = slice(1, 1 + min(longest, len(encoding.ids)))
            known[sentence] = token_ids[row, used].copy(), period[row, used].copy()
        if len(self._known) + len(missing) > _REMEMBERED_SENTENCES:  # frequent sentences are soon in the cache again
            self._known = {}
        self._known.update((sentence, known[sentence]) for sentence in missing)
        return known


def _characters(counts: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """The characters of a learned vocabulary, and their continuation pieces ("##a"), both sorted."""
    frequency: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            frequency[character] += count
    frequency["."] += 1  # it joins sentences, also if no training text has more than one
    kept = sorted(frequency, key=lambda character: (-frequency[character], character))[:_LEARNING_ALPHABET]
    alphabet = sorted({*kept, "."})
    inner = {character for word in counts for character in word[1:]}
    return alphabet, [_CONTINUATION + character for character in alphabet if character in inner]


class _Pieces(NamedTuple):
    """The properties of a vocabulary of V entries that the segmentation needs."""

    starts_word: np.ndarray  # [V] bool: whether the piece is not a `##` piece
    bracketed: np.ndarray  # [V] bool: whether the piece begins with "[", as special tokens do
    period: int  # id of "."; -1 if the vocabulary has none
    cls: int
    sep: int


@functools.lru_cache(maxsize=8)  # building the table takes milliseconds, for every batch
def _pieces(tokenizer: Tokenizer) -> _Pieces:
    vocabulary = tokenizer.get_vocab()
    size = 1 + max(vocabulary.values())
    starts_word, bracketed = np.ones(size, bool), np.zeros(size, bool)
    for piece, index in vocabulary.items():
        starts_word[index] = not piece.startswith(_CONTINUATION)
        bracketed[index] = piece.startswith("[")
    return _Pieces(starts_word, bracketed, vocabulary.get(".", -1), vocabulary["[CLS]"], vocabulary["[SEP]"])


def _pad(encodings: Sequence, max_tokens: int, pieces: _Pieces) -> np.ndarray:
    """The array [B, L] of [CLS], pieces and [SEP] of every text, zero-padded; texts that do not fit are cut."""
    token_ids = np.zeros((len(encodings), max_tokens), np.int32)
    token_ids[:, 0] = pieces.cls
    for row, encoding in zip(token_ids, encodings, strict=True):
        ids = encoding.ids[: max_tokens - 2]
        row[1 : len(ids) + 1] = ids
        row[len(ids) + 1] = pieces.sep
    return token_ids


def _unmark_decimal_points(tokenizer: Tokenizer, texts: Sequence[str], period: np.ndarray) -> None:
    """Sets `period` [B, L] to False, in place, at decimal points, which do not separate sentences."""
    decimal = [row for row, text in enumerate(texts) if _DECIMAL.search(text)]
    if not decimal:
        return
    # Character offsets are needed only here; computing them takes longer than the tokens themselves.
    encodings = tokenizer.encode_batch([texts[row] for row in decimal], add_special_tokens=False)
    for row, encoding in zip(decimal, encodings, strict=True):
        points = {match.start() + 1 for match in _DECIMAL.finditer(texts[row])}
        for slot, (begin, _) in enumerate(encoding.offsets[: period.shape[1] - 2], start=1):
            if begin in points:
                period[row, slot] = False


def _segments(token_ids: np.ndarray, period_pieces: np.ndarray, pieces: _Pieces, compatible: bool) -> TokenArrays:
    """The segment ids of padded token ids. `period_pieces` [B, L] marks the periods that separate sentences."""
    length = token_ids.shape[1]
    slots = np.arange(length)
    # The last [SEP] ends the text, which could also contain the string "[SEP]".
    end = length - 1 - np.argmax(token_ids[:, ::-1] == pieces.sep, axis=1)
    used = slots <= end[:, None]
    starts = used & (pieces.starts_word[token_ids] | (slots <= 1) | (slots == end[:, None]))
    word_ids = np.where(used, np.cumsum(starts, axis=1) - 1, -1)
    last_slot = word_ids.max(axis=1)[:, None]  # the word slot of [SEP]

    rows, columns = np.nonzero(starts)
    words = np.zeros_like(token_ids)  # first piece of the word in each word slot
    words[rows, word_ids[rows, columns]] = token_ids[rows, columns]
    period = np.zeros_like(period_pieces)
    period[rows, word_ids[rows, columns]] = period_pieces[rows, columns]
    inside = (slots >= 1) & (slots < last_slot)  # word slots between [CLS] and [SEP]
    final = inside & (slots == last_slot - 1)
    period &= inside
    # As published, the word before [SEP] belongs to the last sentence even if it is a period.
    member = inside & (~period | final)
    after_break = np.zeros_like(period)
    after_break[:, 1:] = period[:, :-1]
    after_break[:, 1] = True
    opens = member & after_break
    if not compatible:
        # ". ." at the end: the second period belongs to the sentence before it, not to a sentence without a word.
        has_word = (inside & ~period).any(axis=1, keepdims=True)
        opens &= ~(final & period & has_word)
    sentence = np.cumsum(opens, axis=1)
    count = sentence.max(axis=1)
    sentence_ids = np.where(member, sentence, -1)
    sentence_ids[:, 0] = 0
    np.put_along_axis(sentence_ids, last_slot, count[:, None] + 1, axis=1)

    counted_by_release = (inside & ~pieces.bracketed[words]).sum(axis=1) + 1
    return TokenArrays(
        token_ids=np.ascontiguousarray(token_ids, np.int32),
        word_ids=np.ascontiguousarray(word_ids, np.int32),
        sentence_ids=np.ascontiguousarray(sentence_ids, np.int32),
        word_count=np.ascontiguousarray(counted_by_release if compatible else last_slot[:, 0], np.int32),
        sentence_count=np.ascontiguousarray(count + 1, np.int32),
    )


def _empty(model: models.WordPiece, strip_accents: bool | None) -> Tokenizer:
    """A tokenizer around a model. `strip_accents` None is BERT's rule, which removes all marks of lower-case text."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def from_vocabulary(pieces: Sequence[str], strip_accents: bool | None = None) -> Tokenizer:
    """The WordPiece tokenizer of a vocabulary in the order of its ids."""
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    model = models.WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    tokenizer = _empty(model, strip_accents)
    tokenizer.add_special_tokens([name for name in SPECIAL_TOKENS if name in vocabulary])
    return tokenizer


def _check(tokenizer: Tokenizer, path: Path) -> None:
    """Refuses a tokenizer whose ids would not be those of BERT, or which takes time or memory beyond its text."""
    missing = [name for name in _REQUIRED if tokenizer.token_to_id(name) is None]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: not a BERT WordPiece vocabulary")
    if tokenizer.token_to_id("[PAD]") != 0:
        raise UserError(f"{path}: [PAD] has id {tokenizer.token_to_id('[PAD]')}, must be 0 (the first line)")
    if not any(piece.startswith(_CONTINUATION) for piece in tokenizer.get_vocab()):
        raise UserError(f"{path} has no '##' piece: not a BERT WordPiece vocabulary")
    ids = tokenizer.get_vocab().values()
    if max(ids) >= LARGEST_TOKENIZER:
        raise UserError(f"{path}: an id of {max(ids):,}, beyond any vocabulary")
    if len(set(ids)) < len(ids):
        raise UserError(f"{path}: two entries have the same id")
    model = tokenizer.model
    if not isinstance(model, models.WordPiece):
        raise UserError(f"{path}: a {type(model).__name__} tokenizer; every model here reads BERT's WordPiece")
    if model.unk_token != "[UNK]" or model.continuing_subword_prefix != _CONTINUATION:
        raise UserError(f"{path}: unknown words must be [UNK] and pieces within words begin with {_CONTINUATION}")
    if model.max_input_chars_per_word > _LONGEST_WORD:
        raise UserError(f"{path}: max_input_chars_per_word is more than {_LONGEST_WORD:,}")
    if not isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer):
        raise UserError(f"{path}: its pre_tokenizer is not BERT's, which splits texts at blanks and punctuation")
