"""The speed of the input pipeline on one core: records to images, sampled sentences and tokens.

    taskset -c 0 python -m benchmarks.input_pipeline [--raw ../shared/data/cxr_pairs --vocabulary ../shared/data/vocab]

Without --raw the built-in phantoms are used. Prints examples per second of CPU time (what one core gives, whoever else
uses the machine) and per second of wall time, for each part and for all of it: medians of five runs. Batches come from
the few records as they are, and from as many rows as MIMIC-CXR has (the same records again and again): Grain's shuffle
takes 50 us to find a row among 512 and 3 us among 370,000.

    python -m benchmarks.input_pipeline --step_seconds 0.132 --cards 1 8 [--workers 2]

instead prints the share of the time that a loop waits for input, as `input_wait_fraction` of metrics.jsonl, where each
step takes that time on the devices of one host and --batch_size pairs for each card. The loop sleeps in the place of a
step. Batches come from two threads of one process, or from worker processes, on all cores that this process may use.
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
    print(f"{name:60s} {np.median(cpu):10,.0f} / s CPU {np.median(wall):10,.0f} / s wall")


def waiting_share(batches: BatchSource, step_seconds: float, steps: int) -> float:
    """The share of the time of `steps` steps that a loop waits for batches, after four steps to fill the buffer."""
    stream, waited, began = batches.iterate(), 0.0, 0.0
    for step in range(steps + 4):
        if step == 4:
            waited, began = 0.0, time.perf_counter()
        asked = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - asked
        time.sleep(step_seconds)
    return waited / (time.perf_counter() - began)


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
    parser.add_argument("--step_seconds", type=float, default=0.0, help="time of a step, for the share of waiting")
    parser.add_argument("--workers", type=int, default=0, help="worker processes, for that share")
    parser.add_argument("--cards", type=int, nargs="+", default=[1], help="cards of the host, for that share")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        source = open_records(Path(directory), given.raw)
        tokenizer = training_tokenizer(source, given.vocabulary or "")
        many = Repeated(source, ROWS)
        workers = given.workers
        choices = {
            "": DataSettings(workers=workers),
            " with augmentation": DataSettings(augment=True, workers=workers),
            " with augmentation on the device": DataSettings(augment=True, augment_on="device", workers=workers),
        }
        if given.step_seconds:
            for cards in given.cards:
                for name, settings in choices.items():
                    size = cards * given.batch_size
                    batches = training_batches(many, settings, tokenizer, batch_size=size, seed=1)
                    share = waiting_share(batches, given.step_seconds, given.steps)
                    print(f"{cards} cards, steps of {given.step_seconds} s{name}: {share:.2%} of the time waiting")
            return
        texts = [". ".join(record.sentences) for record in source if record.sentences]
        words = np.mean([len(text.split()) for text in texts])
        print(f"{len(source)} records, {words:.0f} words a report, batches of {given.batch_size}")
        measure("read records", lambda: sum(1 for _ in source))
        measure("tokenize whole reports", lambda: len(tokenize(tokenizer, texts, 97)["word_count"]))
        long = [" ".join((text.replace(".", "") + " normal" * 40).split()[:40]) for text in texts]
        measure("tokenize reports of 40 words", lambda: len(tokenize(tokenizer, long, 97)["word_count"]))
        batches = training_batches(source, DataSettings(), tokenizer, batch_size=given.batch_size, seed=1)
        measure("batches", partial(rows_of, batches, given.steps))
        for name, settings in choices.items():
            batches = training_batches(many, settings, tokenizer, batch_size=given.batch_size, seed=1)
            measure(f"batches of {ROWS:,} rows{name}", partial(rows_of, batches, given.steps))


if __name__ == "__main__":
    main()
