"""The time and the memory that the largest images take which the program reads.

    python -m benchmarks.largest_images

Each image of just under 170 million pixels is read in a process of its own. Prints the size of its file, the seconds,
and the peak of memory beyond that of the process before.
"""

import io
import multiprocessing
import resource
import time

import numpy as np
from PIL import Image

from data_pipelines.images import decode_image

SIDE = 13_000
KINDS = {  # what it is -> (pixels, format)
    "PNG, 8 bits": (np.uint8, 1, "PNG"),
    "PNG, 16 bits": (np.uint16, 1, "PNG"),
    "PNG, colour": (np.uint8, 3, "PNG"),
    "JPEG": (np.uint8, 1, "JPEG"),
    "TIFF, float": (np.float32, 1, "TIFF"),
}


def _encoded(kind: str) -> bytes:
    dtype, channels, form = KINDS[kind]
    pixels = np.zeros((SIDE, SIDE, channels), dtype)
    pixels[::7] = 100
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, form)
    return file.getvalue()


def _read(kind: str) -> None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    maker = context.Process(target=_send, args=(kind, sender))  # the memory of making it must not count
    maker.start()
    data = receiver.recv_bytes()
    maker.join()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    decode_image(data, "image")
    seconds = time.perf_counter() - begun
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    print(f"| {kind} | {len(data) / 1e6:.1f} MB | {seconds:.1f} s | {peak:.2f} GB |", flush=True)


def _send(kind: str, sender) -> None:
    sender.send_bytes(_encoded(kind))


def main() -> None:
    print("| image of 13,000 x 13,000 pixels | file | time | memory |\n|---|---|---|---|", flush=True)
    for kind in KINDS:
        process = multiprocessing.get_context("spawn").Process(target=_read, args=(kind,))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
