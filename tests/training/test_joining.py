"""How processes find each other in a cluster, and what one that fails does to the others. No training."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from afloc_jax.errors import UsageError
from afloc_jax.training.processes import Rendezvous, check_alone, rendezvous
from tests.compiler import xla_flags

ROOT = Path(__file__).resolve().parents[2]

# launch.py with a run that only lets the processes add up what they are, for ever if told so, until one does EVENT.
PROGRAM = """
import os, signal, sys, time
import jax, numpy as np
import launch
from afloc_jax.errors import UserError
from afloc_jax.training import peers, train as training
from afloc_jax.training.failures import NonFiniteError
from jax.experimental import multihost_utils

def train(config, workdir, dry_run, profile, from_scratch):
    count, process = jax.process_count(), jax.process_index()
    print("imported", {{"torch", "tensorboardX"}} & {{*sys.modules}})
    print("sum", int(multihost_utils.process_allgather(np.array(10 + process)).sum()), "of", count, flush=True)
    while {event!r} != "pass":
        if process == {victim}:
            print("event at", time.time(), flush=True)
            {event}
        multihost_utils.process_allgather(np.zeros(1))
    return 0

training.train, peers.PATIENCE = train, {patience}
sys.exit(launch.main(["launch.py", "--config={root}/configs/demo.py", "--workdir=w", "--distributed", *sys.argv[1:]]))
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def together(tmp_path, variables, flags=(), event="pass", victim=1, patience=25.0):
    """Exit status, stdout and stderr of two processes; `variables` and `flags` may hold {process} and {port}.

    The victim is waited for after the other one, and killed if it hangs by then.
    """
    port, running = free_port(), []
    program = PROGRAM.format(event=event, victim=victim, root=ROOT, patience=patience)
    for process in range(2):
        known = {key: value.format(process=process, port=port) for key, value in variables.items()}
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(1), "PYTHONPATH": str(ROOT)} | known
        command = [sys.executable, "-c", program, *(flag.format(process=process, port=port) for flag in flags)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes))
    said = {}
    try:
        said[1 - victim] = running[1 - victim].communicate(timeout=90)  # JAX's own bound would be 100 s
        if "SIGSTOP" in event:
            running[victim].kill()
        said[victim] = running[victim].communicate(timeout=90)
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [(process.returncode, *said[number]) for number, process in enumerate(running)]


SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1",
    "SLURM_PROCID": "{process}", "SLURM_LOCALID": "{process}", "JAX_COORDINATOR_PORT": "{port}",
}  # fmt: skip
INDEXED_JOB = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "{process}",
    "JAX_COORDINATOR_ADDRESS": "localhost:{port}", "JAX_NUM_PROCESSES": "2",
}  # fmt: skip
FLAGS = ("--coordinator=localhost:{port}", "--processes=2", "--process={process}")


@pytest.mark.parametrize("variables", [SLURM, INDEXED_JOB], ids=["slurm", "indexed job"])
def test_the_same_command_finds_the_others(variables, tmp_path):
    for status, out, error in together(tmp_path, variables):
        assert status == 0, error
        assert "sum 21 of 2" in out
        assert "imported set()" in out  # the tracker's library waits for the first run that trains
        assert "Warning" not in error  # JAX warns when it could not ask Kubernetes


KILLED = "os.kill(os.getpid(), signal.SIG{})".format
WORDLESS = "process {} died without a word"


