"""One run on several processes: how they connect, and how a process that failed ends without blocking the others.

On Cloud TPU (and GKE) and under Slurm JAX finds the other processes by itself. Elsewhere flags or environment variables
name them. With the variables, every process of a Kubernetes job can use the same command:

    coordinator   --coordinator   JAX_COORDINATOR_ADDRESS   host:port of process 0
    processes     --processes     JAX_NUM_PROCESSES         how many
    process       --process       JOB_COMPLETION_INDEX      which one, set by Kubernetes in pods of an indexed job
"""

import contextlib
import dataclasses
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
from jax.experimental import multihost_utils
from tqdm import tqdm

from afloc_jax.errors import UsageError
from afloc_jax.training import peers, program
from afloc_jax.training.leaving import before_leaving, leave
from afloc_jax.training.relay import host_and_port, relay

JOIN_PATIENCE = 300  # seconds that a process waits for the others at the start
# Variables that hold the number of processes (of slices, for the last): those of srun, JAX, Open MPI and Cloud TPU.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
_WATCH = "afloc_jax/watch"  # the key under which process 0 says how it is reached
_watches: list[peers.Watch] = []  # this process's, if it is one of several


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


def check_alone(environment: Mapping[str, str], arguments: Sequence[str] = ()) -> None:
    """Refuses a process that its surroundings started as one of several; call it where --distributed is not given.

    Args:
        environment: the variables to read.
        arguments: the words of the command line behind the program, which the error repeats.

    Raises:
        UsageError: srun, mpirun, JAX's own variable, the hosts or slices of TPUs, or their runtime says so.
    """
    counts = {name: _number(environment, name) for name in _COUNTS}
    counts["TPU_WORKER_HOSTNAMES"] = len(environment.get("TPU_WORKER_HOSTNAMES", "").split(","))
    name = next((name for name, count in counts.items() if count is not None and count > 1), None)
    if name is None:
        # A virtual machine of Cloud TPU has no such variable. There the runtime of the chips knows all hosts.
        name, counts = "JAX", {"JAX": jax.process_count()}
    count = counts[name]
    if count is not None and count > 1:
        right = shlex.join([*program.command(), *arguments, "--distributed"])
        raise UsageError(
            f"this is one of {count} processes ({name}), and each would train a model of its own; run in each: {right}"
        )


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Connects to the other processes; JAX sees the devices of all of them afterwards. They watch each other from then.

    Raises:
        UsageError: neither flags, nor environment variables, nor a cluster name the other processes.
    """
    others = rendezvous(coordinator, processes, process, os.environ)
    # JAX's preemption service would catch SIGTERM: a signal before the first step would be lost, and the exit hang.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _waiting(), _relayed():
            jax.distributed.initialize(**vars(others), initialization_timeout=2 * JOIN_PATIENCE)
    except (ValueError, TypeError) as error:  # JAX raises these where a value is unknown
        raise UsageError(
            f"--distributed: {str(error).rstrip('.')}; no cluster (Cloud TPU, Slurm) was found, "
            "give --coordinator=HOST:PORT --processes=N --process=K"
        ) from error
    if jax.process_count() > 1:
        _watch()


@contextlib.contextmanager
def _waiting() -> Iterator[None]:
    """A context for the wait for the others, which is deep in C++: it ends after a while, and by Ctrl-C at once."""
    line = (
        f"{program.name()}: --distributed: not all processes have come within {JOIN_PATIENCE} s; look at the output "
        "of the others, and at --coordinator, --processes and --process"
    )
    timer = threading.Timer(JOIN_PATIENCE, leave, (1, line))
    timer.daemon = True
    timer.start()
    in_main = threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGINT, signal.SIG_DFL) if in_main else None
    try:
        yield
    finally:
        timer.cancel()
        if former is not None:
            signal.signal(signal.SIGINT, former)


@contextlib.contextmanager
def _relayed() -> Iterator[None]:
    """A context in which the clients that JAX makes reach their service through a relay, except that of process 0."""
    from jax._src import distributed  # JAX has no public way to choose the address of its client alone

    library, name = distributed._jax, "get_distributed_runtime_client"
    make = getattr(library, name)
    setattr(library, name, lambda address, own, **more: make(relay(address) if own else address, own, **more))
    try:
        yield
    finally:
        setattr(library, name, make)


def _watch() -> None:
    """Starts the watch over the other processes."""
    from jax._src import distributed  # the store of keys that all processes share has no public name either

    client, address = distributed.global_state.client, distributed.global_state.coordinator_address
    assert client is not None and address is not None  # JAX is initialised
    watch = peers.Watch(jax.process_index(), _follow, _wait_for, peers.BEAT, peers.PATIENCE)
    if jax.process_index() == 0:
        port, token = watch.listen()
        client.key_value_set(_WATCH, f"{port} {token}")
    else:
        port, token = client.blocking_key_value_get(_WATCH, JOIN_PATIENCE * 1000).split()
        host, _ = host_and_port(address)
        try:
            watch.connect(host, int(port), token)
        except OSError as error:
            line = f"process {jax.process_index()} cannot watch the others ({host}:{port}: {error.strerror or error})"
            print(f"{line}; JAX notices after 100 s if one of them is gone", file=sys.stderr)
            return
    before_leaving(watch.announce)
    _watches.append(watch)


def _follow(departure: peers.Departure) -> None:
    """Ends this process, because another one has left the run."""
    if departure.status is not None:
        time.sleep(1)  # what ended the other one may end this one too, with a line of its own
    leave(departure.exit_status, f"{program.name()}: {departure}")


def _wait_for(process: int) -> None:
    """Says that the others wait for a process."""
    tqdm.write(
        f"{program.name()}: process {process} has been behind the others for {peers.PATIENCE:.0f} s: it reads data, "
        "saves or compiles more slowly, or hangs. They wait for it. If it does not come, kill it, and run the same "
        "command on all processes",
        file=sys.stderr,
    )


def passed() -> None:
    """Tells the watch that this process has passed a mark of the training loop, which all processes pass."""
    for watch in _watches:
        watch.passed()


def part() -> None:
    """Ends the watch: this process may end from here without taking the others with it."""
    for watch in _watches:
        watch.announce(0)


def say(message: str) -> None:
    """Prints a line on stderr, once for all processes. A progress bar stays below it."""
    if jax.process_index() == 0:
        tqdm.write(message, file=sys.stderr)


def meet(name: str) -> None:
    """Waits until every process is here; `name` is the same on all of them."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
