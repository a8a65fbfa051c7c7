"""The time and the memory that the largest files take which the program reads, whatever is in them.

    python -m benchmarks.largest_files [WHAT ...]

Images have just under 170 million pixels. The table has as many cells as are allowed, none of which is like another.
The first JSON file is all lists, which take the most memory for their bytes; the second has run lengths. Each file is
read in a process of its own. Prints the size of the file, the seconds, and the peak of memory beyond that of the
process before.
"""

import itertools
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from afloc_jax.files import LARGEST_JSON, read_json
from afloc_jax.tables import MOST_CELLS, read_table
from data_pipelines.images import MOST_SCANS, read_image

SIDE = 13_000
IMAGES = {  # what it is -> (suffix, type of the pixels, channels)
    "PNG, 8 bits": (".png", np.uint8, 1),
    "PNG, 16 bits": (".png", np.uint16, 1),
    "PNG, colour": (".png", np.uint8, 3),
    "JPEG": (".jpg", np.uint8, 1),
    "JPEG, 64 scans": (".jpg", np.uint8, 1),
    "TIFF, float": (".tif", np.float32, 1),
}
TABLE, LISTS, RUNS = "CSV, 4 columns", "JSON, empty lists", "JSON, run lengths"


def _write(what: str, folder: str) -> None:
    """Writes the file. It is done in a process of its own, whose memory does not count."""
    if what in IMAGES:
        suffix, dtype, channels = IMAGES[what]
        pixels = np.zeros((SIDE, SIDE, channels), dtype)
        pixels[::7] = 100
        picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        picture.save(f"{folder}/file{suffix}", progressive="scans" in what)
        if "scans" in what:  # its last scan comes again and again
            data = Path(folder, f"file{suffix}").read_bytes()
            again = data[data.rfind(b"\xff\xda") : -2] * (MOST_SCANS - data.count(b"\xff\xda"))
            Path(folder, f"file{suffix}").write_bytes(data[:-2] + again + data[-2:])
    elif what == TABLE:
        with Path(folder, "file.csv").open("w") as file:
            file.write("a,b,c,d\n")
            file.writelines(f"{n}.png,{n}b,{n}c,{n}d\n" for n in range(MOST_CELLS // 5 - 1))
    else:
        text, count = ("[]", (LARGEST_JSON - 2) // 3) if what == LISTS else ("12345", (LARGEST_JSON - 2) // 6)
        with Path(folder, "file.json").open("w") as file:
            file.write("[")
            file.writelines(itertools.repeat(f"{text},", count - 1))
            file.write(f"{text}]")


def _read(what: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        maker = multiprocessing.get_context("spawn").Process(target=_write, args=(what, folder))
        maker.start()
        maker.join()
        (path,) = Path(folder).iterdir()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.perf_counter()
        read = read_image if what in IMAGES else read_table if what == TABLE else read_json
        read(path)
        seconds = time.perf_counter() - begun
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
        print(f"| {what} | {path.stat().st_size / 1e6:.1f} MB | {seconds:.1f} s | {peak:.1f} GB |", flush=True)


def main() -> None:
    print("| what | file | time | memory |\n|---|---|---|---|", flush=True)
    for what in sys.argv[1:] or (*IMAGES, TABLE, LISTS, RUNS):
        process = multiprocessing.get_context("spawn").Process(target=_read, args=(what,))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
