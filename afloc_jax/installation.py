"""What this installation consists of, and what keeps JAX from a device that is there. `afloc doctor` prints it."""

import dataclasses
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from afloc_jax import extras
from afloc_jax.files import Path
from afloc_jax.provenance import code_version

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy", "pydicom")
_VENDORS = {"cuda": "0x10de", "tpu": "0x1ae0"}  # of NVIDIA and of Google, on the PCI bus
_DISPLAY = "0x03"  # the class of graphics cards; NVIDIA also makes network cards and bridges
_DRIVER = "proc/driver/nvidia/version"


@dataclass(frozen=True)
class Installation:
    """An installation.

    Attributes:
        code: the version of this package, with the commit of a clone.
        python: the version of Python and the system.
        versions: the versions of the main packages; None for one that is missing.
        devices: the devices that JAX computes on, such as "2 x NVIDIA H100".
        platform: "cpu", "gpu" or "tpu".
        extras: for each extra the packages that it lacks.
        remarks: what should be changed, a line each.
    """

    code: str
    python: str
    versions: dict[str, str | None]
    devices: str
    platform: str
    extras: dict[str, Sequence[str]]
    remarks: Sequence[str]

    def lines(self) -> list[str]:
        """The installation as text."""
        found = [self.code, self.python]
        found.append(", ".join(f"{name} {version or 'MISSING'}" for name, version in self.versions.items()))
        found.append(f"JAX computes on {self.devices}")
        width = max(map(len, self.extras))
        for extra, lacking in self.extras.items():
            state = f"lacks {', '.join(lacking)}: {extras.install(extra)}" if lacking else "installed"
            found.append(f"  {extra:{width}s}  {state}")
        return [*found, *(f"! {remark}" for remark in self.remarks)]

    def plain(self) -> dict[str, object]:
        """The installation for JSON."""
        return dataclasses.asdict(self)


def examine() -> Installation:
    """Examines this process's installation. Starts JAX."""
    devices = jax.devices()
    used = devices[0].platform
    return Installation(
        code=code_version(),
        python=f"Python {platform.python_version()}, {platform.platform(terse=True)}, {os.cpu_count()} CPU cores",
        versions={name: extras.version(name) for name in PACKAGES},
        devices=f"{len(devices)} x {devices[0].device_kind}",
        platform=used,
        extras={extra: extras.missing(extra) for extra in extras.EXTRAS},
        remarks=remarks(used, Path("/"), os.environ.get("JAX_PLATFORMS", "")),
    )


def remarks(used: str, root: Path, platforms: str) -> list[str]:
    """What keeps JAX from the accelerators of this machine.

    Args:
        used: the platform that JAX uses.
        root: the root of the file system, of which sys/ and proc/ are read.
        platforms: the value of JAX_PLATFORMS.
    """
    if used != "cpu":
        return []
    found = []
    for extra, what in (("cuda", "an NVIDIA card"), ("tpu", "a TPU")):
        if not present(extra, root):
            continue
        said = f"{what} is present, but JAX runs on the CPU"
        if platforms:
            found.append(f"{said}, because JAX_PLATFORMS={platforms}: unset that variable")
        elif lacking := extras.missing(extra):
            found.append(f"{said}, because {', '.join(lacking)} is not installed: {extras.install(extra)}")
        elif extra == "cuda" and not (root / _DRIVER).exists():
            found.append(f"{said}, because NVIDIA's driver is not loaded: install the driver, 580 or newer")
        else:
            name = "cuda" if extra == "cuda" else "tpu"
            found.append(f"{said}; python -c \"import jax; jax.devices('{name}')\" says why")
    return found


def present(extra: str, root: Path) -> bool:
    """Whether a card that an extra ("cuda", "tpu") is for can be seen: on the PCI bus, or by its driver.

    A virtual machine or a container may hide either.
    """
    if extra == "cuda" and (root / _DRIVER).exists():
        return True
    for device in (root / "sys/bus/pci/devices").glob("*"):
        vendor, kind = (_read(device / name) for name in ("vendor", "class"))
        if vendor == _VENDORS[extra] and (extra != "cuda" or kind.startswith(_DISPLAY)):
            return True
    return False


def _read(path: Path) -> str:
    try:
        return str(path.read_text()).strip()
    except OSError:
        return ""
