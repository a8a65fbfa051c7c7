"""Freed memory that stays with a process: counted in page faults, and where it applies."""

import json
import subprocess
import sys

import pytest

from afloc_jax.cli import launching
from afloc_jax.training import xla_flags
from afloc_jax.training.xla_flags import platform_ahead

# A block of 64 MiB, written and freed ten times by each of two threads: the faults of the second round of both.
FAULTS = """
import ctypes, json, resource, sys, threading
from afloc_jax.training.allocation import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def blocks():
    for _ in range(10):
        block = libc.malloc(1 << 26)
        ctypes.memset(block, 1, 1 << 26)
        libc.free(block)
def both():
    for _ in range(2):
        thread = threading.Thread(target=blocks)
        thread.start()
        thread.join()
both()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
both()
print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_blocks_are_found_again_without_page_faults_in_any_thread():
    kept, few = faults("keep")
    _, many = faults("leave")
    assert kept
    assert many > 5_000  # 20 blocks, 320,000 pages of 4 KiB, or fewer larger ones
    assert few < many / 100


def test_a_library_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    from afloc_jax.training.allocation import keep_freed_memory

    assert not keep_freed_memory()


@pytest.mark.parametrize(("platforms", "expected"), [("cpu", 1), ("cuda", 0), ("tpu", 0), ("rocm", 0)])
def test_only_a_run_on_the_cpu_keeps_its_memory(platforms, expected, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(launching, "keep_freed_memory", lambda: called.append(1))
    monkeypatch.setattr(launching, "set_flags", lambda environment: None)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert launching.main(["launch.py", "--config=no_such_recipe", "--workdir=runs/none"]) == 2
    capsys.readouterr()
    assert len(called) == expected


def test_the_platform_is_told_before_jax_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(xla_flags, "_DRIVER", tmp_path / "version")
    installed = set()
    monkeypatch.setattr(xla_flags.importlib.util, "find_spec", lambda name: name in installed or None)
    assert platform_ahead({}) == "cpu"
    installed.add("libtpu")
    assert platform_ahead({}) == "tpu" and platform_ahead({"JAX_PLATFORMS": "cpu"}) == "cpu"
    installed.add("jax_cuda13_plugin")
    (tmp_path / "version").touch()
    assert platform_ahead({}) == "gpu" and platform_ahead({"JAX_PLATFORMS": "cuda,cpu"}) == "gpu"
    assert platform_ahead({"CUDA_VISIBLE_DEVICES": "-1"}) == "tpu"
