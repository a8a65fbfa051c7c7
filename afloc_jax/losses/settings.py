"""`config.loss`: the settings of the contrastive losses. They are hashable, so that jit may treat them as static."""

import math
from dataclasses import dataclass
from typing import Literal

from afloc_jax.errors import UsageError
from afloc_jax.levels import LevelName
from afloc_jax.settings import NOT_NEGATIVE, POSITIVE, Rule, Settings, setting

# The kernels sum exp(temp2 (r - 1)) and exp(temp1 (p - 1/2)) without subtracting a maximum first. Up to this
# temperature neither sum underflows or overflows in float32: exp(-2 temp2), the value for r = -1, is at least 1e-35,
# and exp(+-temp1 / 2) lies between 1e-9 and 1e9, so that the square of its sum over regions is safe as well.
LARGEST_KERNEL_TEMPERATURE = 40.0
# Up to here exp(temp1 p), and the square of its sum over regions, may be taken in float32 without the maximum of p.
NEAR_ONE_TEMPERATURE = 20.0
Twins = Literal["negative", "mask", "share"]
# A string, because a flag of launch.py keeps the type of the value in the config.
TILE_MEMORY = Rule(lambda given: given == "auto" or (given.isdecimal() and int(given) > 0), '"auto" or MiB, as "512"')
KEPT_MEMORY = Rule(lambda given: given == "auto" or given.isdecimal(), '"auto" or MiB, as "512", or "0"')


