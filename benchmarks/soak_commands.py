"""A launch.py in a process of its own, and what it says, for benchmarks/soak.py."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INTERVAL = 5  # steps between checkpoints
VALIDATION = 10
LIMIT = 1200  # seconds without an end after which a command counts as hanging; machines may be busy

# Lines that a command may say at its start beside those of an undisturbed one.
_RESUMING = re.compile(r": going on from step|no checkpoint was saved before|, which is gone$")


class Command:
    """A running launch.py, the lines that it has printed, and when."""

    def __init__(
        self, config: Path, workdir: Path, data: Path, steps: int, *more: str, cold: Path | None = None
    ) -> None:
        cache = {"JAX_COMPILATION_CACHE_DIR": str(cold)} if cold else {}
        overrides = {
            "data.directory": data,
            "training.steps": steps,
            "training.validate_every": VALIDATION,
            "training.checkpoint_every": INTERVAL,
            "training.log_every": 1,
            "evaluation.bootstrap": 50,
        }
        command = [sys.executable, "launch.py", f"--config={config}", f"--workdir={workdir}"]
        command += [f"--config.{key}={value}" for key, value in overrides.items()]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"} | cache
        self.workdir = workdir
        self.began = time.monotonic()
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

    def has_workdir(self) -> bool:
        """Whether it is the owner of its workdir."""
        try:
            return bool(json.loads((self.workdir / "running.json").read_text())["process"] == self.process.pid)
        except (OSError, ValueError):
            return False

    def said(self, pattern: str) -> list[str]:
        """The first group of every line that has the pattern."""
        found = (re.search(pattern, line) for _, line in list(self.lines))
        return [match[1] for match in found if match]

    def last_step(self, pattern: str) -> int:
        """The largest number in the first groups of a pattern; 0 where no line has it."""
        return max(map(int, self.said(pattern)), default=0)

    def end(self) -> int:
        """The exit status; the command is killed if it does not end."""
        try:
            status = self.process.wait(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    def shapes(self) -> set[str]:
        """Its lines without numbers and the name of its workdir: what a command says when nothing disturbs it."""
        return {self._shape(line) for _, line in self.lines}

    def besides(self, ordinary: Iterable[str], since: float) -> list[str]:
        """The lines since a moment whose shape is not among the ordinary ones, without those of a resumed run."""
        known = set(ordinary)
        later = (line for at, line in self.lines if at >= since and not _RESUMING.search(line))
        return [line for line in later if self._shape(line) not in known]

    def _shape(self, line: str) -> str:
        return re.sub(r"\d+([.:,]\d+)*%?", "N", line.replace(str(self.workdir), "WORKDIR"))
