"""What fuzzing found is read or refused in words, and fuzzing notices readers that do anything else."""

import importlib.util
import subprocess
import sys

import pytest

from afloc_jax.errors import UserError
from benchmarks import fuzz
from benchmarks.hostile import readers
from benchmarks.hostile.readers import TARGETS, fault_of

KEPT = [(name, path) for name in TARGETS for path in sorted(fuzz.kept_folder(name).glob("*"))]


@pytest.mark.parametrize(("name", "path"), KEPT, ids=[f"{name}: {path.name}" for name, path in KEPT])
def test_what_was_found_once_is_read_or_refused_in_words(name, path, tmp_path):
    fault, told = fault_of(TARGETS[name].reader(tmp_path), path.read_bytes())
    assert not fault, told


def test_every_kept_file_belongs_to_a_target_and_is_small():
    files = [path for path in (fuzz.ROOT / "tests/kept").rglob("*") if path.is_file()]
    assert sorted(files) == sorted(path for _, path in KEPT)
    assert all(path.stat().st_size <= fuzz.LARGEST for path in files)


@pytest.mark.parametrize("name", TARGETS)
def test_valid_files_are_no_findings(name, tmp_path):
    reader = TARGETS[name].reader(tmp_path)
    seeds = list(TARGETS[name].seeds())
    assert seeds and all(0 < len(seed) <= fuzz.LARGEST for seed in seeds)
    for seed in seeds:
        fault, told = fault_of(reader, seed)
        assert not fault, told


def raising(error):
    def read(data):
        raise error

    return read


def test_anything_else_than_the_programs_own_words_is_a_fault(monkeypatch):
    assert fault_of(lambda data: None, b"") == ("", "")
    assert fault_of(raising(UserError("row 3: no number")), b"") == ("", "")
    assert "ValueError from test_fuzz.py" in fault_of(raising(ValueError("x")), b"")[0]
    assert "SystemExit" in fault_of(raising(SystemExit(0)), b"")[0]
    monkeypatch.setattr(readers, "LONGEST_MESSAGE", 9)
    assert "a message of more than 9 letters" in fault_of(raising(UserError("x" * 10)), b"")[0]


PLANTED = """
import os, sys, time
from pathlib import Path
from benchmarks import fuzz
from benchmarks.hostile import readers
from benchmarks.hostile.readers import TARGETS, Target

def read(data):
    if data[:1] == b"b":
        {done}

TARGETS["planted"] = Target(lambda folder: read, lambda: [b"a"], ("b",))
fuzz.SECONDS = 1
fuzz.fuzz_here("planted", Path(sys.argv[1]), Path(sys.argv[2]), time.time() + 20)
"""


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="SKIPPED: atheris is not installed")
@pytest.mark.parametrize(
    ("done", "status", "found"),
    [
        ("os.abort()", 77, "crash-"),
        ("time.sleep(60)", 70, "timeout-"),
        ("os._exit(0) if list(Path(sys.argv[2]).iterdir()) else [][1]", 0, "fault-"),  # ends when it was noticed
    ],
)
def test_fuzzing_finds_crashes_hangs_and_faults(done, status, found, tmp_path):
    for name in ("folder", "findings"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-c", PLANTED.format(done=done), str(tmp_path / "folder"), str(tmp_path / "findings")]
    process = subprocess.run(command, cwd=fuzz.ROOT, capture_output=True, timeout=300)
    assert process.returncode == status, process.stderr.decode()[-2000:]
    names = [path.name for path in (tmp_path / "findings").iterdir()]
    assert any(name.startswith(found) for name in names), names


def test_without_atheris_a_line_says_that_nothing_was_fuzzed(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert fuzz.main([]) == 0
    assert "NOT FUZZED: atheris is not installed" in capsys.readouterr().err
