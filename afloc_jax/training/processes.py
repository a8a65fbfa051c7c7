"""One run on several processes: how they connect, and how a process that failed ends without blocking the others.

On Cloud TPU (and GKE) and under Slurm JAX finds the other processes by itself. Elsewhere flags or environment variables
name them. With the variables, every process of a Kubernetes job can use the same command:

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
from jax.experimental import multihost_utils
from tqdm import tqdm

from afloc_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Rendezvous:
    """Arguments of jax.distributed.initialize. None leaves a value for JAX to find."""

    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    cluster_detection_method: str | None = None


def rendezvous(
    coordinator: str | None, processes: int | None, process: int | None, environment: Mapping[str, str]
) -> Rendezvous:
    """How this process reaches the others. Flags come before `environment`; JAX finds the rest.

    Where all three values are known, JAX looks for no cluster, and the process uses every device that it sees.

    Raises:
        UsageError: a value in `environment` is not a number, or a number is out of range.
    """
    coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS") or None
    if processes is None:
        processes = _number(environment, "JAX_NUM_PROCESSES")
    # JOB_COMPLETION_INDEX alone is not the process: in a TPU JobSet each slice counts from 0.
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


def check_alone(environment: Mapping[str, str]) -> None:
    """Refuses a process that its surroundings started as one of several; call it where --distributed is not given.

    Raises:
        UsageError: srun, JAX's own variable or the list of hosts of a TPU slice says so.
    """
    counts = {
        "SLURM_STEP_NUM_TASKS": _number(environment, "SLURM_STEP_NUM_TASKS"),
        "JAX_NUM_PROCESSES": _number(environment, "JAX_NUM_PROCESSES"),
        "TPU_WORKER_HOSTNAMES": len(environment.get("TPU_WORKER_HOSTNAMES", "").split(",")),
    }
    for name, count in counts.items():
        if count is not None and count > 1:
            raise UsageError(
                f"this is one of {count} processes ({name}), and each would train a model of its own: add --distributed"
            )


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Connects to the other processes; JAX sees the devices of all of them afterwards.

    Raises:
        UsageError: neither flags, nor environment variables, nor a cluster name the other processes.
    """
    others = rendezvous(coordinator, processes, process, os.environ)
    # JAX's preemption service would catch SIGTERM: a signal before the first step would be lost, and the exit hang.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**vars(others))
    except (ValueError, TypeError) as error:  # JAX raises these where a value is unknown
        raise UsageError(
            f"--distributed: {str(error).rstrip('.')}; no cluster (Cloud TPU, Slurm) was found, "
            "give --coordinator=HOST:PORT --processes=N --process=K"
        ) from error


def say(message: str) -> None:
    """Prints a line on stderr, once for all processes. A progress bar stays below it."""
    if jax.process_index() == 0:
        tqdm.write(message, file=sys.stderr)


def meet(name: str) -> None:
    """Waits until every process is here; `name` is the same on all of them."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def abandon(status: int) -> NoReturn:
    """Ends this process at once, with `status`, because it failed.

    A normal exit would wait for the other processes, which wait for this one. Without it they notice the end: at once
    if this is process 0 or if a connection breaks, else after JAX's heartbeat (100 s).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
