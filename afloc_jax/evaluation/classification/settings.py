"""How a data set is evaluated by classification."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from afloc_jax.evaluation.settings import LabelledSettings, prompts_of
from afloc_jax.inference.class_prompts import PromptSet
from afloc_jax.settings import setting


@dataclass(frozen=True)
class ClassificationSettings(LabelledSettings):
    """A labelled data set and how its classes are asked for.

    Attributes:
        prompts: how classes are asked for: a prompt set, its file or its name. None: as the data set's validation
            records ask. A `multiclass` set makes classification a choice of one class.
        aggregation: how the phrases of a class become one score, see `inference.zero_shot`.
        validation_split: where thresholds and the data set's own phrases come from; "" for none.
        compatible: prompts cleaned, and thresholds chosen on the scored records, as in the release.
    """

    task: ClassVar[str] = "classification"

    validation_split: str = setting(
        "validation", help="which part thresholds are chosen on, of chexlocalize and classification"
    )
    prompts: str | PromptSet | None = setting(
        None,
        help="phrases of each class: a JSON file (docs/classification.md) or the name of a built-in set such as chest; "
        "without it: as the data set's validation records ask; ten ways of each class for robustness",
        metavar="FILE",
    )
    aggregation: Literal["mean", "max"] = setting(
        "mean", help="how the phrases of a class become one score: their mean (AFLoc) or the largest (GLoRIA)"
    )

    @property
    def prompt_set(self) -> PromptSet | None:
        """How classes are asked for; None: the task's own way."""
        return prompts_of(self.prompts)

    @property
    def framed(self) -> Literal["pad", "crop"]:
        """The release crops."""
        return self.framing or ("crop" if self.compatible else "pad")

    def check(self) -> None:
        """The prompt set can be read."""
        _ = self.prompt_set
