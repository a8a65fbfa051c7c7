"""Topologies of devices to compile for: how they are written, and the environment that JAX needs before it starts."""

import os
import re

from afloc_jax.errors import UsageError

_ACCELERATORS = {"v5e": "v5litepod-16", "v6e": "v6e-16", "v5p": "v5p-16", "v4": "v4-16"}


def prepare_platform(topology: str) -> None:
    """Sets the environment variables for a topology. Call it before JAX is imported.

    Raises UsageError for a malformed topology.
    """
    kind, _, shape = topology.partition(":")
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a cached program does not report all of its memory
    if kind == "cpu":
        if not shape.isdigit() or int(shape) < 1:
            raise UsageError(f"--topology {topology}: write cpu:N with the number of devices, e.g. cpu:8")
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count={shape}".strip()
        return
    if kind not in _ACCELERATORS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UsageError(f"--topology {topology}: write v5e:16x16, v6e:16x16, v5p:8x8x8, v4:4x4x4 or cpu:8")
    # Otherwise the TPU library would query the cloud's metadata server.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", _ACCELERATORS[kind])
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # No TPU is used, so several such processes may run at once, also beside one that uses a TPU.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
