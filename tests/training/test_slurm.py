"""Runs of a sweep as jobs: with submitit's executor of this machine, and with Slurm where it is installed."""

import csv
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from afloc_jax.errors import UsageError
from afloc_jax.files import Path
from afloc_jax.training import slurm
from afloc_jax.training import sweep as sweeps
from afloc_jax.training.launchers import launcher_of
from afloc_jax.training.sweep import run_sweep
from configs.afloc import get_config
from tests.training.test_sweep import LAUNCHER, SWEEP, WAITING, calls, write

with_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None,
    reason="SKIPPED: submitit is not installed; pip install -r requirements-slurm.txt",
)


@pytest.fixture
def path_kept(monkeypatch):
    """The environment as it was before, which a launcher of jobs changes for them."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("SUBMITIT_LOG_LEVEL", "NOCONFIG")


def sweep_of(tmp_path, text, launcher):
    command = [sys.executable, str(write(tmp_path / "launcher.py", text))]
    path = Path(write(tmp_path / "sweep.py", SWEEP))
    return run_sweep(path, get_config(), Path(tmp_path / "runs"), False, command, launcher)


def statuses(tmp_path):
    with (tmp_path / "runs" / "sweep.csv").open() as file:
        return {row["run"]: row["status"] for row in csv.DictReader(file)}


@with_submitit
def test_runs_are_jobs_and_one_that_fails_stops_no_other(tmp_path, path_kept, capsys):
    launcher = launcher_of(Path(tmp_path / "runs"), 1, "cluster=local,timeout_min=5")
    assert sweep_of(tmp_path, LAUNCHER, launcher) == 1
    assert sorted(calls(tmp_path)) == ["lr1", "lr2", "lr3"]
    assert statuses(tmp_path) == {"lr1": "finished", "lr2": "finished", "lr3": "failed"}
    assert "[2/3] lr3: failed, exit status 1: no luck with 3.0" in capsys.readouterr().err
    assert "training" in (tmp_path / "runs" / "lr1.log").read_text()


@with_submitit
def test_a_signal_to_the_sweep_cancels_its_jobs(tmp_path, path_kept, monkeypatch):
    folder, see = tmp_path / "runs", sweeps._Sweep._see

    def seeing(self, stop):
        if len([*folder.glob("*.ready")]) == 2 and not stop.received:
            os.kill(os.getpid(), signal.SIGTERM)
        see(self, stop)

    monkeypatch.setattr(sweeps._Sweep, "_see", seeing)
    launcher = launcher_of(Path(folder), 2, "cluster=local")
    assert sweep_of(tmp_path, WAITING.replace("sleep(120)", "sleep(20)"), launcher) == 143
    assert statuses(tmp_path) == dict.fromkeys(("lr1", "lr2", "lr3"), "not finished")
    assert not (folder / "lr2.ready").exists()


@with_submitit
def test_a_job_at_its_time_limit_saves_and_is_queued_again(tmp_path, path_kept):
    (tmp_path / "runs").mkdir()
    script = write(tmp_path / "waiting.py", WAITING)
    work = slurm.Work([sys.executable, str(script), "", f"--workdir={tmp_path / 'runs' / 'a'}"], str(tmp_path / "log"))
    work._child = subprocess.Popen(work.command)
    while not (tmp_path / "runs" / "a.ready").exists():
        time.sleep(0.05)
    again = work.checkpoint()
    assert work._child.returncode == 143 and (tmp_path / "runs" / "a.told").exists()
    assert (again.function.command, again.function.log) == (work.command, work.log)


def test_options_of_jobs_are_read_and_wrong_ones_refused(tmp_path, monkeypatch, path_kept):
    assert slurm.options("partition=gpu,gpus_per_node=2,timeout_min=90") == {
        "partition": "gpu", "gpus_per_node": 2, "timeout_min": 90,
    }  # fmt: skip
    assert slurm.options("") == {}
    for wrong, message in (("partition", "write NAME=VALUE"), ("cluster=lsf", "must be one of slurm, local")):
        with pytest.raises(UsageError, match=message):
            slurm.options(wrong)
    with pytest.raises(UsageError, match="in a bucket"):
        slurm.Slurm(Path("gs://b/runs"), {}, 1)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r'^--slurm: submitit is not installed; pip install "afloc-jax\[slurm\]"'):
        launcher_of(Path(tmp_path), 1, "")


@with_submitit
@pytest.mark.parametrize(
    ("options", "message"), [("", 'Could not detect "srun"'), ("cluster=local,colour=red", "colour")]
)
def test_no_slurm_and_unknown_options_are_one_line(tmp_path, path_kept, monkeypatch, options, message):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=rf"^--slurm: .*{message}"):
        launcher_of(Path(tmp_path), 1, options)


# Slurm itself


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Slurm on one node, this machine, started for the test."""
    missing = [
        name
        for name in ("slurmctld", "slurmd", "sbatch")
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None
    ]
    if missing or os.geteuid():
        pytest.skip(f"SKIPPED: needs root and slurm-wlm of Debian (missing: {', '.join(missing) or 'root'})")
    with socket.socket() as one, socket.socket() as two:
        one.bind(("localhost", 0))
        two.bind(("localhost", 0))
        ports = one.getsockname()[1], two.getsockname()[1]
    host = socket.gethostname().split(".")[0]
    configuration = tmp_path / "slurm.conf"
    configuration.write_text(
        f"ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={ports[0]}\nSlurmdPort={ports[1]}\n"
        f"AuthType=auth/none\nCredType=cred/none\nSlurmUser=root\nSlurmdUser=root\nProctrackType=proctrack/linuxproc\n"
        f"TaskPlugin=task/none\nStateSaveLocation={tmp_path}/state\nSlurmdSpoolDir={tmp_path}/spool\n"
        f"SlurmctldPidFile={tmp_path}/ctld.pid\nSlurmdPidFile={tmp_path}/d.pid\nSlurmctldLogFile={tmp_path}/ctld.log\n"
        f"SlurmdLogFile={tmp_path}/d.log\nSelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nReturnToService=2\n"
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN\n"
        f"PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"
    )
    for name in ("state", "spool"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    started = [subprocess.Popen([name, "-D"]) for name in ("slurmctld", "slurmd")]
    try:
        until = time.monotonic() + 60
        while b"idle" not in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True).stdout:
            assert time.monotonic() < until, (tmp_path / "d.log").read_text()[-2000:]
            time.sleep(1)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=60)


@with_submitit
def test_a_sweep_on_slurm(cluster, tmp_path, path_kept):
    launcher = launcher_of(Path(tmp_path / "runs"), 1, "timeout_min=5,cpus_per_task=1")
    assert sweep_of(tmp_path, LAUNCHER, launcher) == 1
    assert statuses(tmp_path) == {"lr1": "finished", "lr2": "finished", "lr3": "failed"}
