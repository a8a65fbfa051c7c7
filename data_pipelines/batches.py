"""Batches from records. The batch of a step is a pure function of the step, the config and the records.

There is no state between batches: a run that resumes at step s reads batch s. The global batch and its order are the
same for any number of processes, because contrast groups, batch statistics and dropout depend on the order: process p
of P makes the p-th part of each batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NotRequired

import grain
import numpy as np
from absl import flags
from jaxtyping import Float, Float32, Float64, Int32, Int64, UInt8, UInt32
from tokenizers import Tokenizer

from afloc_jax.errors import UsageError, UserError
from data_pipelines.augment import augment, draw
from data_pipelines.features import FeatureArrays, FeatureFiles
from data_pipelines.hashes import HashArrays, text_hashes
from data_pipelines.negatives import MadeCaption, NegativeArrays, made_captions, negative_arrays, worded_alike
from data_pipelines.reading import Pair, Records
from data_pipelines.records import Record
from data_pipelines.settings import DataSettings, SentenceSampling
from data_pipelines.tokens import LEARNED_VOCABULARY, SentenceTokenizer, TokenArrays, load_tokenizer
from data_pipelines.vocabulary import PRIVATE, VocabularyRule, learn_vocabulary

_READ_THREADS = 2  # batches made at the same time; reading and tokenizing mostly run without the interpreter lock
_PREFETCH = 4  # finished batches kept ahead


class Batch(TokenArrays, HashArrays):
    """A batch, the only thing passed from data to training: B rows of one process, images of S x S pixels."""

    image: UInt8[np.ndarray, "B S S"]  # the padded square, one channel
    index: Int64[np.ndarray, " B"]  # row of the record in its source; -1 in rows that pad a validation batch
    # Numbers by which the training step augments each image, with `data.augment_on = "device"`.
    augmentation: NotRequired[Float32[np.ndarray, "B 6"]]
    # The captions that are hard negatives, with `loss.hard_negatives`.
    negative_token_ids: NotRequired[Int32[np.ndarray, "B n L"]]
    negative_word_ids: NotRequired[Int32[np.ndarray, "B n L"]]
    negative_sentence_ids: NotRequired[Int32[np.ndarray, "B n L"]]
    negative_word_count: NotRequired[Int32[np.ndarray, "B n"]]
    negative_sentence_count: NotRequired[Int32[np.ndarray, "B n"]]
    negative_hashes: NotRequired[UInt32[np.ndarray, "B n S 2 2"]]
    # The features of the images, with `data.features`.
    features_shallow: NotRequired[Float[np.ndarray, "B H1 W1 C1"]]
    features_deep: NotRequired[Float[np.ndarray, "B H2 W2 C2"]]
    features_whole: NotRequired[Float[np.ndarray, "B C3"]]


_TEXTS = *TokenArrays.__annotations__, *HashArrays.__annotations__
_ADDED = *NegativeArrays.__annotations__, *FeatureArrays.__annotations__
_KEYS = ("image", *_TEXTS, "index", "augmentation", *_ADDED)


def training_batches(
    source: Records,
    data: DataSettings,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    seed: int,
    hard_negatives: int = 0,
    features: FeatureFiles | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> "BatchSource":
    """Batches of an endless shuffled stream of records with sampled sentences.

    An epoch is `len(source) // batch_size` full batches of distinct records in a new order. The remaining records,
    others in each epoch, are left out, because a record that occurs twice in a batch would be its own negative. Each
    time a record is drawn, its sentences are sampled again.

    Args:
        source: the training records.
        data: how records are drawn: sentences, augmentation, token slots, workers.
        tokenizer: the tokenizer of the sentences.
        batch_size: rows of the global batch.
        seed: the seed of order, sentences, augmentation and hard negatives.
        hard_negatives: how many captions are made from each drawn one, see `data_pipelines.negatives`.
        features: features of the images, which the batch then holds too.
        process_index, process_count: which part of the rows of the global batch to make.

    Raises:
        UsageError: the number of processes does not divide the batch size.
        UserError: there are fewer records than rows in a batch.
    """
    _check_processes(batch_size, process_count)
    if batch_size > len(source):
        raise UserError(f"training.batch_size is {batch_size}, but there are only {len(source)} training records")
    epoch = len(source) // batch_size * batch_size
    drawn = _Draw(data.sentences, data.augment, data.augment_on == "device", hard_negatives)
    dataset = grain.MapDataset.source(_Rows(source)).seed(seed).shuffle()[:epoch].repeat().random_map(drawn)
    collate = _Collate(tokenizer, data, features)
    batches = dataset.batch(batch_size // process_count, batch_fn=collate)[process_index::process_count]
    return BatchSource(batches, workers=data.workers, steps_per_epoch=epoch // batch_size)


def validation_batches(
    source: Records,
    data: DataSettings,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    seed: int = 0,
    step: int = 0,
    features: FeatureFiles | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> "BatchSource":
    """Batches of every record once, in order, with all its sentences. See `training_batches` for the arguments.

    Every batch has `batch_size` rows. Where the records do not fill all batches, they are distributed evenly, because a
    last batch of three pairs would have almost no negatives. Padding rows follow in each batch: black image, empty
    text, `word_count` and `sentence_count` 0, `index` -1. Losses must leave them out.

    With `data.validation_sentences = "sampled"` each report gives the sentences that it draws at this `step` of the run
    with this `seed`. With `data.validation_drop_last` all batches are full, and the records left over are not seen.

    Raises:
        UsageError: the number of processes does not divide the batch size.
        UserError: there is no record, or none is seen.
    """
    _check_processes(batch_size, process_count)
    if not len(source):
        raise UserError("there is no validation record")
    if data.validation_drop_last and len(source) < batch_size:
        raise UserError(
            f"data.validation_drop_last: {len(source)} validation records do not fill a batch of {batch_size}"
        )
    collate, rows = _Collate(tokenizer, data, features), _Rows(source)
    mode: SentenceSampling = data.sentences if data.validation_sentences == "sampled" else "all"
    steps = len(rows) // batch_size if data.validation_drop_last else -(-len(rows) // batch_size)
    seen = steps * batch_size if data.validation_drop_last else len(rows)
    bounds = [seen * number // steps for number in range(steps + 1)]
    share = batch_size // process_count
    mine = slice(process_index * share, (process_index + 1) * share)
    batches = _ValidationBatches(rows, collate, batch_size, bounds, mine, _Sampling(mode, seed, step))
    return BatchSource(grain.MapDataset.source(batches), workers=0, steps_per_epoch=len(batches), endless=False)


def _check_processes(batch_size: int, process_count: int) -> None:
    if batch_size % process_count:
        raise UsageError(f"batch_size {batch_size} does not divide by {process_count} processes")


def training_tokenizer(
    source: Records,
    folder: str = "",
    vocabulary_size: int = LEARNED_VOCABULARY,
    rule: VocabularyRule = PRIVATE,
) -> Tokenizer:
    """The tokenizer of `folder`, or, where that is empty, one learned from the reports of `source`.

    Args:
        source: the training records.
        folder: a folder with tokenizer.json or vocab.txt.
        vocabulary_size: the largest number of entries of a learned vocabulary.
        rule: which words are learned.
    """
    if folder:
        return load_tokenizer(folder)
    return learn_vocabulary(source, rule, vocabulary_size).tokenizer


class BatchSource:
    """Batches by step. `batch_at` computes one batch; `iterate` computes ahead in threads or worker processes."""

    def __init__(self, batches: grain.MapDataset, *, workers: int, steps_per_epoch: int, endless: bool = True):
        self._batches, self._workers = batches, workers
        self.steps_per_epoch = steps_per_epoch
        self.endless = endless

    def __len__(self) -> int:
        """The number of batches of the stream (validation) or of an epoch (training)."""
        return self.steps_per_epoch

    def batch_at(self, step: int) -> Batch:
        """This process's rows of the batch of `step`."""
        if step < 0 or (not self.endless and step >= self.steps_per_epoch):
            raise IndexError(f"no batch {step}; there are {self.steps_per_epoch}")
        return self._batches[step]

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """The batches from `start_step` on, equal to batch_at(start_step), ..., computed ahead of their use.

        With `data.workers` above 0, worker processes read and tokenize the records.
        """
        batches = self._batches[start_step:]
        options = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_PREFETCH)
        if not self._workers:
            yield from batches.to_iter_dataset(options)
            return
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, which only absl programs have parsed
            flags.FLAGS.mark_as_parsed()
        per_worker = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
        for shared in batches.to_iter_dataset(options).mp_prefetch(per_worker):
            # Copied, because the workers' shared memory is reused; in the documented order of keys.
            keys = [name for name in _KEYS if name in shared]
            yield Batch(**{name: np.array(shared[name]) for name in keys})  # type: ignore[typeddict-item]

    def __iter__(self) -> Iterator[Batch]:
        return self.iterate(0)


