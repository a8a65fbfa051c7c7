"""Several processes on one machine: what they are told, and how they end. The commands here are scripts without JAX."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launch
from afloc_jax.errors import UsageError
from afloc_jax.training import rehearsal
from tests.compiler import xla_flags

ROOT = Path(__file__).resolve().parents[2]

# Every process says its flags; process 1 does EVENT, and the others wait until they are told to end.
SCRIPT = """
import os, signal, sys, time
def end(number, frame):
    print("saved", flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, end)
print(*sys.argv[1:], os.environ["JAX_PLATFORMS"], flush=True)
if sys.argv[-1] == "--process=1":
    {event}
else:
    {rest}
"""


def rehearsed(event, rest="time.sleep(60)", count=2):
    return rehearsal.rehearse([sys.executable, "-c", SCRIPT.format(event=event, rest=rest), "--workdir=w"], count)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(rehearsal, "PATIENCE", 0.3)


def test_each_process_gets_its_number_one_address_and_the_cpu(monkeypatch, capfd):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert rehearsed("pass", "pass", count=3) == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    port = lines[0].partition("localhost:")[2].split()[0]
    assert int(port) > 0
    assert lines == [
        f"[{k}] --workdir=w --distributed --coordinator=localhost:{port} --processes=3 --process={k} cpu"
        for k in range(3)
    ]


@pytest.mark.parametrize(("event", "status"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_when_one_fails_the_others_end_and_the_status_is_its_own(event, status, impatient, capfd):
    assert rehearsed(event) == status
    assert "[0] saved" in capfd.readouterr().out


def test_a_process_that_does_not_heed_the_end_is_killed(impatient):
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    start = time.monotonic()
    assert rehearsed("time.sleep(1); sys.exit(1)", deaf) == 1
    assert time.monotonic() - start < 50  # it would sleep for 60


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_reaches_all_once_and_all_save(number, status):
    code = f"from tests.training.test_rehearsal import rehearsed; raise SystemExit(rehearsed({'time.sleep(60)'!r}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        first = [parent.stdout.readline() for _ in range(2)]
        parent.send_signal(number)
        assert sorted(parent.stdout.read().splitlines()) == ["[0] saved", "[1] saved"], first
        assert parent.wait(60) == status
    finally:
        parent.kill()


def test_devices_are_dealt_out_where_they_are_named_and_never_shared(monkeypatch):
    cards = {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    seen = [each["CUDA_VISIBLE_DEVICES"] for each in rehearsal.environments(2, cards)]
    assert seen == ["0,1", "2,3"]
    with pytest.raises(UsageError, match="--rehearse=8: there are fewer GPUs than processes; JAX_PLATFORMS=cpu"):
        rehearsal.environments(8, cards)


@pytest.mark.parametrize("flag", ["--sweep=levels", "--distributed", "--process=0", "--profile=1:2"])
def test_flags_of_one_process_are_refused(flag, tmp_path, capsys):
    call = ["launch.py", f"--config={ROOT}/configs/demo.py", f"--workdir={tmp_path}", "--rehearse=2", flag]
    assert launch.main(call) == 2
    said = capsys.readouterr().err
    name = flag.split("=")[0]
    assert said == f"launch.py: --rehearse: starts the processes of one run by itself; leave out {name}\n"


@pytest.mark.slow
def test_a_run_is_rehearsed(tmp_path):
    command = [sys.executable, "launch.py", f"--config={ROOT}/tests/training/phantom_config.py", "--rehearse=2"]
    command += [f"--workdir={tmp_path / 'run'}", f"--config.data.directory={tmp_path / 'data'}"]
    environment = {**os.environ, "XLA_FLAGS": xla_flags(1), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[0] step 4 of 4" in done.stderr and "[1] step" not in done.stderr
    assert (tmp_path / "run/finished.json").is_file()
