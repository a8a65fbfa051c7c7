"""How the runs of a sweep are started: one after the other, or several at a time on the devices of this machine."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from afloc_jax.buckets import is_bucket
from afloc_jax.files import Path
from afloc_jax.training.slots import Slot, slots


class Started(Protocol):
    """A run that has been started."""

    def status(self) -> int | None:
        """Its exit status (128 + the number of the signal that killed it); None while it runs."""

    def stop(self) -> None:
        """Tells it to save and end."""


class Launcher(Protocol):
    """Starts runs, of which `most` may go on at a time."""

    most: int

    def start(self, command: Sequence[str], log: Path) -> Started:
        """Starts a command, whose output is appended to `log`. Raises OSError where that is not possible."""


class Here:
    """Starts runs as processes of this machine, each with a part of its devices.

    A run alone has the terminal, for its progress bar; without a terminal its log is shown as it grows. The output of
    several at a time is in their logs alone. Logs cannot grow in a bucket; there all write to the terminal.
    """

    def __init__(self, parallel: int, environment: Mapping[str, str]) -> None:
        """Raises UsageError where the devices cannot be dealt out to so many runs."""
        self.most = parallel
        self._slots = slots(parallel, environment)
        self._taken: dict[int, _Process] = {}

    def start(self, command: Sequence[str], log: Path) -> "_Process":
        number = next(index for index in range(self.most) if self._is_free(index))
        alone = self.most == 1
        target = None if is_bucket(log) or (alone and sys.stderr.isatty()) else log
        self._taken[number] = _Process(command, self._slots[number], target, shown=alone)
        return self._taken[number]

    def _is_free(self, number: int) -> bool:
        return number not in self._taken or self._taken[number].status() is not None


class _Process:
    """A run in a process of its own, which shares no compiled program, memory or flag with other runs."""

    def __init__(self, command: Sequence[str], slot: Slot, log: Path | None, shown: bool) -> None:
        environment = {**os.environ, **slot.environment}
        self._log = log if shown else None
        if log is None:
            self._child = subprocess.Popen(command, env=environment)
        else:
            with log.open("ab") as file:
                self._read = file.tell()
                self._child = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        if slot.cores:
            with contextlib.suppress(OSError):  # it has ended already, or may not be moved
                os.sched_setaffinity(self._child.pid, slot.cores)

    def status(self) -> int | None:
        code = self._child.poll()
        if self._log is not None:
            with self._log.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            self._read += len(new)
            sys.stderr.write(new.decode(errors="replace"))
        return code if code is None or code >= 0 else 128 - code

    def stop(self) -> None:
        self._child.terminate()


def launcher_of(workdir: Path, parallel: int, slurm: str | None) -> Launcher:
    """The launcher of a sweep.

    Args:
        workdir: the working directory of the sweep.
        parallel: --parallel, the number of runs at a time.
        slurm: --slurm, options of jobs; None to start the runs on this machine.

    Raises:
        UsageError: the devices cannot be dealt out so, or jobs cannot be submitted.
    """
    if slurm is None:
        return Here(parallel, os.environ)
    from afloc_jax.training import slurm as jobs  # submitit is an extra

    os.environ.update(jobs.environment_of_jobs(os.environ))
    return jobs.Slurm(workdir, jobs.options(slurm), parallel)


def last_line(log: Path) -> str:
    """The last line of a log, which is that of the error of a run that failed; empty without one."""
    try:
        lines = [line.strip() for line in log.read_bytes().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1].removeprefix("launch.py: ") if lines else ""
