"""Reading a compiled program's cycles (benchmarks/tpu_schedule.py); the TPU compiler itself is not needed."""

import json
import os
import signal
import subprocess

import pytest

from benchmarks import tpu_schedule
from benchmarks.tpu_schedule import cycles_of

PROGRAM = """HloModule jit_tile

%product (a: f32[8], b: f32[8]) -> f32[8] {
  ROOT %convolution.1 = f32[8]{0} convolution(%a, %b)
}

%again (c: f32[8], d: f32[8]) -> f32[8] {
  ROOT %convolution.2 = f32[8]{0} convolution(%c, %d)
}

%rare (x: f32[8]) -> f32[8] {
  ROOT %slow = f32[8]{0} exponential(%x)
}

%usual (y: f32[8]) -> f32[8] {
  ROOT %fast = f32[8]{0} negate(%y)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %fusion.1 = f32[8]{0} fusion(%p, %p), kind=kOutput, calls=%product
  %fusion.2 = f32[8]{0} fusion(%fusion.1, %p), kind=kOutput, calls=%again
  ROOT %choice = f32[8]{0} conditional(%p, %p, %p), branch_computations={%rare, %usual}
}
"""


def test_cycles_are_those_of_the_entry_and_of_the_usual_branch():
    estimated = {"fusion.1": 100, "fusion.2": 40, "fast": 3, "slow": 1000}
    assert cycles_of(PROGRAM, estimated) == (143, None)


def test_the_second_of_two_products_alike_counts_as_the_first():
    assert cycles_of(PROGRAM, {"fusion.1": 100, "fast": 3}) == (203, None)


def test_a_product_without_cycles_is_named():
    assert cycles_of(PROGRAM, {"fast": 3}) == (3, "fusion.2")


def parts(monkeypatch, capsys, answer):
    """The lines of all parts where every child process gives this answer."""
    monkeypatch.setattr(tpu_schedule.subprocess, "run", answer)
    monkeypatch.setattr(tpu_schedule, "prepare_platform", lambda topology: None)  # it changes the environment
    monkeypatch.setattr("sys.argv", ["tpu_schedule", "--topology", "v5e:4x4", "--json"])
    tpu_schedule.main()
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_part_that_is_counted_is_an_object_a_line(monkeypatch, capsys):
    row = {"images": 4, "units": 512, "valid_units": 468.0, "cycles": 100, "matrix_cycles": 60, "share": 0.6}
    found = parts(monkeypatch, capsys, lambda command, **_: subprocess.CompletedProcess(command, 0, json.dumps(row)))
    assert len(found) == 8 and found[1]["part"] == "word xla" and found[1]["pass"] == "both"
    assert all(line.items() >= row.items() and "not_counted" not in line for line in found)


def test_a_missing_compiler_and_a_topology_that_is_none_are_one_line(monkeypatch, capsys):
    missing = subprocess.CompletedProcess([], tpu_schedule.NOTHING, "", "--topology v5e:3x5: no such topology\n")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("sys.argv", ["tpu_schedule", "--topology", "v5e:4x4x4"])
    with pytest.raises(SystemExit, match="2"):
        tpu_schedule.main()
    out, error = capsys.readouterr()
    assert not out and "--topology v5e:4x4x4: chips of v5e lie on a grid of two sides" in error.splitlines()[-1]
    with pytest.raises(SystemExit, match=r"^--topology v5e:3x5: no such topology$"):
        parts(monkeypatch, capsys, lambda command, **_: missing)


def slow(command, timeout, **_):
    raise subprocess.TimeoutExpired(command, timeout)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda command, **_: subprocess.CompletedProcess(command, -signal.SIGSEGV, "", ""), "died of signal 11"),
        (
            lambda command, **_: subprocess.CompletedProcess(command, 1, "", "F0 Unsupported DMA\n\n"),
            "F0 Unsupported DMA",
        ),
        (lambda command, **_: subprocess.CompletedProcess(command, 0, '{"share": 0.96}'), "a share of 96% cannot be"),
        (slow, "took more than 240 s"),
    ],
    ids=["dies", "refuses", "too much", "slow"],
)
def test_a_part_that_cannot_be_counted_is_a_line_that_says_why(answer, words, monkeypatch, capsys):
    found = parts(monkeypatch, capsys, answer)
    assert len(found) == 8 and all(words in line["not_counted"] for line in found)
