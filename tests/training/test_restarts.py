"""The parent that starts a run again, with a stand-in for the run; and one real run that dies."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launch
from afloc_jax.training import restarts
from afloc_jax.training.restarts import keep_running

ROOT = Path(launch.__file__).parent

# Does what the first line of the file says, and takes that line away. It notes its own arguments.
CHILD = """
import os, signal, sys, time
folder = sys.argv[1]
plan = open(folder + "/plan").read().split("\\n")
open(folder + "/plan", "w").write("\\n".join(plan[1:]))
open(folder + "/calls", "a").write(" ".join(sys.argv[2:]) + "\\n")
for word in plan[0].split():
    if word == "save":
        open(folder + "/checkpoints.sealed.json", "w").write(str(time.time()))
    elif word == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        open(folder + "/waiting", "w").close()
        time.sleep(60)
    elif word.isdigit():
        sys.exit(int(word))
    else:
        os.kill(os.getpid(), signal.Signals[word])
"""


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(restarts, "PAUSE", 0.0)


def kept(tmp_path, most, *plan):
    """The exit status for such a plan, and the arguments of each start."""
    (tmp_path / "plan").write_text("\n".join(plan))
    (tmp_path / "calls").unlink(missing_ok=True)
    status = keep_running([sys.executable, "-c", CHILD, str(tmp_path)], Path(tmp_path), most)
    return status, (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize(
    ("most", "plan", "status", "starts"),
    [
        (2, ("SIGSEGV", "SIGKILL", "0"), 0, 3),
        (2, ("1", "1", "1", "0"), 1, 3),
        (1, ("SIGABRT", "SIGSEGV", "0"), 128 + signal.SIGSEGV, 2),
        (1, ("save SIGKILL", "save SIGKILL", "save SIGKILL", "0"), 0, 4),  # each costs steps, but the run gets on
        (1, ("save SIGKILL", "SIGKILL", "0"), 137, 2),
        (3, ("2",), 2, 1),
        (3, ("3",), 3, 1),
        (3, ("143",), 143, 1),
        (3, ("SIGTERM",), 143, 1),
    ],
)
def test_a_crash_is_started_again_a_wrong_call_is_not(most, plan, status, starts, tmp_path, capfd):
    found, calls = kept(tmp_path, most, *plan)
    assert (found, len(calls)) == (status, starts)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == starts - 1 + (status not in (0, 2, 3, 143))
    assert all(line.startswith("launch.py: the run ended ") for line in said)


def test_what_was_started_from_scratch_goes_on_from_its_own_checkpoints(tmp_path):
    assert kept(tmp_path, 3, "SIGKILL", "save SIGKILL", "0") == (0, ["", "", "--nofrom_scratch"])


def test_a_signal_is_passed_on_and_the_end_waited_for(tmp_path):
    program = "from pathlib import Path; from afloc_jax.training.restarts import keep_running; import sys; "
    program += "sys.exit(keep_running([sys.executable, '-c', sys.argv[2], sys.argv[1]], Path(sys.argv[1]), 3))"
    (tmp_path / "plan").write_text("wait")
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), CHILD], cwd=ROOT)
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "waiting").exists() and time.monotonic() < until:
            time.sleep(0.05)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(timeout=30) == 130
        assert (tmp_path / "calls").read_text() == "\n"  # once
    finally:
        parent.kill()
        parent.wait()
