"""The soak (benchmarks/soak.py) on a network that trains in seconds: a part of it, and marked slow all of it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def soak(folder, *given):
    """What the command prints; it must end with status 0."""
    command = [sys.executable, "-m", "benchmarks.soak", "--data", folder, *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_a_run_that_is_killed_damaged_and_out_of_space_ends_as_an_undisturbed_one(tmp_path):
    said = soak(tmp_path, "--runs", "--small", "--steps=14", "--only=KILL, newest damaged|full disk save")
    assert "| KILL, newest damaged | after a save | -9 |" in said and "| full disk | " in said
    assert "final weights equal bit for bit: yes" in said


@pytest.mark.slow
def test_every_disturbance_keeps_its_promise(tmp_path):
    said = soak(tmp_path, "--runs", "--small")
    assert said.count("\n| ") > 30 and "final weights equal bit for bit: yes" in said


@pytest.mark.slow
def test_of_two_commands_in_one_workdir_one_trains(tmp_path):
    said = soak(tmp_path, "--launches=6")
    assert "| one trained, the other was refused with exit status 2 |" in said
