"""Compiled programs kept between processes."""

import os
import subprocess
import sys

import pytest

from afloc_jax import compiled

SCRIPT = """
from afloc_jax.compiled import keep_compiled
keep_compiled()
import jax, jax.numpy as jnp
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))
print(float(jax.jit(lambda x: jnp.linalg.svd(x)[1].sum())(jnp.eye(5))), "/jax/compilation_cache/cache_hits" in seen)
"""


def run(cache, **variables):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    environment |= {"XDG_CACHE_HOME": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", **variables}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


@pytest.fixture
def environment(monkeypatch):
    """The variables of this process, given back afterwards."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    return os.environ


def test_the_second_process_finds_what_the_first_compiled(tmp_path):
    assert run(tmp_path)[0] == ["5.0", "False"]
    assert run(tmp_path)[0] == ["5.0", "True"]
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")[0] == ["5.0", "False"]


def test_what_the_user_set_stays(environment, tmp_path):
    environment["JAX_COMPILATION_CACHE_DIR"] = "/elsewhere"
    compiled.keep_compiled()
    assert environment["JAX_COMPILATION_CACHE_DIR"] == "/elsewhere"


def test_a_folder_that_cannot_be_made_keeps_nothing(environment, tmp_path):
    (tmp_path / "file").touch()
    environment["XDG_CACHE_HOME"] = str(tmp_path / "file")
    compiled.keep_compiled()
    assert "JAX_COMPILATION_CACHE_DIR" not in environment


def test_another_processor_gets_another_folder(environment, tmp_path, monkeypatch):
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    folders = set()
    for flags in ("flags : avx2", "flags : avx2 avx512f", "flags : avx2"):
        monkeypatch.setattr(compiled.Path, "read_text", lambda self, flags=flags: f"model name : X\n{flags}\n")
        folders.add(compiled._folder())
    assert len(folders) == 2 and all(folder.is_relative_to(tmp_path) for folder in folders)
