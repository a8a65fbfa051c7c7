"""Speed and memory of preparing raw images.

    python -m benchmarks.prepare_images --count 300 [--format jpg] [--workers 2]

The program generates `--distinct` images of 2,500 x 3,000 pixels with detector noise, links them to `--count` rows, and
prepares them like `afloc prepare pairs`. It prints the images per second, the CPU time per image, and the memory of the
process in the first and the last quarter.
"""

import argparse
import os
import resource
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np

from afloc_jax.settings import Json
from data_pipelines.prepared import prepare

HEIGHT, WIDTH = 3000, 2500


def radiograph(seed: int) -> np.ndarray:
    """An image [3000, 2500] uint8 of smooth shapes and noise, which compresses about as well as a radiograph."""
    rng = np.random.default_rng(seed)
    shapes = rng.normal(128, 50, (HEIGHT // 50, WIDTH // 50)).astype(np.float32)
    smooth = cv2.resize(shapes, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)


def make_folder(folder: Path, count: int, distinct: int, suffix: str) -> float:
    """Writes images and pairs.csv; returns the mean size of a file in megabytes."""
    (folder / "images").mkdir(parents=True)
    for number in range(min(count, distinct)):
        cv2.imwrite(str(folder / "images" / f"{number}.{suffix}"), radiograph(number))
    for number in range(distinct, count):
        os.link(folder / "images" / f"{number % distinct}.{suffix}", folder / "images" / f"{number}.{suffix}")
    rows = [f"{number}.{suffix},Small effusion {number}. No edema.,p{number % distinct}" for number in range(count)]
    (folder / "pairs.csv").write_text("\n".join(["image,text,patient", *rows]) + "\n")
    sizes = [path.stat().st_size for path in (folder / "images").iterdir()]
    return sum(sizes) / len(sizes) / 1e6


class Memory(threading.Thread):
    """The resident memory of this process, sampled while the build runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[float] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self.stopped.wait(0.1):
            self.samples.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--distinct", type=int, default=24, help="different images among them")
    parser.add_argument("--format", choices=("jpg", "png"), default="jpg")
    parser.add_argument("--workers", type=int, default=0, help="0: one per CPU")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        raw = Path(directory) / "raw"
        size = make_folder(raw, given.count, given.distinct, given.format)
        memory = Memory()
        before = resource.getrusage(resource.RUSAGE_SELF)
        started = time.perf_counter()
        memory.start()
        builder: dict[str, Json] = {"fractions": {"train": 1.0}}
        prepared = prepare("pairs", Path(directory) / "out", raw=raw, builder=builder, workers=given.workers)
        wall = time.perf_counter() - started
        memory.stopped.set()
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    built = sum(prepared.report.records.values())
    quarter = max(1, len(memory.samples) // 4)
    first, last = max(memory.samples[:quarter]), max(memory.samples[-quarter:])
    workers = given.workers or os.cpu_count()
    print(f"{built} images of {WIDTH} x {HEIGHT}, {given.format}, {size:.1f} MB, workers {workers}")
    print(f"{built / wall:.1f} images / s wall, {1000 * cpu / built:.0f} ms CPU an image, {cpu / wall:.2f} CPUs busy")
    print(f"memory: at most {first:.0f} MiB in the first quarter, {last:.0f} MiB in the last")


if __name__ == "__main__":
    main()
