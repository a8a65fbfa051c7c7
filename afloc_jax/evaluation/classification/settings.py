"""The settings of classification."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from afloc_jax.evaluation.settings import PromptedSettings
from afloc_jax.settings import setting
from data_pipelines.constants import Framing


@dataclass(frozen=True)
class ClassificationSettings(PromptedSettings):
    """A labelled data set and the prompts of its classes.

    Attributes:
        prompts: a prompt set, its file or its name. None: the phrases of the validation records. A `multiclass` set
            makes classification a choice of one class.
        aggregation: how the phrases of a class become one score, see `inference.zero_shot`.
        validation_split: where thresholds and the data set's own phrases come from; "" for none.
        compatible: prompts cleaned, and thresholds chosen on the scored records, as in the release.
    """

    task: ClassVar[str] = "classification"

    validation_split: str = setting(
        "validation", help="which part thresholds are chosen on, of chexlocalize and classification"
    )
    aggregation: Literal["mean", "max"] = setting(
        "mean", help="how the phrases of a class become one score: their mean (AFLoc) or the largest (GLoRIA)"
    )

    @property
    def framed(self) -> Framing:
        """The release crops."""
        return self.framing or ("crop" if self.compatible else "pad")