@dataclass(frozen=True)
class LevelWeights(Settings, section="loss.weights"):
    """The weight of each level in the total loss; 0 switches a level off."""

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
    """How images are compared with captions, and which pairs are contrasted. The defaults are the published losses,
    over the whole batch.

    Attributes:
        attention_temperature: temp1, the sharpness of the softmax over regions.
        pooling_temperature: temp2, the sharpness of the sum over text units.
        contrast_temperature: temp3, the scale of similarities in the cross entropies.
        region_pooling: how the relevance of a text unit to an image follows from the regions. "attention" (published)
            takes the cosine of the unit with an attention-weighted mean of the regions. "logsumexp" takes a soft
            maximum of the unit's cosines with the single regions (multiple-instance pooling), so that a finding that
            covers few regions is not averaged away. "similarity" (RadZero) takes the cosine of the unit with the mean
            of the regions' directions, weighted by a softmax of their cosines; it needs contrast_unit = "unit".
        region_sharpness: the k of that soft maximum, and of that softmax.
        word_map: the image map that words are compared with, "shallow" (published) or "deep" (as GLoRIA has one map).
        objective: what is made of the similarities: "softmax" (published), the cross entropies of
            `definition.contrast`, or "sigmoid" (SigLIP), one decision for every pair (`definition.sigmoid_contrast`).
            Then `contrast_temperature` and `sigmoid_bias` are where the temperature and the bias of each level start;
            both are learned.
        sigmoid_bias: where that bias starts: at first a pair is taken to be wrong, as all but one of K are.
        contrast_unit: what is contrasted with the images: the whole "caption" (published), or every single "unit" of
            it (unit_contrast.py). The pooling temperature is not used with "unit".
        unit_negatives: what a single unit is told from: other "images", or "both", other images and, for its image, the
            units of other captions (RadZero; `definition.multi_positive_contrast`).
        contrast_group: the number of pairs contrasted with each other; 0 stands for all pairs of the batch.
        contrast_group_order: the order in which a batch is split into groups: that of the "batch", or by "length",
            longest caption first (published; `definition.length_order`). The training step puts the pairs in this order
            before they are encoded, so groups of batch statistics follow it too; a loss takes them as they come.
        twins: what pairs of a group with the same text are for each other: "negative" (published), neither ("mask"), or
            both right ("share"). At the report level twins have the same text as drawn, at the others they share a
            sentence; see `definition.contrast`.
        hard_negatives: the number of captions, made from each report by changing its sentences, that are negatives of
            its image at the sentence level; 0 (published) for none. The kinds of changes are in
            data_pipelines/negatives.py, the formula in `definition.contrast` and unit_contrast.py.
        implementation: "definition", "tiled" or "ring" (over the devices of a mesh). All give the same numbers. "auto"
            takes "ring" on several devices and "tiled" on one.
        kernel: what computes the tiles: "xla", "pallas" (losses/kernels, for TPUs) or "triton" (losses/kernels, for
            GPUs). All give the same numbers.
        tile_memory: the memory that a tile of the word or sentence level may take on a device: "auto" for what suits
            the kind of device (tile_size.py), or MiB, such as "512".
        kept_memory: the memory that the forward pass of the word or sentence level may keep of its tiles, so that the
            backward pass does not compute them again: "auto" for what suits the kind of device (tile_size.py: nothing
            but on CPUs), or MiB of a device, "0" for nothing. It changes no result. Tiles that find no room, or
            are beyond half of those that the shapes allow for, are computed twice, as are all of region_pooling =
            "logsumexp", of TPUs, of kernels and of "ring".
        low_rank: whether the word level is computed in the width of the shallow features (low_rank.py). It gives the
            same numbers. "auto" stands for on wherever that is possible and less work. Only the config of a run knows
            the model, so it settles this (training/settings.py); a loss that is called with "auto" leaves it off.
        weights: the weight of each level in the total.
    """

    attention_temperature: float = setting(4.0, POSITIVE)
    pooling_temperature: float = setting(5.0, POSITIVE)
    contrast_temperature: float = setting(10.0, POSITIVE)
    region_pooling: Literal["attention", "logsumexp", "similarity"] = "attention"
    region_sharpness: float = setting(10.0, POSITIVE)
    word_map: Literal["shallow", "deep"] = "shallow"
    objective: Literal["softmax", "sigmoid"] = "softmax"
    sigmoid_bias: float = setting(-10.0, Rule(math.isfinite, "a finite number"))
    contrast_unit: Literal["caption", "unit"] = "caption"
    unit_negatives: Literal["images", "both"] = "images"
    contrast_group: int = setting(0, Rule(lambda pairs: pairs == 0 or pairs > 1, "0 (the whole batch) or at least 2"))
    contrast_group_order: Literal["batch", "length"] = "batch"
    twins: Twins = "negative"
    hard_negatives: int = setting(0, NOT_NEGATIVE)
    implementation: Literal["auto", "definition", "tiled", "ring"] = "auto"
    kernel: Literal["xla", "pallas", "triton"] = "xla"
    tile_memory: str = setting("auto", TILE_MEMORY)
    kept_memory: str = setting("auto", KEPT_MEMORY)
    low_rank: Literal["auto", True, False] = "auto"
    weights: LevelWeights = LevelWeights()

    def __post_init__(self) -> None:
        spelled = {"true": True, "false": False}  # as a command line may hand them on
        object.__setattr__(self, "low_rank", spelled.get(str(self.low_rank).lower(), self.low_rank))
        for name in ("tile_memory", "kept_memory"):
            # A number, as `--set loss.tile_memory=512` of afloc compile gives it.
            given: str | int = getattr(self, name)
            if isinstance(given, int) and not isinstance(given, bool):
                object.__setattr__(self, name, str(given))
        super().__post_init__()

    def check(self) -> None:
        by_unit = self.contrast_unit == "unit"
        if by_unit and self.region_pooling == "attention":
            raise UsageError(
                "loss.contrast_unit = 'unit': needs loss.region_pooling = 'logsumexp' or 'similarity', because the "
                "published attention compares the units of a caption with each other"
            )
        if self.region_pooling == "similarity" and not by_unit:
            raise UsageError(
                "loss.region_pooling = 'similarity': compares single units, so it needs loss.contrast_unit = 'unit'"
            )
        if by_unit and self.unit_negatives == "both" and self.twins == "share":
            raise UsageError("loss.unit_negatives = 'both': needs loss.twins = 'negative' or 'mask', not 'share'")
        if by_unit and self.implementation == "ring":
            raise UsageError("loss.implementation = 'ring': needs loss.contrast_unit = 'caption'; set it to 'tiled'")
        if by_unit and self.objective == "sigmoid":
            raise UsageError("loss.objective = 'sigmoid': needs loss.contrast_unit = 'caption'; set it to 'caption'")
        if self.hard_negatives and not self.weights.sentence:
            raise UsageError(
                f"loss.hard_negatives = {self.hard_negatives}: are negatives of the sentence level, so they need "
                "loss.weights.sentence above 0"
            )
        if self.low_rank is True and (needs := self.low_rank_needs()):
            raise UsageError(f"loss.low_rank = True: {needs}")
        if self.kernel != "xla":
            self._check_kernel()

    @property
    def is_low_rank(self) -> bool:
        """Whether the word level is computed in the width of the shallow features: False for "auto", see above."""
        return self.low_rank is True

    def low_rank_needs(self) -> str:
        """The setting that has to change before `low_rank` can be on, as "needs ..."; empty if none has to."""
        if self.word_map == "deep":
            return "needs loss.word_map = 'shallow'"
        if self.contrast_unit == "unit":
            return "needs loss.contrast_unit = 'caption'"
        if self.implementation == "definition":
            return "needs loss.implementation = 'tiled' or 'ring', not 'definition'"
        return ""

    def _check_kernel(self) -> None:
        name = f"loss.kernel = {self.kernel!r}"
        if self.implementation == "definition":
            raise UsageError(f"{name}: needs loss.implementation = 'tiled' or 'ring', not 'definition'")
        if self.kernel == "pallas" and self.objective == "sigmoid":
            raise UsageError(f"{name}: computes loss.objective = 'softmax', not 'sigmoid'; set loss.kernel to 'xla'")
        if self.region_pooling != "attention":
            raise UsageError(
                f"{name}: computes loss.region_pooling = 'attention', not {self.region_pooling!r}; "
                "set loss.kernel to 'xla'"
            )
        largest = {"attention_temperature": NEAR_ONE_TEMPERATURE}
        if self.kernel == "pallas":
            largest = dict.fromkeys(("attention_temperature", "pooling_temperature"), LARGEST_KERNEL_TEMPERATURE)
        for temperature, most in largest.items():
            given: float = getattr(self, temperature)
            if given > most:
                raise UsageError(
                    f"{name}: needs loss.{temperature} of at most {most:g}, not {given:g}; set loss.kernel to 'xla'"
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
