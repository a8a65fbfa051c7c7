"""Compiled programs kept between processes, so that only the first one of a kind waits for the compiler.

XLA compiles a program for its shapes: a second for a model that answers one question, minutes for a training step on a
pod. The commands (`afloc`, `launch.py`) keep what took longer than a moment; a sweep, a resumed run or the next
question starts from there. From Python: call `keep_compiled` before JAX is imported.
"""

import hashlib
import os
import platform
from pathlib import Path

_SHORTEST = 0.1  # seconds of compiling that are worth a file
_LARGEST = 2 << 30  # bytes kept; what was not used for longest goes first


def keep_compiled() -> None:
    """Set JAX's variables for its compilation cache, but for those that the user has set.

    JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=false keeps nothing. Nor is anything
    kept where the folder cannot be made.
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
    """One folder for each kind of processor: a home may be shared by machines that cannot run each other's programs."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "afloc_jax" / f"compiled-{platform.machine()}-{_processor()}"


def _processor() -> str:
    """Short name for what this processor can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = [platform.processor()]
    described = [line for line in lines if line.startswith(("model name", "flags", "Features"))] or lines
    return hashlib.sha256("\n".join(sorted(set(described))).encode()).hexdigest()[:12]