@pytest.mark.parametrize(
    ("event", "victim", "statuses", "told"),
    [
        ("raise UserError('no space')", 0, (1, 1), "process {} ended with exit status 1; its own output says why"),
        ("raise NonFiniteError('step 7')", 1, (3, 3), "process {} ended with exit status 3; its own output says why"),
        (KILLED("KILL"), 0, (1, -signal.SIGKILL), WORDLESS),  # with the service of JAX, whose end would abort the other
        (KILLED("TERM"), 1, (1, -signal.SIGTERM), WORDLESS),  # JAX's preemption service would take it and go on
        pytest.param(KILLED("STOP"), 1, (1, -signal.SIGKILL), "process {} hangs", marks=pytest.mark.slow),
        pytest.param(KILLED("STOP"), 0, (1, -signal.SIGKILL), "process {} hangs", marks=pytest.mark.slow),
    ],
)
def test_a_process_that_ends_or_hangs_takes_the_other_one_with_it(event, victim, statuses, told, tmp_path):
    """Which says so in one line, whatever breaks first: the watch, a collective or JAX's own connection."""
    endings = together(tmp_path, {}, FLAGS, event, victim, patience=10.0 if "STOP" in event else 25.0)
    other, gone = endings[1 - victim], endings[victim]
    assert (other[0], gone[0]) == statuses, endings
    assert re.fullmatch(
        rf"launch.py: another process of this run is gone: {told.format(victim)}.*\. Run the same command on all "
        r"processes to go on from the last checkpoint\n",
        other[2],
    ), endings
    if "raise" in event:
        assert gone[2] == f"launch.py: {event.split(chr(39))[1]}\n"


def test_a_signal_to_one_process_is_heard_by_all_one_call_later(tmp_path):
    """By both at the same call: else one would wait for ever for the other, which stopped."""
    program = """
import sys, jax, numpy as np
from afloc_jax.training.mesh import SharedNumber, build_mesh
from afloc_jax.training.processes import join
join(sys.argv[1], 2, int(sys.argv[2]))
shared = SharedNumber(build_mesh())
print([shared(15 if call >= 2 and jax.process_index() == 1 else 0) for call in range(5)], flush=True)
"""
    port = free_port()
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = xla_flags(2)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    commands = [[sys.executable, "-c", program, f"localhost:{port}", str(process)] for process in range(2)]
    running = [subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes) for command in commands]
    for process in running:
        out, error = process.communicate(timeout=90)
        assert out.splitlines()[-1] == "[0, 0, 0, 15, 15]", error


def test_flags_come_before_the_environment_and_jax_finds_the_rest():
    environment = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"}
    nothing_to_find = "deactivate"
    assert rendezvous(None, None, None, environment) == Rendezvous("a:1", 4, 3, nothing_to_find)
    assert rendezvous("b:2", 2, 0, environment) == Rendezvous("b:2", 2, 0, nothing_to_find)
    alone = rendezvous(None, None, None, {"JOB_COMPLETION_INDEX": "3"})  # as on GKE, where JAX knows better
    assert alone == Rendezvous(None, None, None)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((None, None, None), {"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES = 'four': must be a whole number"),
        (("a:1", 2, 2), {}, "--process = 2: must be from 0 to 1"),
        (("a:1", 0, 0), {}, "--processes = 0: must be at least 1"),
    ],
)
def test_impossible_numbers_are_a_wrong_call(arguments, environment, message):
    with pytest.raises(UsageError, match=message):
        rendezvous(*arguments, environment)


def test_nothing_to_find_the_others_by_is_a_wrong_call(tmp_path):
    command = [sys.executable, str(ROOT / "launch.py"), f"--config={ROOT}/configs/demo.py", "--workdir=w"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "JAX_COORD"))}
    done = subprocess.run(
        [*command, "--distributed"], env=environment | {"JAX_PLATFORMS": "cpu"}, cwd=tmp_path, capture_output=True,
        text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "--coordinator=HOST:PORT" in done.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SLURM_STEP_NUM_TASKS", "8"),
        ("JAX_NUM_PROCESSES", "8"),
        ("OMPI_COMM_WORLD_SIZE", "8"),
        ("MEGASCALE_NUM_SLICES", "8"),
        ("TPU_WORKER_HOSTNAMES", ",".join("abcdefgh")),
        ("JAX", None),  # the runtime of TPUs, of which no variable tells
    ],
)
def test_one_of_several_processes_that_forgot_to_say_so_is_told_the_right_command(variable, value, monkeypatch):
    if value is None:
        monkeypatch.setattr("jax.process_count", lambda: 8)
    words = rf"one of 8 processes \({variable}\), .* run in each: .* --config=demo '--workdir=my runs' --distributed$"
    with pytest.raises(UsageError, match=words):
        check_alone({variable: value} if value else {}, ["--config=demo", "--workdir=my runs"])


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, {"TPU_WORKER_HOSTNAMES": "localhost"}]
)
def test_a_process_that_is_alone_may_train(environment):
    check_alone(environment)
