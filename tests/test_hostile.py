"""The harness of hostile inputs notices what it is there for, by a command with planted faults."""

import os
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from benchmarks.hostile.running import Group, Input, Ran, judge, tally
from benchmarks.hostile.table import rows


def command(words):
    """Does what its file says, and writes the file's content."""
    _, file, out = words
    content = Path(file).read_text()
    Path(out, "result").write_text("valid" if content == "harmless" else content)
    if content == "refused":
        print("row 3: no number", file=sys.stderr)
        return 2
    if content == "left out":
        print("1 row was left out")
    if content == "wrong and silent":
        return 1
    if content == "exits":
        sys.exit("wrong flag")
    if content == "escapes":
        raise ValueError
    if content == "defect":
        print("afloc: internal error, ValueError", file=sys.stderr)
        return 1
    if content == "wall of text":
        print("x" * 3000, file=sys.stderr)
        return 1
    if content == "aborts":
        os.abort()
    if content == "hangs":
        time.sleep(600)
    return 0


OUTCOMES = {
    "refused": "refused",
    "left out": "refused",
    "harmless": "harmless",
    "another result": "silent",
    "wrong and silent": "silent",
    "escapes": "tracebacks",
    "defect": "tracebacks",
    "wall of text": "tracebacks",
    "aborts": "crashes",
    "hangs": "hangs",
    "exits": "silent",
}


def write(content, folder):
    (folder / "file").write_text(content)


def planted():
    """The group of that command."""
    inputs = [Input(name, partial(write, name)) for name in OUTCOMES]
    words = ("planted", "IN/file", "OUT")
    result = lambda out, said: (out / "result").read_text()  # noqa: E731
    return [Group("planted", partial(write, "valid"), words, inputs, result, "left out", call=command)]


def test_every_kind_of_outcome_is_noticed_and_laid_to_its_input():
    (found,) = tally(planted, limit=8)
    assert {name: outcome for name, (outcome, _) in found.said.items()} == OUTCOMES
    assert found.said["aborts"][1] == "the process ended with status -6"
    assert rows([found]).splitlines()[-1] == "| all | 11 | 2 | 1 | 1 | 1 | 3 | 3 |"


def unsound():
    """The same group, whose valid folder is refused."""
    return [replace(planted()[0], make=partial(write, "refused"))]


def test_a_valid_folder_that_is_refused_stops_the_table():
    with pytest.raises(RuntimeError, match="the valid folder is not accepted in silence"):
        tally(unsound)


@pytest.mark.parametrize(
    ("ran", "outcome"),
    [
        (Ran(0, "", "", "a"), "harmless"),
        (Ran(0, "", "", "b"), "silent"),
        (Ran(0, "", "warning: x", "b"), "refused"),
        (Ran(0, "", "as usual", "b"), "silent"),
        (Ran(1, "", ""), "silent"),
        (Ran(1, "", "launch.py: ValueError: x (--debug shows where)"), "tracebacks"),
        (Ran(1, "", "thread 'main' panicked at src/lib.rs"), "tracebacks"),
    ],
)
def test_what_is_said_decides(ran, outcome):
    assert judge(ran, "a", usual="usual") == outcome


def test_without_a_valid_result_nothing_is_harmless():
    assert judge(Ran(0, "", "", None), None) == "silent"
