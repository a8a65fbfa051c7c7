"""The settings of robustness to wording."""

from dataclasses import dataclass
from typing import ClassVar

from afloc_jax.evaluation.settings import PromptedSettings


@dataclass(frozen=True)
class RobustnessSettings(PromptedSettings):
    """A data set and the phrases that its classes are asked with.

    Attributes:
        prompts: a prompt set, its file or its name; every phrase of it is a prompt of its own. None: ten ways of each
            class, of this package.
    """

    task: ClassVar[str] = "robustness"
