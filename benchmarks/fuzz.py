"""Coverage-guided fuzzing of every reader of files that come from strangers, with atheris.

    python -m benchmarks.fuzz [--seconds 60] [--target NAME] [--jobs N] [--findings runs/fuzz]

All targets together take the seconds, with their start. Each runs in processes of its own, within bounds of time and
memory for one input. Prints a table of executions and findings by target. A finding is an input for which a reader does
anything else than read it or refuse it in the program's own words (`readers.fault_of`), a crash, an input that
takes more than 10 s, or 2 GiB. Its file lies in the folder of findings, and beside it what happened; a file that is
moved to tests/kept/TARGET/ is read by `pytest` ever after. The exit status is 1 if anything was found.

atheris has builds for Linux on x86-64 and Python 3.11 to 3.13. Elsewhere nothing is fuzzed, and a line says so.
"""

import argparse
import base64
import hashlib
import importlib.util
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.hostile.readers import TARGETS, fault_of

ROOT = Path(__file__).resolve().parents[1]
SECONDS, MIB = 10, 2048  # of one input
LARGEST = 8192  # bytes of an input
MOST_FAULTS = 20  # of a process
ENDED = {70: "a hang", 71: "memory", 77: "a crash"}  # exit statuses of libFuzzer
SHOWN = 3000  # bytes of a finding that the output shows, so that it can be kept from the log of a machine that is gone


@dataclass
class Outcome:
    """What came of a target: executions, seconds, and the files of its findings by what happened."""

    executions: int
    seconds: float
    findings: dict[Path, str]


def kept_folder(name: str) -> Path:
    """The folder of the kept findings of a target."""
    return ROOT / "tests/kept" / name.replace(" ", "_")


def _escaped(word: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word.encode("latin-1"))


def fuzz_here(name: str, folder: Path, findings: Path, until: float) -> NoReturn:
    """Fuzzes a target in this process, which ends with it, until a time of the clock."""
    import atheris

    # The most memory so far, which Linux hands on from the process that started this one, and libFuzzer counts.
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    target = TARGETS[name]
    seeds, corpus = folder / "seeds", folder / "corpus"
    for place in (seeds, corpus, folder / "read"):
        place.mkdir(exist_ok=True)
    with atheris.instrument_imports(include=["afloc_jax", "data_pipelines"]):
        reader = target.reader(folder / "read")
        for number, seed in enumerate(target.seeds()):
            (seeds / str(number)).write_bytes(seed)
    (folder / "words").write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
    found = set[str]()

    def once(data: bytes) -> None:
        fault, told = fault_of(reader, data)
        if fault and fault not in found and len(found) < MOST_FAULTS:
            found.add(fault)
            file = findings / f"fault-{hashlib.sha256(fault.encode()).hexdigest()[:12]}"
            file.write_bytes(data)
            file.with_suffix(".txt").write_text(f"{fault}\n\n{told}")

    flags = {
        "max_total_time": max(1, int(until - time.time())),
        "timeout": SECONDS,
        "rss_limit_mb": MIB + inherited,
        "max_len": LARGEST,
        "artifact_prefix": f"{findings}/",
        "dict": folder / "words",
        "print_final_stats": 1,
        "close_fd_mask": 3,  # libraries write about damaged images
    }
    arguments = [f"-{flag}={value}" for flag, value in flags.items()]
    places = [place for place in (corpus, seeds, kept_folder(name)) if place.is_dir()]
    atheris.Setup([sys.argv[0], *arguments, *map(str, places)], once)
    atheris.Fuzz()
    sys.exit(0)


def fuzz(name: str, seconds: float, findings: Path) -> Outcome:
    """Fuzzes a target in processes of its own: after a crash or a hang another one goes on."""
    begun = time.time()
    outcome = Outcome(0, 0, {})
    place = findings / name.replace(" ", "_")
    place.mkdir(parents=True, exist_ok=True)
    before = set(place.iterdir())
    while True:
        with tempfile.TemporaryDirectory(prefix="afloc_fuzz_") as folder:
            flags = [f"--target={name}", f"--folder={folder}", f"--findings={place}", f"--until={begun + seconds - 1}"]
            log = Path(folder, "log")
            with log.open("wb") as file:
                command = [sys.executable, "-m", "benchmarks.fuzz", *flags]
                status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, env=_environment()).returncode
            said = log.read_text(errors="replace")
        counts = re.findall(r"number_of_executed_units: (\d+)", said)
        outcome.executions += int(counts[-1]) if counts else 0
        new = [path for path in sorted(place.iterdir()) if path not in before and path.suffix != ".txt"]
        for path in new:
            beside = path.with_suffix(".txt")
            outcome.findings.setdefault(path, beside.read_text() if beside.exists() else ENDED.get(status, "a crash"))
        if status and not new:
            raise RuntimeError(f"fuzzing {name} ended with status {status}:\n{said[-3000:]}")
        if not status or begun + seconds - time.time() < SECONDS:
            outcome.seconds = time.time() - begun
            return outcome


def _environment() -> dict[str, str]:
    quiet = {"OPENCV_LOG_LEVEL": "SILENT", "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **quiet}


def report(name: str, outcome: Outcome) -> str:
    """The row of a target."""
    return f"| {name} | {outcome.executions:,} | {outcome.seconds:.0f} s | {len(outcome.findings)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fuzzes the readers of files that come from strangers.")
    parser.add_argument("--seconds", type=float, default=60, help="of all targets together, with their start")
    parser.add_argument("--target", choices=TARGETS, help="one target instead of all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at once")
    parser.add_argument("--findings", type=Path, default=Path("runs/fuzz"), help="folder for what is found")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the process of a target
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        print(
            "NOT FUZZED: atheris is not installed, which has builds for Linux on x86-64 and Python 3.11 to 3.13 alone",
            file=sys.stderr,
        )
        return 0
    if given.folder:
        fuzz_here(given.target, given.folder, given.findings, given.until)
    names = [given.target] if given.target else list(TARGETS)
    jobs = max(1, min(given.jobs, len(names)))
    share = given.seconds / math.ceil(len(names) / jobs)
    print("| target | executions | time | findings |\n|---|---|---|---|", flush=True)
    found: dict[Path, str] = {}
    with ThreadPoolExecutor(jobs) as threads:
        outcomes = threads.map(lambda name: fuzz(name, share, given.findings.resolve()), names)
        for name, outcome in zip(names, outcomes, strict=True):
            print(report(name, outcome), flush=True)
            found |= outcome.findings
    for path, told in found.items():
        data = path.read_bytes()
        shown = base64.b64encode(data).decode() if len(data) <= SHOWN else f"{len(data):,} bytes"
        print(f"\n{path}\n{told.strip()}\nin base 64: {shown}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
