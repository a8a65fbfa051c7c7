"""The peak rates of devices, which the share of peak of a training run is measured by."""

from collections.abc import Iterable

import jax

# FLOP/s of bfloat16 products on dense matrices, of a GPU or a TPU chip, by the name that JAX gives to the device.
# TPUs: docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x); JAX knows some by two names. GPUs: NVIDIA's data
# sheets, whose numbers for L4, H100, H200 and B200 are stated with sparsity and are halved here; RTX 4090: its white
# paper on Ada, with sums in float32. A part of a card (MIG) has another name and is not known.
PEAK_RATES = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA H100 PCIe": 756.5e12,
    "NVIDIA H200": 989.5e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
}


def peak_rate(devices: Iterable[jax.Device]) -> float | None:
    """The FLOP/s of devices of one kind together; None where the kind is not known, such as for a CPU."""
    devices = list(devices)
    rate = PEAK_RATES.get(devices[0].device_kind)
    if rate is None:
        return None
    # JAX shows the chips of some TPUs as two devices, one for each core.
    cores = 1 + max(getattr(device, "core_on_chip", 0) for device in devices)
    return rate / cores * len(devices)
