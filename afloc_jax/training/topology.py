"""Devices that are not there: how a topology is written, and what JAX has to be told of it before it starts."""

import os
import re

from afloc_jax.errors import UsageError

_ACCELERATORS = {"v5e": "v5litepod-16", "v6e": "v6e-16", "v5p": "v5p-16", "v4": "v4-16"}


def prepare_platform(topology: str) -> None:
    """Set what JAX reads when it starts; call before JAX is imported. Raises UsageError for a malformed topology."""
    kind, _, shape = topology.partition(":")
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a kept program does not know all of its memory any more
    if kind == "cpu":
        if not shape.isdigit() or int(shape) < 1:
            raise UsageError(f"--topology {topology}: write cpu:N with the number of devices, e.g. cpu:8")
        given = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{given} --xla_force_host_platform_device_count={shape}".strip()
        return
    if kind not in _ACCELERATORS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UsageError(f"--topology {topology}: write v5e:16x16, v6e:16x16, v5p:8x8x8, v4:4x4x4 or cpu:8")
    # The TPU library would otherwise ask the cloud which machine this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", _ACCELERATORS[kind])
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # Nothing is driven, so several of these may run at once, beside a process that does own a TPU.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
