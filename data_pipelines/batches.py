"""Records to batches. The batch of a step is a pure function of the step, the config and the records.

Nothing is remembered between batches: resuming at step s means asking for batch s. The global batch is the same for
any number of processes: process p of P makes its p-th part, so that pairs that are neighbours on one process are
neighbours on several (contrast groups, batch statistics and dropout depend on the order).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from jaxtyping import Int64, UInt8
from tokenizers import Tokenizer

from afloc_jax.errors import UsageError, UserError
from data_pipelines.augment import augment
from data_pipelines.reading import Pair, Records
from data_pipelines.records import Record
from data_pipelines.settings import DataSettings, SentenceSampling
from data_pipelines.tokens import LEARNED_VOCABULARY, SentenceTokenizer, TokenArrays, learn_tokenizer, load_tokenizer

_READ_THREADS = 2  # batches made at the same time; reading and tokenizing leave the interpreter lock for long stretches
_PREFETCH = 4  # finished batches that wait


class Batch(TokenArrays):
    """What crosses from data to training: B rows of one process, S pixels the side of the square."""

    image: UInt8[np.ndarray, "B S S"]  # the padded square, one channel
    index: Int64[np.ndarray, " B"]  # row of the record in its source; -1 in rows that pad a validation batch


_KEYS = ("image", *TokenArrays.__annotations__, "index")


def training_batches(
    source: Records,
    data: DataSettings,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> "BatchSource":
    """Batches of an endless shuffled stream with sampled sentences.

    An epoch is `len(source) // batch_size` full batches of distinct records in a new order. The remainder, another one
    in each epoch, sits out, because a record that comes twice in a batch would be its own negative. Every draw of a
    record samples its sentences anew.

    Args:
        source: the training records.
        data: how records are drawn: sentences, augmentation, token slots, workers.
        tokenizer: reads the sentences.
        batch_size: rows of the global batch.
        seed: fixes order, sentences and augmentation.
        process_index, process_count: which rows of the global batch to make.

    Raises:
        UsageError: the batch size does not divide by the number of processes.
        UserError: fewer records than one batch holds.
    """
    _check_processes(batch_size, process_count)
    if batch_size > len(source):
        raise UserError(f"training.batch_size is {batch_size}, but there are only {len(source)} training records")
    epoch = len(source) // batch_size * batch_size
    draw = _Draw(data.sentences, data.augment)
    dataset = grain.MapDataset.source(_Rows(source)).seed(seed).shuffle()[:epoch].repeat().random_map(draw)
    collate = _Collate(tokenizer, data.max_tokens)
    batches = dataset.batch(batch_size // process_count, batch_fn=collate)[process_index::process_count]
    return BatchSource(batches, workers=data.workers, steps_per_epoch=epoch // batch_size)


def validation_batches(
    source: Records,
    data: DataSettings,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> "BatchSource":
    """Every record once, in order, with all its sentences: the same batches every time. Arguments as above.

    Every batch has `batch_size` rows. Where the records do not fill the last batch, they are dealt
    out evenly (a last batch of three pairs would have almost nothing to contrast) and padding rows follow: black image,
    empty text, `word_count` and `sentence_count` 0, `index` -1. They must take no part in a loss.
    """
    _check_processes(batch_size, process_count)
    if not len(source):
        raise UserError("there is no validation record")
    collate = _Collate(tokenizer, data.max_tokens)
    batches = _ValidationBatches(_Rows(source), collate, batch_size, process_index, process_count)
    return BatchSource(grain.MapDataset.source(batches), workers=0, steps_per_epoch=len(batches), endless=False)


def _check_processes(batch_size: int, process_count: int) -> None:
    if batch_size % process_count:
        raise UsageError(f"batch_size {batch_size} does not divide by {process_count} processes")


def training_tokenizer(source: Records, folder: str = "", vocabulary_size: int = LEARNED_VOCABULARY) -> Tokenizer:
    """The tokenizer of `folder`; without one it is learned from all sentences of `source`.

    Args:
        source: the training records.
        folder: holds tokenizer.json or vocab.txt.
        vocabulary_size: entries that a learned vocabulary has at most.
    """
    if folder:
        return load_tokenizer(folder)
    return learn_tokenizer((". ".join(source[row].sentences) for row in range(len(source))), vocabulary_size)


class BatchSource:
    """Batches by step. `batch_at` computes one; `iterate` runs ahead in threads or worker processes."""

    def __init__(self, batches: grain.MapDataset, *, workers: int, steps_per_epoch: int, endless: bool = True):
        self._batches, self._workers = batches, workers
        self.steps_per_epoch = steps_per_epoch
        self.endless = endless

    def __len__(self) -> int:
        """Batches until the stream ends (validation) or an epoch does (training)."""
        return self.steps_per_epoch

    def batch_at(self, step: int) -> Batch:
        """This process's rows of the batch of `step`."""
        if step < 0 or (not self.endless and step >= self.steps_per_epoch):
            raise IndexError(f"no batch {step}; there are {self.steps_per_epoch}")
        return self._batches[step]

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """Batches from `start_step` on, made ahead of their use: equal to batch_at(start_step), ...

        With `data.workers` processes the records are read and tokenized outside this process.
        """
        batches = self._batches[start_step:]
        options = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_PREFETCH)
        if not self._workers:
            yield from batches.to_iter_dataset(options)
            return
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, which only a program of absl has parsed
            flags.FLAGS.mark_as_parsed()
        per_worker = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
        for shared in batches.to_iter_dataset(options).mp_prefetch(per_worker):
            # Out of the workers' shared memory, which is taken back, into plain arrays in the documented order.
            yield Batch(**{name: np.array(shared[name]) for name in _KEYS})  # type: ignore[typeddict-item]

    def __iter__(self) -> Iterator[Batch]:
        return self.iterate(0)


