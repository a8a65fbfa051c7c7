"""One run on several processes: how they find each other, and how one that failed parts from the others.

On Cloud TPU (GKE too) and under Slurm JAX finds the others by itself. Elsewhere flags say where they are, or the
environment does, so that one command serves every process of a Kubernetes job:

    coordinator   --coordinator   JAX_COORDINATOR_ADDRESS   host:port of process 0
    processes     --processes     JAX_NUM_PROCESSES         how many
    process       --process       JOB_COMPLETION_INDEX      which one, set by Kubernetes in pods of an indexed job
"""

import dataclasses
import os
import sys
from collections.abc import Mapping
from typing import NoReturn

import jax
from orbax.checkpoint.multihost import get_barrier_sync_fn

from afloc_jax.errors import UsageError

# Processes that have no more to do wait for process 0, which evaluates; JAX's own wait at exit ends all after 300 s.
EVALUATION_MILLISECONDS = 7 * 24 * 3600 * 1000


@dataclasses.dataclass(frozen=True)
class Rendezvous:
    """Arguments of jax.distributed.initialize; None where JAX has to find a value itself."""

    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    cluster_detection_method: str | None = None


def rendezvous(
    coordinator: str | None, processes: int | None, process: int | None, environment: Mapping[str, str]
) -> Rendezvous:
    """Where the others are: as the flags say, then as `environment` says; the rest is for JAX to find.

    With all three known JAX looks for no cluster, and a process uses every device that it sees.

    Raises:
        UsageError: a number in `environment` is none, or a number is out of range.
    """
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS") or None
    if processes is None:
        processes = _number(environment, "JAX_NUM_PROCESSES")
    # An index alone says nothing: each slice of a TPU JobSet counts from 0.
    if process is None and processes is not None:
        process = _number(environment, "JOB_COMPLETION_INDEX")
    if processes is not None and processes < 1:
        raise UsageError(f"--processes = {processes}: must be at least 1")
    if process is not None and not 0 <= process < (processes or process + 1):
        raise UsageError(f"--process = {process}: must be from 0 to {(processes or 1) - 1}, one less than --processes")
    known = None not in (coordinator, processes, process)
    return Rendezvous(coordinator, processes, process, "deactivate" if known else None)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise UsageError(f"environment variable {name} = {text!r}: must be a whole number")
    return int(text)


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Meet the other processes; JAX sees all their devices afterwards.

    Raises:
        UsageError: neither flags, nor environment, nor a cluster say who the others are.
    """
    others = rendezvous(coordinator, processes, process, os.environ)
    # JAX's service takes SIGTERM for itself: a signal before the first step would be lost, and the end would hang.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**vars(others))
    except (ValueError, TypeError) as error:  # JAX's way to say that something is not known
        raise UsageError(
            f"--distributed: {str(error).rstrip('.')}; no cluster (Cloud TPU, Slurm) says so, "
            "give --coordinator=HOST:PORT --processes=N --process=K"
        ) from error


def wait_for_all() -> None:
    """Come back when every process has come here; no device takes part."""
    get_barrier_sync_fn()(key="all done", timeout_ms=EVALUATION_MILLISECONDS)


def abandon(status: int) -> NoReturn:
    """End this process at once, with `status`, because it failed.

    A normal exit would wait for the others, which wait for this one. So they see it gone: at once where process 0
    left or where a connection broke, and after JAX's heartbeat (100 s) otherwise.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
