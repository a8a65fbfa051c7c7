"""Topologies of devices to compile for: how they are written, and the environment that JAX needs before it starts."""

import os
import re

from afloc_jax.errors import UsageError
from afloc_jax.training.gpu_cards import CARDS
from afloc_jax.training.xla_flags import add_gpu_flags

KINDS = f"v5e:16x16, v6e:16x16, v5p:8x8x8, v4:4x4x4, {':8, '.join(CARDS)}:8, h100:4x8 (hosts x cards) or cpu:8"
_ACCELERATORS = {"v5e": "v5litepod-16", "v6e": "v6e-16", "v5p": "v5p-16", "v4": "v4-16"}
_FLAT = {"v5e": 16, "v6e": 16}  # kinds of a flat grid, and the longest side of a pod


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
        _add_xla_flags(f"--xla_force_host_platform_device_count={shape}")
        return
    if kind in CARDS and re.fullmatch(r"([1-9]\d{0,4}x)?[1-9]\d{0,4}", shape):
        add_gpu_flags(os.environ)  # as launch.py does, so that the program is the one that runs
        # There is no card on which candidates for a product could be timed.
        _add_xla_flags("--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false")
        return
    if kind not in _ACCELERATORS or not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", shape):
        raise UsageError(f"--topology {topology}: write {KINDS}")
    if kind in _FLAT and (shape.count("x") > 1 or max(_chips(shape)) > _FLAT[kind]):
        most = _FLAT[kind]
        raise UsageError(f"--topology {topology}: chips of {kind} lie on a grid of two sides, at most {most}x{most}")
    # Otherwise the TPU library would query the cloud's metadata server.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", _ACCELERATORS[kind])
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # No TPU is used, so several such processes may run at once, also beside one that uses a TPU.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")


def hosts_and_cards(topology: str) -> str:
    """The shape of a topology of GPUs as PJRT takes it, "1 x hosts x cards of a host": h100:8 is 1x1x8."""
    shape = topology.partition(":")[2]
    return f"1x{shape}" if "x" in shape else f"1x1x{shape}"


def chips_of_host(topology: str) -> tuple[int, int, int]:
    """The grid of a host's chips in a slice of TPUs: 2 x 2 x 1, or a side of 1 where the slice has that."""
    first, second, *_ = _chips(topology.partition(":")[2])
    return min(first, 2), min(second, 2), 1


def _chips(shape: str) -> list[int]:
    return [int(side) for side in shape.split("x")]


def _add_xla_flags(flags: str) -> None:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
