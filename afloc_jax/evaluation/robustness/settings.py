"""The settings of robustness to wording."""

from dataclasses import dataclass
from typing import ClassVar

from afloc_jax.evaluation.settings import PromptedSettings


@dataclass(frozen=True)
class RobustnessSettings(PromptedSettings):
    """A data set and a prompt set, each phrase of which is a separate prompt. The default has ten phrases per class."""

    task: ClassVar[str] = "robustness"
