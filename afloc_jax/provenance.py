"""The provenance that is written beside every result: code, weights, data, device, versions."""

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
    """Code, device, versions and time of this process, with the given facts; those that are None or "" are left out."""
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
    """The version of the package, and in a git checkout the commit, with "+changes" if files differ from it."""
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
    """The SHA-256 of settings, independent of the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
