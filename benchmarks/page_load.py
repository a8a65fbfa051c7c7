"""The page under load: its memory, and whether it answers and ends meanwhile.

    python -m benchmarks.page_load --model runs/demo/model [--uploads 50] [--slow 100] [--seconds 900]

`afloc serve` runs in processes of its own. All uploads begin at once, each with as many phrases as are allowed: films
(PNG of 16 bits, 3056 x 2544), mammograms (DICOM, 30 million pixels, with a window), and every fifth the most hostile
files that are known: colour at the limit of pixels, and a small file of 13,000 x 13,000 pixels. The slow clients send a
byte of a request a second, half of them of its head, half of a file of 100 MB; one that is let go comes again. A
request for the page is sent four times a second on a new connection. In the end Ctrl-C is sent while the first of five
more uploads is answered.

Prints the answers by status, the peak of the memory of both processes together (resident, sampled every 50 ms), the
times of the page, and the time from Ctrl-C to the end.
"""

import argparse
import collections
import io
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
from pathlib import Path

import numpy as np
import psutil
import pydicom
from PIL import Image

from afloc_jax.serve.limits import LIMITS

PHRASES = [f"small left effusion {number}" for number in range(LIMITS.texts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--uploads", type=int, default=50)
    parser.add_argument("--slow", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=900, help="longest time for all uploads (default: 900)")
    given = parser.parse_args()
    files = [_film(), _mammogram(), _film(), _film(), _colour(), _film(), _mammogram(), _film(), _film(), _bomb()]
    command = [sys.executable, "-m", "afloc_jax", "serve", str(given.model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            _measure(server, files, given)
        finally:
            server.kill()


def _measure(server: "subprocess.Popen[str]", files: list[bytes], given: argparse.Namespace) -> None:
    found = re.search(r"http://127\.0\.0\.1:(\d+)/", server.stdout.readline() if server.stdout else "")
    if found is None:
        raise SystemExit("afloc serve did not start")
    port, over = int(found.group(1)), threading.Event()
    memory: list[int] = []
    times: list[float] = []
    statuses: list[str] = []
    watchers = [
        threading.Thread(target=_watch_memory, args=(server.pid, memory, over)),
        threading.Thread(target=_watch_page, args=(port, times, over)),
        *(threading.Thread(target=_dawdle, args=(port, number % 2 == 0, over)) for number in range(given.slow)),
    ]
    time.sleep(0.5)
    for thread in watchers:
        thread.start()
    time.sleep(1)
    print(f"idle: {max(memory) / 1e9:.2f} GB", flush=True)
    began = time.monotonic()
    uploads = [
        threading.Thread(target=_upload, args=(port, files[number % len(files)], statuses, given.seconds), daemon=True)
        for number in range(given.uploads)
    ]
    for thread in uploads:
        thread.start()
    for thread in uploads:
        thread.join(max(0.0, began + given.seconds - time.monotonic()))
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(collections.Counter(statuses).items()))
    print(f"{given.uploads} uploads at once, {given.slow} slow clients: {counts}; {time.monotonic() - began:.0f} s")
    print(f"peak memory: {max(memory) / 1e9:.2f} GB")
    print(f"GET /: median {statistics.median(times):.3f} s, longest {max(times):.3f} s of {len(times)}", flush=True)
    for _ in range(5):
        threading.Thread(target=_upload, args=(port, files[1], [], given.seconds), daemon=True).start()
    time.sleep(2)
    server.send_signal(signal.SIGINT)
    began = time.monotonic()
    server.wait(60)
    print(f"Ctrl-C: ended after {time.monotonic() - began:.2f} s with exit status {server.returncode}")
    over.set()
    for thread in watchers:
        thread.join(30)


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


def _watch_page(port: int, times: list[float], over: threading.Event) -> None:
    while not over.wait(0.25):
        began = time.monotonic()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                answer.read()
        except OSError:
            if over.is_set() or not times:
                continue
            return  # the server has been ended
        times.append(time.monotonic() - began)


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


def _upload(port: int, data: bytes, statuses: list[str], seconds: float) -> None:
    query = urllib.parse.urlencode([("prompt", phrase) for phrase in PHRASES])
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/localize?{query}", data, timeout=seconds) as answer:
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
    dataset = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
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
