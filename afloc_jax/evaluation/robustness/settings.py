"""How a data set is evaluated for robustness to wording."""

from dataclasses import dataclass
from typing import ClassVar

from afloc_jax.evaluation.settings import LabelledSettings, prompts_of
from afloc_jax.inference.class_prompts import PromptSet
from afloc_jax.settings import setting


@dataclass(frozen=True)
class RobustnessSettings(LabelledSettings):
    """A data set and the phrases that its classes are asked with.

    Attributes:
        prompts: a prompt set, its file or its name; every phrase of it is a prompt of its own. None: ten ways of each
            class, of this package.
    """

    task: ClassVar[str] = "robustness"

    prompts: str | PromptSet | None = setting(
        None,
        help="phrases of each class: a JSON file (docs/classification.md) or the name of a built-in set such as chest; "
        "without it: as the data set's validation records ask; ten ways of each class for robustness",
        metavar="FILE",
    )

    @property
    def prompt_set(self) -> PromptSet | None:
        """How classes are asked for; None: the task's own way."""
        return prompts_of(self.prompts)

    def check(self) -> None:
        """The prompt set can be read."""
        _ = self.prompt_set
