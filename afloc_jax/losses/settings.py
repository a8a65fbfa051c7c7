"""What the contrastive losses can be told, checked once, hashable so that jit may treat it as static."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from afloc_jax.errors import UsageError
from afloc_jax.levels import LEVELS

RegionPooling = Literal["attention", "logsumexp"]
ContrastUnit = Literal["caption", "unit"]
Kernel = Literal["xla", "pallas"]

# The kernels sum exp(temp2 (r - 1)) and exp(temp1 (p - 1/2)) without looking for a maximum first; r = -1 must still
# count in float32, and so must the square of a sum of the latter.
LARGEST_KERNEL_TEMPERATURE = 40.0


@dataclasses.dataclass(frozen=True)
class LocalSettings:
    """How a caption's units are compared with an image's regions; the defaults are the published recipe.

    `region_pooling` says how one text unit gathers evidence from the regions:
    "attention" (published) compares the unit with an attention-weighted mean of the regions,
    "logsumexp" takes a soft maximum of its cosines with the single regions (multiple-instance pooling), which lets a
    finding of a few regions speak for itself. `region_sharpness` is the k of that soft maximum.

    `contrast_unit` says what has to find its image: "caption" (published), or every single "unit" (unit_contrast.py;
    needs region_pooling = "logsumexp", and the pooling temperature then plays no part).

    `kernel` says who computes the tiles, the same numbers from each: "xla", or "pallas" (losses/kernels: for TPUs, and
    for the published pooling alone).
    """

    attention_temperature: float = 4.0
    pooling_temperature: float = 5.0
    contrast_temperature: float = 10.0
    region_pooling: RegionPooling = "attention"
    region_sharpness: float = 10.0
    contrast_unit: ContrastUnit = "caption"
    kernel: Kernel = "xla"

    def __post_init__(self) -> None:
        for name, kind in (("region_pooling", RegionPooling), ("contrast_unit", ContrastUnit), ("kernel", Kernel)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise UsageError(f"loss.{name} is {getattr(self, name)!r}; choose one of {choices}")
        if self.contrast_unit == "unit" and self.region_pooling == "attention":
            raise UsageError(
                'loss.contrast_unit = "unit" needs loss.region_pooling = "logsumexp": the published attention compares '
                "the units of a caption with each other"
            )
        for name in ("attention_temperature", "pooling_temperature", "contrast_temperature", "region_sharpness"):
            if not getattr(self, name) > 0:
                raise UsageError(f"loss.{name} is {getattr(self, name)}; it must be greater than 0")
        if self.kernel == "pallas":
            self._check_kernel()

    def _check_kernel(self) -> None:
        if self.region_pooling != "attention":
            raise UsageError(
                f"loss.kernel = 'pallas' computes loss.region_pooling = 'attention', not {self.region_pooling!r}; "
                "set loss.kernel to 'xla'"
            )
        for name in ("attention_temperature", "pooling_temperature"):
            if getattr(self, name) > LARGEST_KERNEL_TEMPERATURE:
                raise UsageError(
                    f"loss.kernel = 'pallas' needs loss.{name} of at most {LARGEST_KERNEL_TEMPERATURE:g}, "
                    f"not {getattr(self, name):g}; set loss.kernel to 'xla'"
                )

    @classmethod
    def from_config(cls, loss_config: Mapping[str, Any]) -> "LocalSettings":
        """The settings in `config.loss`; keys that it lacks keep the published value. Raises UsageError."""
        given = {field.name: loss_config.get(field.name, field.default) for field in dataclasses.fields(cls)}
        typed: dict[str, Any] = {
            name: float(value) if isinstance(value, int) else value for name, value in given.items()
        }
        return cls(**typed)


PUBLISHED = LocalSettings()


def check_weights(weights: Mapping[str, float]) -> None:
    """Raises UsageError where a level is unknown, a weight is negative, or nothing is left to learn from."""
    for name, weight in weights.items():
        if name not in LEVELS:
            raise UsageError(f"loss.weights has the level {name!r}; the levels are {', '.join(LEVELS)}")
        if not weight >= 0:
            raise UsageError(f"loss.weights.{name} is {weight}; it must be 0 (off) or greater")
    if not any(weights.values()):
        raise UsageError("loss.weights switches every level off; give at least one a weight greater than 0")


def group_size(contrast_group: int, batch: int) -> int:
    """Pairs contrasted with each other: `contrast_group`, or the batch where that is 0. Raises UsageError."""
    if contrast_group < 0 or (contrast_group and batch % contrast_group):
        raise UsageError(
            f"loss.contrast_group is {contrast_group} but the batch has {batch} pairs; it must be 0 or divide the batch"
        )
    return contrast_group or batch
