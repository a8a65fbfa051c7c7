"""How many images and text units a tile takes on a kind of device, within a stated memory.

A tile of m images, U units and N regions is the largest thing the loss holds. Its arrays [U, m, N] (scores, softmax,
weights, their gradients) and its part of the regions' gradient take about BYTES for every unit, image and region.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from afloc_jax.losses.packing import SLOT, bin_slots
from afloc_jax.losses.region_pooling import TileImages
from afloc_jax.losses.settings import LossSettings

# In bfloat16: the temporaries of `afloc compile --topology h100:1 --global_batch 128 --part loss` grow by so much for
# each element between tiles of 43 and of 128 images.
BYTES = 14


@dataclass(frozen=True)
class _Kind:
    """What suits a kind of device."""

    units: int
    memory: int  # MiB
    multiple: int = 1  # to which regions are filled up
    bins: int = 1
    slot: int = SLOT
    kept: int = 0  # MiB of tiles between the passes of a level; on CPUs what 32 published pairs need


# Two CPU cores are busy with one image, and a small tile stays in their cache. A GPU needs kernels of 10 microseconds
# and more, and its matrix products need a multiple of 8 (docs/scale.md has the tiles tried on one). The
# tile of a TPU is the best of those tried by its compiler's schedule (docs/scale.md): 128 slots fill the lanes of a
# register (tpu_tile.py), 16 rows of bfloat16 its sublanes, and four images its matrix units. None has run this yet.
KINDS = {"cpu": _Kind(96, 1, kept=384), "gpu": _Kind(256, 1024, multiple=8), "tpu": _Kind(512, 48, multiple=16, slot=4)}
# For loss.kernel = "triton", on any device: a bin is what a block of its kernels holds. With more bins in a tile, the
# gradient of the regions, as large as half of the scores of a bin, is read and written less often.
TRITON = _Kind(128, 1024, multiple=8, bins=8)


@dataclass(frozen=True)
class TileSize:
    """Images of each device, units of a bin, and bins at most in a tile."""

    images: int
    units: int
    multiple: int = 1
    bins: int = 1

    def tile(self, regions: Float[Array, "g p m N D"], wide: DTypeLike) -> TileImages:
        """The images; their sums are taken in the type `wide`."""
        return TileImages(self.filled_up(regions), regions.sum(axis=3, dtype=wide), regions.shape[3])

    def filled_up(self, regions: Float[Array, "g p m N D"]) -> Float[Array, "g p m M D"]:
        """Regions of zeros behind the others, where the device wants a multiple of some number."""
        missing = -regions.shape[3] % self.multiple
        return jnp.pad(regions, [(0, missing if axis == 3 else 0) for axis in range(5)]) if missing else regions


def _kind(settings: LossSettings, platform: str) -> _Kind:
    return TRITON if settings.kernel == "triton" else KINDS.get(platform, KINDS["gpu"])


def kept_memory(settings: LossSettings, platform: str) -> int:
    """The bytes that the forward pass of a level may keep of tiles, for the backward pass of the same level."""
    given = settings.kept_memory
    return (_kind(settings, platform).kept if given == "auto" else int(given)) * 2**20


def tile_units(settings: LossSettings, platform: str, longest: int) -> int:
    """The text units of a bin, which holds the longest caption; a power of 2 for "triton"."""
    kind = _kind(settings, platform)
    units = max(kind.units, -(-longest // kind.slot) * kind.slot)
    return 2 ** (units - 1).bit_length() if settings.kernel == "triton" else units


def slots_of_bin(settings: LossSettings, platform: str, longest: int) -> tuple[int, int]:
    """The slots of a bin, and the units of a slot."""
    slot = _kind(settings, platform).slot
    return bin_slots(longest, tile_units(settings, platform, longest), slot), slot


def tile_size(settings: LossSettings, platform: str, images: int, regions: int, longest: int) -> TileSize:
    """The tile of a level.

    Args:
        platform: of the devices that the loss is compiled for; one that is not known is sized as a GPU.
        images: of each device and contrast group.
        regions: of an image.
        longest: slots of the longest caption, which a tile has to hold.
    """
    kind = _kind(settings, platform)
    memory = (kind.memory if settings.tile_memory == "auto" else int(settings.tile_memory)) * 2**20
    units = tile_units(settings, platform, longest)
    at_most = max(1, memory // (BYTES * units * kind.bins * regions))
    passes = -(-images // at_most)
    return TileSize(-(-images // passes), units, kind.multiple, kind.bins)