def sample_sentences(
    sentences: Sequence[str], impression_count: int, mode: SentenceSampling, rng: np.random.Generator
) -> list[str]:
    """The sampled sentences of a report.

    `mode` is one of

        all                 all, in order
        subset              a random number of sentences, at least one, in random order
        impression          all of the impression, then a random subset of the findings, which may be empty
        release_subset      mode 1 of the published release: as subset, but never all, except of a single sentence
        release_impression  mode 2 of the published release: at least one of the findings in random order, if there
                            are any, then all of the impression

    Args:
        sentences: all sentences of the report, those of the impression first.
        impression_count: the number of sentences of the impression.
        mode: see above.
        rng: the random generator, which is advanced.
    """
    if mode == "all" or not sentences:
        return list(sentences)
    kept = list(sentences[:impression_count]) if mode.endswith("impression") else []
    rest = sentences[len(kept) :]
    if not rest:
        return kept
    fewest = 0 if kept and mode == "impression" else 1
    # The release draws the number by numpy.random.randint(1, n), which never gives n.
    most = max(1, len(rest) - 1) if mode == "release_subset" else len(rest)
    count = int(rng.integers(fewest, most, endpoint=True))
    drawn = [rest[index] for index in rng.permutation(len(rest))[:count]]
    return drawn + kept if mode == "release_impression" else kept + drawn


