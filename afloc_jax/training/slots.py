"""The devices of one machine, dealt out to runs that go on at the same time.

The devices are counted without JAX: a process that starts JAX takes them, and the runs need them.
"""

import os
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from afloc_jax.errors import UsageError

_MEMORY = 0.9  # share of a GPU's memory that runs which share it take together
_NVIDIA, _CHIPS = "/dev/nvidia[0-9]*", ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")  # files of GPUs; of TPU chips


@dataclass(frozen=True)
class Slot:
    """The devices of a run: what its environment says of them, and its CPU cores (empty: all)."""

    environment: Mapping[str, str] = field(default_factory=dict)
    cores: frozenset[int] = frozenset()


def slots(count: int, environment: Mapping[str, str], root: str = "/") -> list[Slot]:
    """So many parts of the machine. Each has as many GPUs or TPU chips as the others; without any, CPU cores.

    Of fewer GPUs than parts, several parts share one, and its memory.

    Args:
        count: the number of runs at a time.
        environment: this process's environment. CUDA_VISIBLE_DEVICES and TPU_VISIBLE_CHIPS name the devices it may use.
        root: the root of the file system.

    Raises:
        UsageError: the devices cannot be dealt out so.
    """
    if count == 1:
        return [Slot()]
    platforms = environment.get("JAX_PLATFORMS", "")
    gpus = _named(environment.get("CUDA_VISIBLE_DEVICES")) or _found(root, _NVIDIA)
    if gpus and platforms in ("", "cuda", "gpu"):
        return [Slot(_of_gpus(part, count, len(gpus))) for part in _dealt(gpus, count, "GPUs", shared=True)]
    chips = _named(environment.get("TPU_VISIBLE_CHIPS")) or [chip for form in _CHIPS for chip in _found(root, form)]
    if chips and platforms in ("", "tpu"):
        return [Slot(_of_chips(part)) for part in _dealt(chips, count, "TPU chips")]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if count > len(cores):
        return [Slot()] * count
    return [Slot(cores=frozenset(cores[part::count])) for part in range(count)]


def _named(listed: str | None) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()] if listed else []


def _found(root: str, form: str) -> list[str]:
    """The numbers at the end of the names of device files."""
    names = [path.name.lstrip(string.ascii_lowercase) for path in Path(root).glob(form.lstrip("/"))]
    return sorted((name for name in names if name.isdigit()), key=int)


def _dealt(devices: Sequence[str], count: int, what: str, shared: bool = False) -> list[Sequence[str]]:
    if count <= len(devices):
        each = len(devices) // count
        return [devices[part * each : (part + 1) * each] for part in range(count)]
    if not shared:
        raise UsageError(f"--parallel={count}: there are {len(devices)} {what}, and a run needs one; give at most that")
    if count % len(devices):
        raise UsageError(f"--parallel={count}: must be a multiple of the {len(devices)} {what} that the runs share")
    return [devices[part % len(devices) : part % len(devices) + 1] for part in range(count)]


def _of_gpus(part: Sequence[str], count: int, gpus: int) -> dict[str, str]:
    seen = {"CUDA_VISIBLE_DEVICES": ",".join(part)}
    if count > gpus:  # each would take three quarters of the memory
        seen["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{_MEMORY * gpus / count:.3f}"
    return seen


def _of_chips(part: Sequence[str]) -> dict[str, str]:
    """The environment of a process that has some of the chips of a host. Without bounds libtpu looks for the others."""
    if len(part) not in (1, 2, 4):
        raise UsageError(f"--parallel: would give each run {len(part)} TPU chips; 1, 2 or 4 are possible")
    bounds = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}[len(part)]
    return {
        "TPU_VISIBLE_CHIPS": ",".join(part),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": bounds,
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }
