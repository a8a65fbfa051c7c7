"""GPUs that `afloc compile` knows: what XLA's compiler asks of a card, so that none is needed.

The numbers are those of XLA's own descriptions, read in November 2026 (openxla/xla,
xla/backends/gpu/target_config/specs/). XLA describes no card of the Ada generation: those of the L4 and the RTX 4090
are what NVIDIA's deviceQuery prints on such cards (memory, cores, clock, level-2 cache, width and clock of the memory),
and what the CUDA C++ programming guide lists for compute capability 8.9 (threads, shared memory).
"""

import os
from dataclasses import dataclass

from afloc_jax.errors import UserError

FRACTIONS = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"  # JAX reads both; the second is the older name


@dataclass(frozen=True)
class Card:
    """A kind of GPU. Sizes are bytes."""

    name: str
    capability: tuple[int, int]  # CUDA compute capability
    cores: int
    units_per_core: int
    threads_per_core: int
    shared_memory_per_core: int
    shared_memory_per_block: int
    level_2_cache: int
    memory: int
    bandwidth: int  # bytes a second
    clock: float  # GHz

    def description(self) -> str:
        """The `GpuTargetConfigProto` of XLA, as text."""
        major, minor = self.capability
        info = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 49152,
            "shared_memory_per_core": self.shared_memory_per_core,
            "threads_per_core_limit": self.threads_per_core,
            "core_count": self.cores,
            "fpus_per_core": self.units_per_core,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "memory_bandwidth": self.bandwidth,
            "l2_cache_size": self.level_2_cache,
            "clock_rate_ghz": self.clock,
            "device_memory_size": self.memory,
            "shared_memory_per_block_optin": self.shared_memory_per_block,
            "registers_per_core_limit": 65536,
            "registers_per_block_limit": 65536,
        }
        fields = " ".join(f"{name}: {value}" for name, value in info.items())
        return (
            f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
            'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 8 } '
            f'device_description_str: "{self.name}"'
        )

    def usable(self) -> int:
        """The bytes that JAX takes for programs when it starts. Raises UserError where its variable is no fraction."""
        # As JAX reads it: set to "" it is not set.
        name, given = next(((name, given) for name in FRACTIONS if (given := os.environ.get(name))), ("", "0.75"))
        try:
            fraction = float(given)
        except ValueError:
            fraction = 0.0
        if not 0 < fraction <= 1:
            raise UserError(f"{name}={given}: must be a number above 0 and up to 1, the part of a card for programs")
        return int(self.memory * fraction)


_ADA = (128, 1536, 102400, 101376)
_HOPPER = (132, 128, 2048, 233472, 232448, 50 * 2**20)
CARDS = {
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), *_HOPPER, 84942979072, 3352320000000, 1.98),
    "h200": Card("NVIDIA H200 141GB HBM3e", (9, 0), *_HOPPER, 151397597184, 4800000000000, 1.98),
    "a100": Card(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 2048, 167936, 166912, 40 * 2**20, 85100068864, 2039040000000, 1.41
    ),
    "a100-40": Card(
        "NVIDIA A100-SXM4-40GB", (8, 0), 108, 64, 2048, 167936, 166912, 40 * 2**20, 42331013120, 1555200000000, 1.41
    ),
    "b200": Card("NVIDIA B200", (10, 0), 148, 128, 2048, 233472, 232448, 132644864, 191514411008, 7672320000000, 1.965),
    "rtx6000pro": Card(
        "NVIDIA RTX PRO 6000 Blackwell", (12, 0), 188, 128, 1536, 131072, 101376, 2**27, 96 * 2**30, 1792000000000, 2.6
    ),
    "rtx4090": Card("NVIDIA GeForce RTX 4090", (8, 9), 128, *_ADA, 72 * 2**20, 25250627584, 1008096000000, 2.52),
    "l4": Card("NVIDIA L4", (8, 9), 58, *_ADA, 48 * 2**20, 23612293120, 300048000000, 2.04),
}