class _Drawn(NamedTuple):
    """One row of a batch before its text is tokenized."""

    row: int  # number of the record in its source
    image: UInt8[np.ndarray, "S S"]
    sentences: list[str]
    augmentation: Float64[np.ndarray, " 6"] | None = None  # what the training step has to do with the image
    negatives: Sequence[MadeCaption] = ()
    worded: Sequence[str] | None = None  # the sentences as they are read, if otherwise


class _Rows:
    """Records with their index, for Grain. A source with `pair` decodes only the fields that a batch needs."""

    def __init__(self, source: Records):
        self._source = source
        self._read: Callable[[int], Pair | Record] = getattr(source, "pair", source.__getitem__)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[int, Pair | Record]:
        return int(index), self._read(int(index))


class _Draw:
    """Draws image and text of a record. Its random numbers depend on the position in the stream."""

    def __init__(self, mode: SentenceSampling, augmented: bool, on_device: bool, negatives: int):
        self._mode, self._augmented, self._on_device, self._negatives = mode, augmented, on_device, negatives

    def __call__(self, row: tuple[int, Pair | Record], rng: np.random.Generator) -> _Drawn:
        index, record = row
        chosen = sample_sentences(record.sentences, record.impression_count, self._mode, rng)
        image, numbers = record.image, draw(rng) if self._augmented else None
        if numbers is not None and not self._on_device:
            image, numbers = augment(image, numbers), None
        # After the rest, so that a run with negatives draws the same sentences and augmentation as one without.
        if not self._negatives:
            return _Drawn(index, image, chosen, numbers)
        negatives = made_captions(chosen, record.sentences, self._negatives, rng)
        return _Drawn(index, image, chosen, numbers, negatives, worded_alike(chosen, rng))


class _Collate:
    """Makes a batch from rows; all texts of the batch are tokenized together."""

    def __init__(self, tokenizer: Tokenizer, data: DataSettings, features: FeatureFiles | None):
        self._tokenize = SentenceTokenizer(tokenizer, data.max_tokens, data.cleaning == "release")
        self._max_tokens, self._features = data.max_tokens, features

    def __call__(self, rows: Sequence[_Drawn]) -> Batch:
        indices, images, reports, numbers, negatives, worded = zip(*rows, strict=True)
        texts = self._tokenize([drawn if read is None else read for drawn, read in zip(reports, worded, strict=True)])
        hashes = text_hashes(reports, self._max_tokens)
        batch: Batch = {"image": np.stack(images), **texts, **hashes, "index": np.array(indices, np.int64)}
        if numbers[0] is not None:
            batch["augmentation"] = np.array(numbers, np.float32)
        if negatives[0]:
            batch.update(negative_arrays(negatives, self._tokenize, self._max_tokens))  # type: ignore[typeddict-item]
        if self._features:
            batch.update(self._features.rows(indices))  # type: ignore[typeddict-item]
        return batch


class _Sampling(NamedTuple):
    """How the sentences of validation reports are drawn: a function of the record, the seed and the step of the run."""

    mode: SentenceSampling
    seed: int
    step: int

    def __call__(self, number: int, record: Pair | Record) -> list[str]:
        rng = np.random.default_rng((self.seed, self.step, number))
        return sample_sentences(record.sentences, record.impression_count, self.mode, rng)


@dataclass(frozen=True)
class _ValidationBatches:
    """The padded batches of `validation_batches`, by step."""

    rows: _Rows
    collate: _Collate
    batch_size: int
    bounds: list[int]  # the first record of each batch, and the end of the last one
    mine: slice  # the rows of a batch that this process makes
    sampling: _Sampling

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, step: int) -> Batch:
        numbers = [*range(self.bounds[step], self.bounds[step + 1])]
        mine = [*numbers, *[-1] * (self.batch_size - len(numbers))][self.mine]
        side = self.rows[0][1].image.shape[0]
        batch = self.collate([self._row(number, side) for number in mine])
        padding = batch["index"] < 0
        batch["word_count"][padding] = batch["sentence_count"][padding] = 0
        return batch

    def _row(self, number: int, side: int) -> _Drawn:
        if number < 0:
            return _Drawn(-1, np.zeros((side, side), np.uint8), [])
        index, record = self.rows[number]
        return _Drawn(index, record.image, self.sampling(number, record))
