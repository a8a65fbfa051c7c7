"""`afloc compile` in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.compiler import xla_flags

ROOT = Path(__file__).resolve().parents[2]


def compiled(*arguments):
    """A process of its own: how many devices there are is settled when JAX starts. It compiles as the tests do."""
    command = [sys.executable, "-m", "afloc_jax", "compile", "--config", str(ROOT / "tests/training/phantom_config.py")]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XLA_", "JAX_"))}
    environment |= {"XLA_FLAGS": xla_flags(1), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
