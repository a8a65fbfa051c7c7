"""How fast batches come: records to images, sampled sentences and tokens, on one core.

    python -m benchmarks.input_pipeline [--raw ../shared/data/cxr_pairs] [--vocabulary ../shared/data/vocab]

Without --raw the built-in phantoms are used. Prints examples per second of CPU time (what one core gives, whoever else
uses the machine) and per second of wall time, for each part and for all of it.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from configs.afloc import get_config
from data_pipelines.batches import config_tokenizer, training_batches
from data_pipelines.sources import RecordSource, open_source
from data_pipelines.tokens import load_tokenizer, tokenize


def measure(name: str, work: Callable[[], int], repeats: int = 3) -> None:
    """Prints the best of several runs of `work`, which returns how many examples it made."""
    cpu, wall = [], []
    for _ in range(repeats):
        started = time.perf_counter(), time.process_time()
        count = work()
        wall.append(count / (time.perf_counter() - started[0]))
        cpu.append(count / (time.process_time() - started[1]))
    print(f"{name:42s} {max(cpu):10,.0f} / s CPU {max(wall):10,.0f} / s wall")


def open_records(directory: Path, raw: Path | None) -> RecordSource:
    if raw is not None:
        return open_source("pairs", directory, "train", raw=raw)
    return open_source("phantom", directory, "train", builder={"train": 512, "validation": 0, "test": 0})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, help="folder with pairs.csv; without it: phantoms")
    parser.add_argument("--vocabulary", type=Path, help="folder with vocab.txt; without it: learned from the reports")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=16)
    given = parser.parse_args()
    config = get_config()
    config.training.batch_size = given.batch_size
    with tempfile.TemporaryDirectory() as directory:
        source = open_records(Path(directory), given.raw)
        tokenizer = load_tokenizer(given.vocabulary) if given.vocabulary else config_tokenizer(source, config)
        texts = [text for text in source.texts() if text]
        words = np.mean([len(text.split()) for text in texts])
        print(f"{len(source)} records, {words:.0f} words a report, batches of {given.batch_size}")
        measure("read records", lambda: sum(1 for _ in source))
        measure("tokenize whole reports", lambda: len(tokenize(tokenizer, texts, 97)["word_count"]))
        long = [" ".join((text.replace(".", "") + " normal" * 40).split()[:40]) for text in texts]
        measure("tokenize reports of 40 words", lambda: len(tokenize(tokenizer, long, 97)["word_count"]))
        for name, augmented in (("batches", False), ("batches with augmentation", True)):
            with config.unlocked():
                config.data.augment = augmented
            batches = training_batches(source, config, tokenizer)
            measure(name, lambda batches=batches: sum(len(batches.batch_at(s)["index"]) for s in range(given.steps)))


if __name__ == "__main__":
    main()
