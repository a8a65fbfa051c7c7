"""The speed of the input pipeline on one core: records to images, sampled sentences and tokens.

    taskset -c 0 python -m benchmarks.input_pipeline [--raw ../shared/data/cxr_pairs --vocabulary ../shared/data/vocab]

Without --raw the built-in phantoms are used. Prints examples per second of CPU time (what one core gives, whoever else
uses the machine) and per second of wall time, for each part and for all of it: medians of five runs. Batches come from
the few records as they are, and from as many rows as MIMIC-CXR has (the same records again and again): Grain's shuffle
takes 50 us to find a row among 512 and 3 us among 370,000.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from data_pipelines.batches import BatchSource, training_batches, training_tokenizer
from data_pipelines.prepared import open_source
from data_pipelines.reading import Pair, RecordSource
from data_pipelines.records import Record
from data_pipelines.settings import DataSettings
from data_pipelines.tokens import tokenize

ROWS = 370_000


class Repeated:
    """Records that are repeated until there are `rows` of them."""

    def __init__(self, source: RecordSource, rows: int):
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Record:
        return self._source[index % len(self._source)]

    def pair(self, index: int) -> Pair:
        return self._source.pair(index % len(self._source))


def measure(name: str, work: Callable[[], int], repeats: int = 5) -> None:
    """Prints the median of several runs of `work`, which returns how many examples it made, after one to warm up."""
    work()
    cpu, wall = [], []
    for _ in range(repeats):
        started = time.perf_counter(), time.process_time()
        count = work()
        wall.append(count / (time.perf_counter() - started[0]))
        cpu.append(count / (time.process_time() - started[1]))
    print(f"{name:46s} {np.median(cpu):10,.0f} / s CPU {np.median(wall):10,.0f} / s wall")


def open_records(directory: Path, raw: Path | None) -> RecordSource:
    if raw is not None:
        return open_source("pairs", directory, "train", raw=raw)
    return open_source("phantom", directory, "train", builder={"train": 512, "validation": 0, "test": 0})


def rows_of(batches: BatchSource, steps: int) -> int:
    """Rows of the first batches, which are made for it."""
    return sum(len(batches.batch_at(step)["index"]) for step in range(steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, help="folder with pairs.csv; without it: phantoms")
    parser.add_argument("--vocabulary", type=Path, help="folder with vocab.txt; without it: learned from the reports")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=16)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        source = open_records(Path(directory), given.raw)
        tokenizer = training_tokenizer(source, given.vocabulary or "")
        texts = [". ".join(record.sentences) for record in source if record.sentences]
        words = np.mean([len(text.split()) for text in texts])
        print(f"{len(source)} records, {words:.0f} words a report, batches of {given.batch_size}")
        measure("read records", lambda: sum(1 for _ in source))
        measure("tokenize whole reports", lambda: len(tokenize(tokenizer, texts, 97)["word_count"]))
        long = [" ".join((text.replace(".", "") + " normal" * 40).split()[:40]) for text in texts]
        measure("tokenize reports of 40 words", lambda: len(tokenize(tokenizer, long, 97)["word_count"]))
        many = Repeated(source, ROWS)
        for name, records, augmented in (
            ("batches", source, False),
            (f"batches of {ROWS:,} rows", many, False),
            (f"batches of {ROWS:,} rows with augmentation", many, True),
        ):
            settings = DataSettings(augment=augmented)
            batches = training_batches(records, settings, tokenizer, batch_size=given.batch_size, seed=1)
            measure(name, partial(rows_of, batches, given.steps))


if __name__ == "__main__":
    main()
