"""Flags of XLA's compiler that launch.py sets for the platform in use, and `afloc compile` for the cards of a topology.

They are set before JAX is imported.

- GPUs: the latency-hiding scheduler, which places other work between the start and the end of a collective; and one
  message for all that a device sends to the next one of a ring (by default up to 30 MiB), because of two messages on
  their way the scheduler lets one wait until the other has arrived.
- TPUs: none. libtpu accepts flags for asynchronous collectives, but its programs do not change (docs/scale.md).
- CPUs: none.
"""

import importlib.util
import os
from collections.abc import Mapping, MutableMapping
from importlib.metadata import version
from pathlib import Path

GPU_FLAGS = (
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    f"--xla_gpu_collective_permute_combine_threshold_bytes={2**30}",
)

# XLA ends a process whose XLA_FLAGS it does not know. Flags are therefore set only for versions that have been seen to
# accept them.
ACCEPTED_BY = ("0.10.2", "0.11.2", "0.12.0.1")
GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
_DRIVER = Path("/proc/driver/nvidia/version")


def set_flags(environment: MutableMapping[str, str], jaxlib: str = "") -> None:
    """Adds the flags of the platform in use to XLA_FLAGS of `environment`. `jaxlib`: see `add_gpu_flags`."""
    if platform_ahead(environment) == "gpu":
        add_gpu_flags(environment, jaxlib)


def add_gpu_flags(environment: MutableMapping[str, str], jaxlib: str = "") -> None:
    """Adds the flags of GPUs to XLA_FLAGS, except those that are already there with a value of the user.

    Args:
        environment: the variables to read and change.
        jaxlib: the version of jaxlib, by default the installed one.
    """
    if (jaxlib or version("jaxlib")) not in ACCEPTED_BY:
        return
    given = environment.get("XLA_FLAGS", "")
    names = {flag.partition("=")[0] for flag in given.split()}
    added = [flag for flag in GPU_FLAGS if flag.partition("=")[0] not in names]
    if added:
        environment["XLA_FLAGS"] = " ".join([*given.split(), *added])


def platform_ahead(environment: Mapping[str, str]) -> str:
    """What JAX will run on, told before it starts: "gpu" (of NVIDIA), "tpu", "cpu" or another one of JAX_PLATFORMS.

    Without that variable it is a GPU where plugin, driver and a visible card exist, and a TPU where libtpu does.
    """
    if first := environment.get("JAX_PLATFORMS", "").split(",")[0]:
        return "gpu" if first == "cuda" else first
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    if not hidden and _DRIVER.exists() and any(importlib.util.find_spec(name) for name in GPU_PLUGINS):
        return "gpu"
    return "tpu" if importlib.util.find_spec("libtpu") else "cpu"


def described(cache: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """The line of the log on how programs are compiled. `cache` is the folder of JAX's cache of compiled programs."""
    kept = f"compiled programs are kept in {cache}" if cache else "compiled programs are not kept"
    return f"{kept}; XLA_FLAGS: {environment.get('XLA_FLAGS') or 'none'}"