def sample_sentences(
    sentences: Sequence[str], impression_count: int, mode: SentenceSampling, rng: np.random.Generator
) -> list[str]:
    """The sentences of one draw of a report.

    Args:
        sentences: all of them, the impression's first.
        impression_count: how many belong to the impression.
        mode: "subset": a random number of them, at least one, in random order (mode 1 of the published system);
            "impression": the impression as it stands, then a random subset of the findings (mode 2); "all": in order.
        rng: consumed.
    """
    if mode == "all" or not sentences:
        return list(sentences)
    kept = list(sentences[:impression_count]) if mode == "impression" else []
    rest = sentences[len(kept) :]
    if not rest:
        return kept
    count = int(rng.integers(0 if kept else 1, len(rest), endpoint=True))
    return kept + [rest[index] for index in rng.permutation(len(rest))[:count]]


class _Drawn(NamedTuple):
    """One row of a batch before its text is tokenized."""

    row: int  # number of the record in its source
    image: UInt8[np.ndarray, "S S"]
    sentences: list[str]


class _Rows:
    """Records with their index, as Grain reads them. A source that has `pair` decodes only what a batch needs."""

    def __init__(self, source: Records):
        self._source = source
        self._read: Callable[[int], Pair | Record] = getattr(source, "pair", source.__getitem__)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[int, Pair | Record]:
        return int(index), self._read(int(index))


class _Draw:
    """One draw of a record: image and text. Which random numbers it meets depends on its position in the stream."""

    def __init__(self, mode: SentenceSampling, augmented: bool):
        self._mode, self._augmented = mode, augmented

    def __call__(self, row: tuple[int, Pair | Record], rng: np.random.Generator) -> _Drawn:
        index, record = row
        chosen = sample_sentences(record.sentences, record.impression_count, self._mode, rng)
        image = augment(record.image, rng) if self._augmented else record.image
        return _Drawn(index, image, chosen)


class _Collate:
    """Rows to one batch; all texts of the batch are tokenized together."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int):
        self._tokenize = SentenceTokenizer(tokenizer, max_tokens)

    def __call__(self, rows: Sequence[_Drawn]) -> Batch:
        indices, images, reports = zip(*rows, strict=True)
        return {"image": np.stack(images), **self._tokenize(reports), "index": np.array(indices, np.int64)}


class _ValidationBatches:
    """The padded batches of `validation_batches`, by step."""

    def __init__(self, rows: _Rows, collate: _Collate, batch_size: int, process_index: int, process_count: int):
        self._rows, self._collate, self._batch_size = rows, collate, batch_size
        share = batch_size // process_count
        self._process = slice(process_index * share, (process_index + 1) * share)
        steps = -(-len(rows) // batch_size)
        self._bounds = [len(rows) * step // steps for step in range(steps + 1)]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, step: int) -> Batch:
        numbers = [*range(self._bounds[step], self._bounds[step + 1])]
        mine = [*numbers, *[-1] * (self._batch_size - len(numbers))][self._process]
        side = self._rows[0][1].image.shape[0]
        batch = self._collate([self._row(number, side) for number in mine])
        padding = batch["index"] < 0
        batch["word_count"][padding] = batch["sentence_count"][padding] = 0
        return batch

    def _row(self, number: int, side: int) -> _Drawn:
        if number < 0:
            return _Drawn(-1, np.zeros((side, side), np.uint8), [])
        index, record = self._rows[number]
        return _Drawn(index, record.image, record.sentences)
