"""The page under load: its memory, and whether it answers and ends meanwhile.

    python -m benchmarks.page_load --model runs/demo/model [--other MODEL2] [--uploads 50] [--slow 100] [--seconds 900]

`afloc serve` runs in processes of its own. All uploads begin at once, most with as many phrases as are allowed, every
fourth for a saved picture with the whole map coloured, every sixth for the picture at its original size; with `--other`
they ask two models in turn. The files are films (PNG of 16 bits, 3056 x 2544), mammograms (DICOM, 30 million pixels,
with a window), and every fifth the most hostile files that are known: colour at the limit of pixels, and a small file
of 13,000 x 13,000 pixels. The slow clients send a byte of a request a second, half of them of its head, half of a file
of 100 MB; one that is let go comes again. A request for the page is sent four times a second on a new connection. In
the end Ctrl-C is sent while the first of five more uploads is answered.

Prints the answers by status, the peak of the memory of both processes together (resident, sampled every 50 ms), the
times of the page, and the time from Ctrl-C to the end. The exit status is 1 if an upload had no answer, or a goal is
missed: 2 GB, and 1 s for the page and for Ctrl-C.
"""

import argparse
import collections
import io
import multiprocessing
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVarTuple

import numpy as np
import psutil
import pydicom
from PIL import Image

from afloc_jax.serve.limits import LIMITS

Given = TypeVarTuple("Given")
MEMORY, SECONDS = 2e9, 1.0  # the goals: bytes of both processes, and for the page and Ctrl-C
PHRASES = [f"small left effusion {number}" for number in range(LIMITS.texts)]


@dataclass(frozen=True)
class Load:
    """What was measured.

    Attributes:
        idle: bytes of memory of both processes before the load.
        peak: their largest sum under load.
        statuses: how often each status of HTTP was the answer to an upload.
        uploads_took: seconds from the first upload to the last answer.
        page: seconds of each request for the page meanwhile.
        ended_after: seconds from Ctrl-C to the end, while an upload was answered.
        exit_status: of the server.
    """

    idle: int
    peak: int
    statuses: dict[str, int]
    uploads_took: float
    page: list[float]
    ended_after: float
    exit_status: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--other", type=Path, help="a second model")
    parser.add_argument("--uploads", type=int, default=50)
    parser.add_argument("--slow", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=900, help="longest time for all uploads (default: 900)")
    given = parser.parse_args()
    sys.exit(
        not report([given.model, *([given.other] if given.other else [])], given.uploads, given.slow, given.seconds)
    )


def report(models: list[Path], uploads: int = 50, slow: int = 100, seconds: float = 900) -> bool:
    """Prints what was measured; returns whether it is within the goals."""
    found = measure(models, uploads, slow, seconds)
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(found.statuses.items()))
    print(f"{uploads} uploads at once, {slow} slow clients: {counts}; {found.uploads_took:.0f} s")
    print(f"memory: {found.idle / 1e9:.2f} GB idle, {found.peak / 1e9:.2f} GB at most")
    print(f"GET /: median {statistics.median(found.page):.3f} s, longest {max(found.page):.3f} s of {len(found.page)}")
    print(f"Ctrl-C: ended after {found.ended_after:.2f} s with exit status {found.exit_status}")
    all_answered = sum(found.statuses.values()) == uploads and {*found.statuses} <= {"200", "400"}
    return all_answered and found.peak < MEMORY and max(*found.page, found.ended_after) < SECONDS


def measure(models: list[Path], uploads: int, slow: int, seconds: float) -> Load:
    """Starts `afloc serve` and loads it. Ends it at the latest when all uploads have had so many seconds."""
    files = [_film(), _mammogram(), _film(), _film(), _colour(), _film(), _mammogram(), _film(), _film(), _bomb()]
    command = [sys.executable, "-m", "afloc_jax", "serve", *map(str, models), "--port", "0"]
    over = threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            several = [(files[k % len(files)], _address(k, len(models))) for k in range(max(uploads, 2))]
            return _load(server, several, uploads, slow, seconds, over)
        finally:
            over.set()
            server.kill()


