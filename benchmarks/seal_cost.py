"""What the seal of a model folder costs when it is loaded: with it, and without it, in turns.

    python -m benchmarks.seal_cost [--model runs/demo/model] [--repeats 9]

Without --model it is a folder of the published size with random weights. Files are in the page cache, where hashing is
most of the cost that it ever is. Prints medians and ranges, and the median of the ratios of each round.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from afloc_jax.inference.model import load
from afloc_jax.seals import SEAL
from benchmarks.full_size import write_model


def seconds(folder: Path) -> tuple[float, float]:
    """Seconds until a model is loaded, and until it has embedded one prompt, by when its files are verified."""
    began = time.perf_counter()
    model = load(folder)
    loaded = time.perf_counter()
    model.embed_texts(["left effusion"])
    return loaded - began, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = {side: Path(scratch) / side for side in ("sealed", "without")}
        source = given.model or write_model(Path(scratch) / "source")
        for folder in folders.values():
            shutil.copytree(source, folder)
        (folders["without"] / SEAL).unlink()
        for folder in folders.values():
            seconds(folder)
        rounds = [{side: seconds(folder) for side, folder in folders.items()} for _ in range(given.repeats)]
    for number, what in enumerate(("loaded", "first answer")):
        for side in folders:
            times = [one[side][number] for one in rounds]
            print(f"{what}, {side}: {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")
        ratios = [one["sealed"][number] / one["without"][number] for one in rounds]
        print(f"{what}, ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
