"""The settings of transfer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.settings import LabelledSettings
from afloc_jax.settings import NOT_EMPTY, NOT_NEGATIVE, POSITIVE, Rule, setting

# The five classes of the CheXpert competition, and what GLoRIA's code takes their uncertain labels for
# (`CHEXPERT_UNCERTAIN_MAPPINGS` in gloria/constants.py, "based on original chexpert paper").
CHEXPERT_UNCERTAIN: Mapping[str, int] = {
    "atelectasis": 1,
    "cardiomegaly": 0,
    "consolidation": 0,
    "edema": 1,
    "pleural effusion": 1,
}
# Strengths of L2 of which validation chooses one; the loss is a mean over records, so they mean the same at all shares.
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)

_SHARES = Rule(
    lambda values: len({*values}) == len(values) > 0 and all(0 < value <= 1 for value in values),
    "different shares, each greater than 0 and at most 1",
)


@dataclass(frozen=True)
class TransferSettings(LabelledSettings):
    """A labelled data set, and the shares of its training labels that a head learns from.

    Attributes:
        target: what the head learns: the labels of images, or the masks of findings (see `segmentation`).
        train_split: the split whose labels the head learns from.
        validation_split: the split that chooses the strength of L2, or the step to stop at.
        fractions: the shares of patients of the training split. Smaller subsets lie within larger ones.
        subset_seed: the seed by which patients are drawn.
        uncertain: what uncertain labels are: unknown, or present or absent by `CHEXPERT_UNCERTAIN`.
        cells: the most cells of deep maps that a share of the masks learns from, the same number of each image.
    """

    task: ClassVar[str] = "transfer"

    target: Literal["labels", "masks"] = setting(
        "labels", help="what the head learns: labels of images, or masks of findings"
    )
    train_split: str = setting("train", NOT_EMPTY, help="split whose labels the head learns from")
    validation_split: str = setting(
        "validation", NOT_EMPTY, help="split on which chexlocalize and classification choose their thresholds"
    )
    fractions: tuple[float, ...] = setting(
        (0.01, 0.1, 1.0), _SHARES, help="shares of the labelled patients to learn from", metavar="SHARE,SHARE"
    )
    subset_seed: int = setting(0, NOT_NEGATIVE, help="seed by which these patients are drawn")
    uncertain: Literal["unknown", "chexpert"] = setting(
        "unknown", help="uncertain labels: unknown, or those of the CheXpert competition as GLoRIA maps them"
    )
    cells: int = setting(100_000, POSITIVE, help="most cells of deep maps that a share of the masks learns from")

    def check(self) -> None:
        """Raises UsageError where masks are asked for in another framing than their own."""
        if self.target == "masks" and self.framed != "pad":
            raise UsageError(
                f"{self.name_of('framing')} = {self.framed!r}: masks are those of padded squares; leave it out"
            )
