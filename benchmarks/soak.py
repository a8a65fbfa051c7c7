"""Kills one run of the demo's size by kind and moment, goes on each time, and compares with an undisturbed run.

    python -m benchmarks.soak --data DIR [--steps 80] [--kills 15] [--peers]

Prints a table: how each disturbed command ended, after how many seconds, and how many steps were lost, that is done
again by the next one. The exit status is 1 if the final weights differ in a bit from those of the undisturbed run.
--peers adds what two processes say when one of them is killed or stopped, and after how many seconds. DIR holds the
phantoms, which are drawn where they are missing. On two idle cores it takes about ten minutes.
"""

import argparse
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from afloc_jax.files import sha256_of

ROOT = Path(__file__).resolve().parents[1]
INTERVAL = 5  # steps between checkpoints
VALIDATION = 10
LIMIT = 1200  # seconds without an end after which a command counts as hanging; machines may be busy


class Command:
    """A running launch.py, the lines that it has printed, and when."""

    def __init__(self, workdir: Path, data: Path, steps: int, *more: str, cold: Path | None = None) -> None:
        cache = {"JAX_COMPILATION_CACHE_DIR": str(cold)} if cold else {}
        overrides = {
            "data.directory": data,
            "training.steps": steps,
            "training.validate_every": VALIDATION,
            "training.checkpoint_every": INTERVAL,
            "training.log_every": 1,
            "evaluation.bootstrap": 50,
        }
        command = [
            sys.executable,
            "launch.py",
            f"--config={ROOT / 'benchmarks/soak_config.py'}",
            f"--workdir={workdir}",
        ]
        command += [f"--config.{key}={value}" for key, value in overrides.items()]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | cache
        self.process = subprocess.Popen([*command, *more], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line.rstrip()))

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Whether the moment came before the end of the command."""
        until = time.monotonic() + LIMIT
        while self.process.poll() is None and time.monotonic() < until:
            if reached():
                return True
            time.sleep(0.005)
        return False

    def said(self, pattern: str) -> list[str]:
        """The first group of every line that has the pattern."""
        found = (re.search(pattern, line) for _, line in list(self.lines))
        return [match[1] for match in found if match]

    def end(self) -> int:
        """The exit status; the command is killed if it does not end."""
        try:
            status = self.process.wait(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._reader.join(5)
        return status


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """What is done to a command, and when.

    Attributes:
        kind: the signals, in order, and whether the newest checkpoint is damaged afterwards.
        moment: its name.
        pattern, times: the moment has come when so many lines have the pattern.
        file: or when this file of the workdir exists.
    """

    kind: str
    moment: str
    pattern: str = ""
    times: int = 1
    file: str = ""

    def has_come(self, command: Command, workdir: Path) -> bool:
        """Whether the moment has come."""
        if self.file:
            return any(workdir.glob(self.file))
        return len(command.said(f"({self.pattern})")) >= self.times

    def act(self, command: Command) -> None:
        """Sends the signals."""
        for name in self.kind.partition(" ")[0].split("+"):
            command.process.send_signal(signal.Signals[f"SIG{name}"])
            if name == "STOP":
                time.sleep(3)


STEP, SAVE = r"^step \d+ of", "saving in the background"
VALIDATE = r"^step \d*0 of"  # of every tenth step; its line comes just before the validation
DISTURBANCES = (
    Disturbance("TERM", "compilation", "^compiled programs are kept"),
    Disturbance("TERM", "step", STEP, 3),
    Disturbance("KILL", "step", STEP, 5),
    Disturbance("TERM", "validation", VALIDATE),
    Disturbance("INT", "save", SAVE),
    Disturbance("TERM", "evaluation", file="finished.json"),
    Disturbance("KILL and damage", "step", STEP, 7),
    Disturbance("KILL", "save", SAVE),
    Disturbance("STOP+CONT+TERM", "step", STEP, 3),
    Disturbance("INT", "validation", VALIDATE),
    Disturbance("TERM+TERM", "step", STEP, 2),
    Disturbance("STOP+KILL", "step", STEP, 7),
    Disturbance("KILL", "validation", VALIDATE),
    Disturbance("INT", "model", file=".model.writing-*"),
    Disturbance("KILL", "evaluation", file="finished.json"),
)


def damage_newest(workdir: Path) -> None:
    """Flips the last byte of a file of the newest sealed checkpoint."""
    newest = max(workdir.glob("checkpoints/*/manifest.json"), key=lambda path: int(path.parent.name)).parent
    path = max((newest / "state/d").iterdir(), key=lambda path: path.stat().st_size)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def disturb(data: Path, workdir: Path, steps: int, kills: int, cold: Path) -> list[list[str]]:
    """Disturbs one run so many times, then lets it finish; returns the rows of the table.

    A moment that does not come any more is marked as missed: those at the end of a run come last.
    """
    chosen = sorted(DISTURBANCES[:kills], key=lambda what: bool(what.file))
    rows: list[list[str]] = []
    reached = 0  # the last step that the command before had done
    for what in (*chosen, None):
        command = Command(workdir, data, steps, cold=cold if what is DISTURBANCES[0] else None)
        came = command.wait_until(lambda: what is None or what.has_come(command, workdir))  # noqa: B023
        began = time.monotonic()
        if came and what is not None:
            what.act(command)
        status = command.end()
        seconds = time.monotonic() - began
        if rows and reached:
            resumed = max(map(int, command.said(r"going on from step (\d+)") or ["0"]))
            rows[-1][-1] = str(max(reached - resumed, 0)) if command.said("(going on from|anew|starts at)") else "0"
        reached = max(map(int, command.said(r"^step (\d+) of") or command.said(r"going on from step (\d+)") or ["0"]))
        if what is None:
            print(f"the last command ended with {status}", file=sys.stderr)
            return rows
        if what.kind.endswith("damage"):
            damage_newest(workdir)
        rows.append([what.kind, what.moment if came else f"{what.moment} (missed)", str(status), f"{seconds:.1f}", "0"])
        print(rows[-1], file=sys.stderr)
    return rows


def free_port() -> int:
    """A port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def peers(data: Path, scratch: Path) -> list[list[str]]:
    """Kills and stops either of two processes after three steps; returns the rows of what the other one says."""
    rows = []
    for name in ("KILL", "STOP"):
        for victim in range(2):
            port, workdir = free_port(), scratch / f"{name}{victim}"
            more = ["--distributed", f"--coordinator=localhost:{port}", "--processes=2"]
            both = [Command(workdir, data, 60, *more, f"--process={index}") for index in range(2)]
            both[0].wait_until(lambda: len(both[0].said(f"({STEP})")) >= 3)  # noqa: B023
            began = time.monotonic()
            both[victim].process.send_signal(signal.Signals[f"SIG{name}"])
            other = both[1 - victim]
            status = other.end()
            told = [(at, line) for at, line in other.lines if at > began and "another process" in line]
            both[victim].process.kill()
            both[victim].end()
            seconds = f"{told[0][0] - began:.1f}" if told else "never"
            stack = any("stack trace" in line for _, line in other.lines)
            rows.append([name, str(victim), seconds, str(status), "yes" if stack else "no"])
            print(rows[-1], file=sys.stderr)
    return rows


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    if "--hostile" in sys.argv[1:]:  # hostile inputs by group: a table of its own, which needs no --data
        from benchmarks.hostile.table import report

        sys.exit(report())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--kills", type=int, default=len(DISTURBANCES), help="only the first kinds of a list")
    parser.add_argument("--peers", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if given.peers:
            rows = peers(given.data.absolute(), folder)
            print(table(["signal", "to process", "seconds until told", "exit status", "C++ stack"], rows))
            return
        undisturbed, disturbed = folder / "undisturbed", folder / "disturbed"
        assert Command(undisturbed, given.data.absolute(), given.steps).end() == 0
        rows = disturb(given.data.absolute(), disturbed, given.steps, given.kills, folder / "cold")
        print(table(["signal", "moment", "exit status", "seconds until the end", "lost steps"], rows))
        weights = [sha256_of(run / "model/model.safetensors") for run in (undisturbed, disturbed)]
    print(f"final weights equal bit for bit: {'yes' if weights[0] == weights[1] else 'NO'}")
    sys.exit(weights[0] != weights[1])


if __name__ == "__main__":
    main()
