"""One owner of a folder: among threads, processes that are killed or stopped, and those that run elsewhere."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from afloc_jax.errors import UsageError, UserError
from afloc_jax.ownership import OWNER_FILE, Owner, Ownership

ROOT = Path(__file__).resolve().parents[1]
HOLD = """
import sys, time
from afloc_jax.ownership import Ownership
with Ownership(sys.argv[1]) as mine:
    mine.take()
    print("taken", flush=True)
    sys.stdin.read()
"""
RACE = """
import sys, time
from afloc_jax.errors import UsageError
from afloc_jax.ownership import Ownership
sys.stdin.readline()
with Ownership(sys.argv[1], say=lambda line: None) as mine:
    try:
        mine.take()
    except UsageError:
        print("refused", flush=True)
    else:
        print("taken", flush=True)
    sys.stdin.read()
"""


def started(code, folder):
    return subprocess.Popen(
        [sys.executable, "-c", code, folder], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def holder(tmp_path):
    process = started(HOLD, tmp_path)
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.wait()


def write(folder, **changes):
    """The file of an owner that runs elsewhere, or of another one."""
    owner = dataclasses.replace(Owner.this_process(), **changes)
    (folder / OWNER_FILE).write_text(json.dumps(dataclasses.asdict(owner)))
    return owner


def test_the_second_is_told_who_has_the_folder_and_leaves_nothing(holder, tmp_path):
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with Ownership(tmp_path) as second, pytest.raises(UsageError) as caught:
        second.take()
    assert f"another run has it (process {holder.pid} on {os.uname().nodename}, since 20" in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    holder.communicate("")
    assert list(tmp_path.iterdir()) == []
    with Ownership(tmp_path) as third:
        third.take()
        third.check()


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "zombie"])
def test_a_killed_owner_of_this_host_is_replaced_at_once(holder, tmp_path, reaped, capsys):
    holder.send_signal(signal.SIGKILL)
    if reaped:
        holder.wait()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with Ownership(tmp_path) as mine:
        mine.take()
    assert f"taken over from process {holder.pid} on " in capsys.readouterr().out


def test_a_stopped_owner_is_an_owner(holder, tmp_path):
    holder.send_signal(signal.SIGSTOP)
    with Ownership(tmp_path) as mine, pytest.raises(UsageError, match="another run has it"):
        mine.take()


def test_a_process_number_that_was_given_again_is_not_the_owner(tmp_path, capsys):
    write(tmp_path, began="1")
    with Ownership(tmp_path) as mine:
        mine.take()
    assert "which is gone" in capsys.readouterr().out


def test_an_owner_elsewhere_is_gone_when_it_stops_touching_its_file(tmp_path, capsys):
    write(tmp_path, host="pod-7", process=12)
    with Ownership(tmp_path, beat=0.1, patience=0.5) as mine:
        began = time.monotonic()
        mine.take()
        assert time.monotonic() - began > 0.4
    told = capsys.readouterr().out.splitlines()
    assert "process 12 on pod-7" in told[0] and "waiting whether it is still there" in told[0]
    assert "taken over from process 12 on pod-7" in told[1]


def test_an_owner_elsewhere_that_touches_its_file_stays(tmp_path):
    owner, ended = write(tmp_path, host="pod-7"), threading.Event()

    def touch():
        while not ended.wait(0.05):
            os.utime(tmp_path / OWNER_FILE)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with Ownership(tmp_path, beat=0.1, patience=5) as mine, pytest.raises(UsageError, match=r"on pod-7, since"):
            mine.take()
    finally:
        ended.set()
        thread.join()
    assert json.loads((tmp_path / OWNER_FILE).read_text()) == dataclasses.asdict(owner)


def test_the_owner_touches_its_file_and_notices_when_it_is_taken_over(tmp_path):
    with Ownership(tmp_path, beat=0.05) as mine:
        mine.take()
        first = (tmp_path / OWNER_FILE).stat().st_mtime_ns
        until = time.monotonic() + 10
        while (tmp_path / OWNER_FILE).stat().st_mtime_ns == first and time.monotonic() < until:
            time.sleep(0.02)
        assert (tmp_path / OWNER_FILE).stat().st_mtime_ns > first
        (tmp_path / OWNER_FILE).unlink()
        theirs = write(tmp_path, host="pod-8")
        with pytest.raises(UserError, match="took this folder over while this one was stopped"):
            mine.check()
    assert json.loads((tmp_path / OWNER_FILE).read_text()) == dataclasses.asdict(theirs)


@pytest.mark.parametrize("left", [None, "", "gone"], ids=["free", "unreadable", "left by a killed one"])
def test_of_many_at_once_exactly_one_gets_it(tmp_path, left):
    if left == "gone":
        write(tmp_path, began="1")
    elif left is not None:
        (tmp_path / OWNER_FILE).write_text(left)
    processes = [started(RACE, tmp_path) for _ in range(6)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.stdout.readline() for process in processes]
    for process in processes:
        process.communicate("")
    assert sorted(answers) == ["refused\n"] * 5 + ["taken\n"]
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_hard_links_is_not_guarded_and_the_user_is_told_once(tmp_path, monkeypatch, capsys):
    def refused(*paths):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    with Ownership(tmp_path) as mine:
        mine.take()
        mine.take()
        mine.check()
        assert list(tmp_path.iterdir()) == []
    told = f"{tmp_path}: nothing keeps a second process out of this folder; start one alone\n"
    assert capsys.readouterr().out == told


class Waiting:
    """A thread that waits for a folder, the lines that it says, and whether it has the folder."""

    def __init__(self, folder, **given):
        self.lines, self.has_it, self.let_go = [], threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.run, args=(folder, given), daemon=True)
        self.thread.start()

    def run(self, folder, given):
        with Ownership(folder, self.lines.append, waits=True, **given) as mine:
            mine.take()
            self.has_it.set()
            self.let_go.wait(60)

    def end(self):
        self.let_go.set()
        self.thread.join(60)


@pytest.mark.parametrize("end", ["released", "killed"])
def test_who_waits_says_for_whom_and_gets_the_folder_at_its_end(holder, tmp_path, end):
    waiting = Waiting(tmp_path, beat=1)
    assert not waiting.has_it.wait(1)
    assert len(waiting.lines) == 1 and f"process {holder.pid} on " in waiting.lines[0]
    assert waiting.lines[0].endswith(", has it; waiting for its end")
    if end == "released":
        holder.communicate("")
    else:
        holder.kill()
        holder.wait()
    assert waiting.has_it.wait(30)
    waiting.end()
    assert len(waiting.lines) == (1 if end == "released" else 2) and list(tmp_path.iterdir()) == []


def test_who_waits_for_one_elsewhere_waits_as_long_as_it_touches_its_file(tmp_path):
    write(tmp_path, host="pod-7", process=12)
    waiting = Waiting(tmp_path, beat=0.1, patience=0.5)
    for _ in range(10):
        time.sleep(0.1)
        os.utime(tmp_path / OWNER_FILE)
    assert not waiting.has_it.is_set()
    assert waiting.has_it.wait(30)
    waiting.end()
    assert waiting.lines[0].endswith(", has it; waiting for its end")
    assert "taken over from process 12 on pod-7" in waiting.lines[1]
