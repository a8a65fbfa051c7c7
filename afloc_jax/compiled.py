"""JAX's cache of compiled programs on disk, so that only the first process waits for the compiler.

XLA compiles a program for its shapes, which takes a second for a small model and minutes for a training step on a pod.
The commands (`afloc`, `launch.py`) turn on the cache, from which a sweep, a resumed run or the next call reads the
program. From Python, call `keep_compiled` before importing JAX.
"""

import hashlib
import os
import platform
from pathlib import Path

_SHORTEST = 0.1  # seconds; programs that compile faster are not stored
_LARGEST = 2 << 30  # bytes of the cache; the least recently used programs are deleted first


def keep_compiled() -> None:
    """Sets the environment variables of JAX's compilation cache, except those that the user has set.

    JAX_COMPILATION_CACHE_DIR names another folder, and JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. It is
    also off where the folder cannot be created.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = _folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # such as a read-only home: every process compiles for itself
            return
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(_SHORTEST))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_LARGEST))


def _folder() -> Path:
    """The cache folder for this kind of processor, because machines that share a home may differ in theirs."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "afloc_jax" / f"compiled-{platform.machine()}-{_processor()}"


def _processor() -> str:
    """A short hash of the model and the features of this processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = [platform.processor()]
    described = [line for line in lines if line.startswith(("model name", "flags", "Features"))] or lines
    return hashlib.sha256("\n".join(sorted(set(described))).encode()).hexdigest()[:12]
