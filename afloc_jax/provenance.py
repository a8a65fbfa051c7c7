"""Where a number comes from: code, weights, data, device, versions. This is written beside every result."""

import datetime
import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import afloc_jax
from afloc_jax.settings import Json

PACKAGES = ("jax", "flax", "numpy")


def provenance(**facts: Json) -> dict[str, Json]:
    """Facts of this process (code, device, versions, time) and the given ones, but for those that are None or ""."""
    device = jax.devices()[0]
    found: dict[str, Json] = {
        **facts,
        "code": code_version(),
        "device": f"{jax.device_count()} x {device.device_kind}",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return {key: value for key, value in found.items() if value not in (None, "")}


@functools.cache
def code_version() -> str:
    """Version of the package, and in a git checkout the commit, with "+changes" when files differ from it."""
    version = f"afloc_jax {afloc_jax.__version__}"
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return version
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+changes", "--abbrev=10", "--exclude=*"]
        described = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}, commit {described.stdout.strip()}"


def hash_of(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
