"""Compiled programs kept between processes, so that only the first process waits for the compiler.

XLA compiles a program for its shapes. That takes a second for a small model and minutes for a training step on a pod.
The commands (`afloc`, `launch.py`) keep every program that took longer than a moment to compile; a sweep, a resumed run
or the next call finds it there. From Python: call `keep_compiled` before JAX is imported.
"""

import hashlib
import os
import platform
from pathlib import Path

_SHORTEST = 0.1  # seconds of compiling that are worth a file
_LARGEST = 2 << 30  # bytes kept; what was unused for the longest time goes first


def keep_compiled() -> None:
    """Set JAX's variables for its compilation cache, except those that the user has set.

    JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=false keeps nothing. Nothing is
    kept either where the folder cannot be made.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = _folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # a read-only home: every process compiles for itself
            return
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(_SHORTEST))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_LARGEST))


def _folder() -> Path:
    """A folder for this kind of processor; machines that share a home may not run each other's programs."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "afloc_jax" / f"compiled-{platform.machine()}-{_processor()}"


def _processor() -> str:
    """A short name for what this processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = [platform.processor()]
    described = [line for line in lines if line.startswith(("model name", "flags", "Features"))] or lines
    return hashlib.sha256("\n".join(sorted(set(described))).encode()).hexdigest()[:12]
