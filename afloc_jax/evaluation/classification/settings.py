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
        prompts: a prompt set, its file or its name; None for the phrases of the validation records. With a `multiclass`
            set each record gets exactly one class.
        aggregation: how the scores of the phrases of a class are aggregated, see `inference.zero_shot`.
        validation_split: the split of thresholds and of the data set's own phrases; "" for none.
        compatible: whether prompts are cleaned, and thresholds chosen on the scored records, as in the release.
    """

    task: ClassVar[str] = "classification"

    validation_split: str = setting(
        "validation", help="split on which chexlocalize, generalised and classification choose their thresholds"
    )
    aggregation: Literal["mean", "max"] = setting(
        "mean", help="score of a class from those of its phrases: their mean (AFLoc) or maximum (GLoRIA)"
    )

    @property
    def framed(self) -> Framing:
        """The release crops."""
        return self.framing or ("crop" if self.compatible else "pad")
