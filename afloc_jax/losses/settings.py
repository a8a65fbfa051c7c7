"""`config.loss`: what the contrastive losses can be told. Hashable, so that jit may treat it as static."""

from dataclasses import dataclass
from typing import Literal

from afloc_jax.errors import UsageError
from afloc_jax.levels import LevelName
from afloc_jax.settings import NOT_NEGATIVE, POSITIVE, Rule, Settings, setting

# The kernels sum exp(temp2 (r - 1)) and exp(temp1 (p - 1/2)) without looking for a maximum first; r = -1 must still
# count in float32, and so must the square of a sum of the latter.
LARGEST_KERNEL_TEMPERATURE = 40.0


@dataclass(frozen=True)
class LevelWeights(Settings, section="loss.weights"):
    """The share of each level in the total loss; 0 switches a level off."""

    report: float = setting(1.0, NOT_NEGATIVE)
    sentence: float = setting(1.0, NOT_NEGATIVE)
    word: float = setting(1.0, NOT_NEGATIVE)

    def check(self) -> None:
        if not (self.report or self.sentence or self.word):
            raise UsageError(f"{self.section}: all 0, nothing to learn from; set at least one level above 0")

    def of(self, level: LevelName) -> float:
        """The weight of a level."""
        weight: float = getattr(self, level)
        return weight


@dataclass(frozen=True)
class LossSettings(Settings, section="loss"):
    """How captions are compared with images and what is contrasted; the defaults are the published recipe.

    Attributes:
        attention_temperature: temp1, the sharpness of the softmax over regions.
        pooling_temperature: temp2, the sharpness of the sum over text units.
        contrast_temperature: temp3, the scale of similarities in the cross entropies.
        region_pooling: how one text unit gathers evidence from the regions. "attention" (published) compares the unit
            with an attention-weighted mean of the regions. "logsumexp" takes a soft maximum of its cosines with the
            single regions (multiple-instance pooling), so that a finding of a few regions speaks for itself.
        region_sharpness: the k of that soft maximum.
        contrast_unit: what has to find its image: the "caption" (published), or every single "unit" (unit_contrast.py;
            the pooling temperature then plays no part).
        contrast_group: pairs that are contrasted with each other; 0 stands for the whole batch.
        implementation: "definition", "tiled" or "ring" (over the devices of a mesh), the same numbers from each;
            "auto" takes a ring where there are several devices.
        kernel: what computes the tiles, the same numbers from each: "xla", or "pallas" (losses/kernels: for TPUs).
        low_rank: whether the word level is computed in the width of the shallow features, the same numbers again.
        weights: the share of each level.
    """

    attention_temperature: float = setting(4.0, POSITIVE)
    pooling_temperature: float = setting(5.0, POSITIVE)
    contrast_temperature: float = setting(10.0, POSITIVE)
    region_pooling: Literal["attention", "logsumexp"] = "attention"
    region_sharpness: float = setting(10.0, POSITIVE)
    contrast_unit: Literal["caption", "unit"] = "caption"
    contrast_group: int = setting(0, Rule(lambda pairs: pairs == 0 or pairs > 1, "0 (the whole batch) or at least 2"))
    implementation: Literal["auto", "definition", "tiled", "ring"] = "auto"
    kernel: Literal["xla", "pallas"] = "xla"
    low_rank: bool = False
    weights: LevelWeights = LevelWeights()

    def check(self) -> None:
        by_unit = self.contrast_unit == "unit"
        if by_unit and self.region_pooling == "attention":
            raise UsageError(
                "loss.contrast_unit = 'unit': needs loss.region_pooling = 'logsumexp', because the published attention "
                "compares the units of a caption with each other"
            )
        if by_unit and self.implementation == "ring":
            raise UsageError("loss.implementation = 'ring': needs loss.contrast_unit = 'caption'; set it to 'tiled'")
        if by_unit and self.low_rank:
            raise UsageError("loss.low_rank = True: needs loss.contrast_unit = 'caption'")
        if self.low_rank and self.implementation == "definition":
            raise UsageError("loss.low_rank = True: needs loss.implementation = 'tiled' or 'ring', not 'definition'")
        if self.kernel == "pallas":
            self._check_kernel()

    def _check_kernel(self) -> None:
        if self.implementation == "definition":
            raise UsageError("loss.kernel = 'pallas': needs loss.implementation = 'tiled' or 'ring', not 'definition'")
        if self.region_pooling != "attention":
            raise UsageError(
                f"loss.kernel = 'pallas': computes loss.region_pooling = 'attention', not {self.region_pooling!r}; "
                "set loss.kernel to 'xla'"
            )
        for name in ("attention_temperature", "pooling_temperature"):
            if getattr(self, name) > LARGEST_KERNEL_TEMPERATURE:
                raise UsageError(
                    f"loss.kernel = 'pallas': needs loss.{name} of at most {LARGEST_KERNEL_TEMPERATURE:g}, "
                    f"not {getattr(self, name):g}; set loss.kernel to 'xla'"
                )

    def group_size(self, batch: int) -> int:
        """The number of pairs contrasted with each other in a batch. Raises UsageError where groups do not fill it."""
        group = self.contrast_group or batch
        if batch % group:
            raise UsageError(
                f"loss.contrast_group = {group}: must be 0 (the whole batch) or a divisor of the batch, {batch} pairs"
            )
        return group


PUBLISHED = LossSettings()
