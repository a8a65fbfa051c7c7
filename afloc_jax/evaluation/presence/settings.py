"""The settings of the fit of presence, and of its evaluation."""

from dataclasses import dataclass
from typing import ClassVar

from afloc_jax.evaluation.settings import LabelledSettings
from afloc_jax.settings import setting


@dataclass(frozen=True)
class CalibrationSettings(LabelledSettings):
    """The data on which presence is fitted, for `afloc calibrate`. Its split is the validation split."""

    task: ClassVar[str] = "presence"

    split: str = setting("validation", help="split on which presence is fitted")


@dataclass(frozen=True)
class PresenceSettings(LabelledSettings):
    """A labelled data set, and the split of it on which classes are left out of the fit.

    Attributes:
        validation_split: the split on which the fits without one class are made; "" for none.
    """

    task: ClassVar[str] = "presence"

    validation_split: str = setting(
        "validation", help="split on which thresholds are chosen, or fits are made that leave a class out"
    )
