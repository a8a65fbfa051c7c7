"""Two commands at once, for benchmarks/soak.py: processes of one run, and rivals for one workdir."""

import re
import signal
import socket
import sys
import time
from pathlib import Path

from afloc_jax.files import sha256_of
from benchmarks.soak_commands import Command
from benchmarks.soak_kinds import STEP

PEERS = ["signal", "to process", "told after, s", "exit status of the other", "C++ stack"]
TOLD_WITHIN = {"KILL": 2.0, "STOP": 30.0}  # seconds
LAUNCHES = ["outcome", "pairs"]


def _free_port() -> int:
    """A port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def peers(config: Path, data: Path, scratch: Path) -> tuple[list[list[str]], bool]:
    """Kills and stops either of two processes after three steps.

    Returns the rows of what the other one says, and whether it was told in time each time, and without a C++ stack.
    """
    rows, kept = [], True
    for name in ("KILL", "STOP"):
        for victim in range(2):
            port, workdir = _free_port(), scratch / f"{name}{victim}"
            more = ["--distributed", f"--coordinator=localhost:{port}", "--processes=2"]
            both = [Command(config, workdir, data, 60, *more, f"--process={index}") for index in range(2)]
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
            kept &= bool(told) and told[0][0] - began <= TOLD_WITHIN[name] and status == 1 and not stack
            print(rows[-1], file=sys.stderr)
    return rows, kept


def launches(config: Path, data: Path, scratch: Path, count: int) -> tuple[list[list[str]], bool]:
    """Starts two commands in one workdir at the same moment, `count` times, every other time in one that exists.

    Returns the rows of what came of them, and whether each time one trained to the end and the other was refused or
    came after it.
    """
    outcomes: dict[str, int] = {}
    weights = ""
    for number in range(count):
        workdir = scratch / str(number)
        if number % 2:
            workdir.mkdir()
        both = [Command(config, workdir, data, 4) for _ in range(2)]
        statuses = sorted(command.end() for command in both)
        said = [line for command in both for _, line in command.lines]
        refused = [line for line in said if "another run has it" in line]
        trained = sha256_of(workdir / "model/model.safetensors") if (workdir / "model").exists() else ""
        weights = weights or trained
        names = all(re.search(rf"process ({both[0].process.pid}|{both[1].process.pid}) on ", line) for line in refused)
        left = [path.name for path in workdir.glob("*running.json*")]
        if trained != weights or not weights or left or not names:
            outcome = "LOST"
        elif statuses == [0, 2] and len(refused) == 1:
            outcome = "one trained, the other was refused with exit status 2"
        elif statuses == [0, 0] and any("already finished" in line for line in said):
            outcome = "one trained, the other came when it had finished"
        else:
            outcome = "LOST"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if outcome == "LOST":
            print(workdir, statuses, *said, sep="\n  ", file=sys.stderr)
    return [[outcome, str(found)] for outcome, found in outcomes.items()], "LOST" not in outcomes
