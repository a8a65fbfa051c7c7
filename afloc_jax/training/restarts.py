"""A run that is started again after a crash: launch.py with --max_restarts is the parent of the launch.py that trains.

The parent only waits, and leaves the devices to its child. Whether a child ended for good is told by its exit status.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from afloc_jax.files import Path
from afloc_jax.training import program
from afloc_jax.training.failures import NonFiniteError, StopSignal

PAUSE = 3.0  # seconds before a restart; the other processes of the run have noticed by then, and leave as well
_FINAL = (0, 2, NonFiniteError.exit_status, 130, 143)  # finished, a wrong call, a loss that is none, told to stop


def wait_for(child: subprocess.Popen[bytes], stop: StopSignal) -> int:
    """The exit status of a child that saves and ends if a signal is received; 128 + number if a signal killed it."""
    forwarded = False
    while True:
        try:
            status = child.wait(timeout=0.2)
            return status if status >= 0 else 128 - status
        except subprocess.TimeoutExpired:
            if stop.received and not forwarded:
                child.terminate()  # it saves and exits
                forwarded = True


def keep_running(command: Sequence[str], workdir: Path, most: int) -> int:
    """Runs a command, and again when it crashes, at most `most` times without a new checkpoint in between.

    Args:
        command: the command that trains.
        workdir: its working directory.
        most: how often.

    Returns:
        The last exit status of the command, or 128 + the number of a signal to this process.
    """
    restarts, saved = 0, _last_save(workdir)
    with StopSignal() as stop:
        while True:
            status = wait_for(subprocess.Popen(command), stop) if not stop.received else 0
            if stop.received:
                return stop.exit_status
            if status in _FINAL:
                return status
            now = _last_save(workdir)
            if now != saved:
                restarts, saved = 0, now
                command = [*command, "--nofrom_scratch"]  # there is something to go on from
            told = f"{program.name()}: the run ended {_how(status)}"
            if restarts == most:
                print(f"{told}; it was started again {most} times without a new checkpoint", file=sys.stderr)
                return status
            restarts += 1
            print(f"{told}; starting it again, {restarts} of {most} times without a new checkpoint", file=sys.stderr)
            until = time.monotonic() + PAUSE
            while time.monotonic() < until and not stop.received:
                time.sleep(0.1)


def _how(status: int) -> str:
    return f"by {signal.Signals(status - 128).name}" if status > 128 else f"with exit status {status}"


def _last_save(workdir: Path) -> str:
    """The note that is written when a checkpoint is sealed, which differs from one to the next; empty without one."""
    try:
        return str((workdir / "checkpoints.sealed.json").read_text())
    except OSError:
        return ""
