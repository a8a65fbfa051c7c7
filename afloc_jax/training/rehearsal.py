"""A run on several processes of this machine: the rehearsal of a run on several hosts, before these are paid for.

Every process gets the same command with --distributed, the address of process 0 and its own number, as a cluster would
give them. The parent only waits, and shows what they say.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from afloc_jax.errors import UsageError
from afloc_jax.training.failures import StopSignal
from afloc_jax.training.slots import slots

PATIENCE = 60.0  # seconds for the others to end by themselves after one has failed, and after SIGTERM


def rehearse(command: Sequence[str], count: int) -> int:
    """Runs `count` processes of a command that trains, and waits for all of them.

    Lines of process k begin with "[k] ". When one fails, the others notice and end; those that do not get SIGTERM, then
    SIGKILL. SIGTERM or Ctrl-C to this process makes all of them save and end.

    Args:
        command: the command, without the flags of a process of several.
        count: how many processes.

    Returns:
        0 when all have ended well, else the exit status of the first that failed (128 + the number of a signal that
        killed it), or 128 + the number of a signal to this process.

    Raises:
        UsageError: JAX_PLATFORMS names devices that cannot be dealt out to so many processes.
    """
    variables = environments(count, os.environ)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    with StopSignal() as stop:
        children = []
        try:
            for process, environment in enumerate(variables):
                place = [f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={process}"]
                # In a session of its own, so that a terminal's Ctrl-C reaches it once, from here.
                child = subprocess.Popen(
                    [*command, "--distributed", *place],
                    env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )  # fmt: skip
                children.append(child)
            told = [reader for process, child in enumerate(children) for reader in _shown(process, child)]
            status = _wait(children, stop)
            for reader in told:
                reader.join(timeout=5)
        finally:
            for child in children:
                child.kill()
                child.wait()
    return stop.exit_status if stop.received else status


def environments(count: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """The variables of each process: without JAX_PLATFORMS the CPU, else its part of the devices that are named there.

    Raises:
        UsageError: there are fewer devices than processes.
    """
    if environment.get("JAX_PLATFORMS", "cpu") in ("", "cpu"):
        return [{**environment, "JAX_PLATFORMS": "cpu"} for _ in range(count)]
    parts = slots(count, environment)
    if any("XLA_PYTHON_CLIENT_MEM_FRACTION" in part.environment for part in parts):  # it would be shared
        raise UsageError(
            f"--rehearse={count}: there are fewer GPUs than processes; JAX_PLATFORMS=cpu rehearses without them"
        )
    return [{**environment, **part.environment} for part in parts]


def _shown(process: int, child: subprocess.Popen[bytes]) -> list[threading.Thread]:
    """Threads that pass on, line by line, what a process says."""

    def pass_on(said: IO[bytes], to: IO[str]) -> None:
        for line in said:
            to.write(f"[{process}] {line.decode(errors='replace').rstrip()}\n")
            to.flush()

    assert child.stdout is not None and child.stderr is not None
    pairs = ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
    threads = [threading.Thread(target=pass_on, args=pair, daemon=True) for pair in pairs]
    for thread in threads:
        thread.start()
    return threads


def _wait(children: Sequence[subprocess.Popen[bytes]], stop: StopSignal) -> int:
    """The status of the first process that failed, or 0, once all have ended. None is left behind."""
    status, since, sent = 0, 0.0, 0
    while True:
        ended = [child.poll() for child in children]
        failed = [code for code in ended if code]
        if failed and not status:
            status, since = failed[0] if failed[0] > 0 else 128 - failed[0], time.monotonic()
        if None not in ended:
            return status
        if stop.received and not since:
            since, sent = time.monotonic(), 1
            _send(children, signal.SIGTERM)
        if since and sent < 2 and time.monotonic() - since > PATIENCE:
            since, sent = time.monotonic(), sent + 1
            _send(children, signal.SIGTERM if sent == 1 else signal.SIGKILL)
        time.sleep(0.1)


def _send(children: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)
