"""The settings of counterfactuals."""

from dataclasses import dataclass
from typing import ClassVar

from afloc_jax.evaluation.settings import LabelledSettings


@dataclass(frozen=True)
class CounterfactualSettings(LabelledSettings):
    """A data set with masks or boxes, the findings of which are asked for as they are and otherwise.

    `labels` and `unlisted` decide which findings are absent in an image. The framing is that of similarities; heat maps
    are always padded.
    """

    task: ClassVar[str] = "counterfactual"
