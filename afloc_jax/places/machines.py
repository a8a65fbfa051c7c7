"""The machines that a topology stands for: hosts and their GPUs, or a slice of TPUs and what Google Cloud calls it."""

import math
import re
from dataclasses import dataclass

from afloc_jax.errors import UsageError
from afloc_jax.training.gpu_cards import CARDS
from afloc_jax.training.topology import KINDS


@dataclass(frozen=True)
class Gpus:
    """So many hosts with so many cards each."""

    hosts: int
    cards: int  # of a host

    @property
    def devices(self) -> int:
        """As JAX counts them."""
        return self.hosts * self.cards


@dataclass(frozen=True)
class Slice:
    """A slice of TPUs, with the names of Google Cloud (docs.cloud.google.com/tpu/docs and kubernetes-engine/docs)."""

    accelerator: str  # type of the slice for Cloud TPU and xpk
    runtime: str  # software of a Cloud TPU machine
    selector: str  # accelerator of a node of GKE
    grid: str  # topology of a node of GKE
    hosts: int
    chips: int  # of a host
    devices: int  # as JAX counts them


@dataclass(frozen=True)
class _Kind:
    prefix: str
    counted: int  # what the type of a slice counts of each chip: 1, or its 2 cores
    runtime: str
    selector: str
    alone: int  # chips of the largest host that is a slice of its own
    devices: int = 1  # of a chip


_KINDS = {
    "v5e": _Kind("v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", 8),
    "v6e": _Kind("v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice", 8),
    "v5p": _Kind("v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice", 4),
    "v4": _Kind("v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice", 4, devices=2),
}
_HOST = 4  # chips of a host of a slice of several


def machines(topology: str) -> Gpus | Slice:
    """The machines of a topology as `afloc compile` takes it.

    >>> machines("h100:4x8")
    Gpus(hosts=4, cards=8)
    >>> machines("v5e:4x4").accelerator, machines("v5e:4x4").hosts
    ('v5litepod-16', 4)

    Raises:
        UsageError: the topology is none of GPUs or TPUs.
    """
    kind, _, shape = topology.partition(":")
    if kind in CARDS and re.fullmatch(r"([1-9]\d*x)?[1-9]\d*", shape):
        nodes, _, cards = shape.rpartition("x")
        return Gpus(int(nodes or 1), int(cards))
    if kind not in _KINDS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise UsageError(f"--topology {topology}: write {KINDS.removesuffix(' or cpu:8')}")
    found, chips = _KINDS[kind], math.prod(map(int, shape.split("x")))
    hosts = 1 if chips <= found.alone else chips // _HOST
    return Slice(
        f"{found.prefix}-{chips * found.counted}", found.runtime, found.selector, shape, hosts, chips // hosts,
        chips * found.devices,
    )  # fmt: skip