def _load(
    server: "subprocess.Popen[str]",
    files: list[tuple[bytes, str]],
    uploads: int,
    slow: int,
    seconds: float,
    over: threading.Event,
) -> Load:
    found = re.search(r"http://127\.0\.0\.1:(\d+)/", server.stdout.readline() if server.stdout else "")
    if found is None:
        raise SystemExit("afloc serve did not start")
    port = int(found.group(1))
    memory: list[int] = []
    statuses: list[str] = []
    _begin(_watch_memory, server.pid, memory, over)
    ours, theirs = multiprocessing.Pipe()
    watcher = multiprocessing.get_context("spawn").Process(target=_watch_page, args=(port, theirs), daemon=True)
    watcher.start()  # in a process of its own, which the threads of the others do not hold up
    time.sleep(1)
    idle = max(memory)
    for number in range(slow):
        _begin(_dawdle, port, number % 2 == 0, over)
    began = time.monotonic()
    threads = [_begin(_upload, port, *one, statuses, seconds) for one in files[:uploads]]
    for thread in threads:
        thread.join(max(0.0, began + seconds - time.monotonic()))
    took, answered = time.monotonic() - began, dict(collections.Counter(statuses))
    ours.send("enough")
    page: list[float] = ours.recv()
    for _ in range(5):
        _begin(_upload, port, *files[1], [], seconds)
    time.sleep(2)
    server.send_signal(signal.SIGINT)
    began = time.monotonic()
    status = server.wait(60)
    ended = time.monotonic() - began
    return Load(idle, max(memory), answered, took, page, ended, status)


def _begin(work: Callable[[*Given], None], *given: *Given) -> threading.Thread:
    thread = threading.Thread(target=work, args=given, daemon=True)
    thread.start()
    return thread


def _watch_memory(process: int, memory: list[int], over: threading.Event) -> None:
    """The resident memory of the server and of the process that answers, as long as they are there."""
    server = psutil.Process(process)
    while not over.wait(0.05):
        total = 0
        try:
            for one in (server, *server.children(recursive=True)):
                total += one.memory_info().rss
        except psutil.Error:
            continue
        memory.append(total)


def _watch_page(port: int, pipe: Connection) -> None:
    """Asks for the page four times a second, until something is sent; then sends the seconds that it took."""
    times = []
    while not pipe.poll(0.25):
        began = time.monotonic()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
            answer.read()
        times.append(time.monotonic() - began)
    pipe.send(times)


def _dawdle(port: int, in_head: bool, over: threading.Event) -> None:
    """Sends a byte a second, and comes again when it is let go."""
    start = (
        b"GET / HTTP/1.1\r\n"
        if in_head
        else b"POST /picture HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n"
    )
    while not over.is_set():
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(start)
                while not over.wait(1):
                    client.sendall(b"x")
        except OSError:
            over.wait(0.5)


def _address(number: int, models: int) -> str:
    """What an upload asks."""
    if number % 4 == 2:
        asked = {"prompt": PHRASES[0], "threshold": -0.99, "lowest": 0, "highest": 1, "black": 20, "strength": 0.9}
        route, query = "overlay", [*asked.items()]
    elif number % 6 == 1:
        route, query = "picture", [("side", 1 << 20)]
    else:
        route, query = "localize", [("prompt", phrase) for phrase in PHRASES]
    return f"{route}?{urllib.parse.urlencode([*query, ('model', number % models + 1)])}"


def _upload(port: int, data: bytes, address: str, statuses: list[str], seconds: float) -> None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{address}", data, timeout=seconds) as answer:
            answer.read()
            statuses.append(str(answer.status))
    except urllib.error.HTTPError as refused:
        statuses.append(str(refused.code))
    except OSError as error:
        statuses.append(type(error).__name__)


def _noise(height: int, width: int) -> np.ndarray:
    """[height, width] uint16 with detector noise."""
    ramp = np.linspace(500, 3000, width)[None]
    return (ramp + np.random.default_rng(0).normal(0, 60, (height, width))).astype(np.uint16)


def _film() -> bytes:
    file = io.BytesIO()
    Image.fromarray(_noise(3056, 2544)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _mammogram() -> bytes:
    pixels, file = _noise(6000, 5000), io.BytesIO()
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME1", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth, dataset.RescaleSlope, dataset.RescaleIntercept = 1800, 1500, 1.25, -10
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _colour() -> bytes:
    file = io.BytesIO()
    side = int(LIMITS.pixels**0.5)
    Image.new("RGBA", (side, side), (90, 80, 70, 255)).save(file, "PNG")
    return file.getvalue()


def _bomb() -> bytes:
    file = io.BytesIO()
    Image.new("L", (13_000, 13_000), 90).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
