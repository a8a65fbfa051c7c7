"""The settings of retrieval."""

from dataclasses import dataclass
from typing import ClassVar

from afloc_jax.evaluation.settings import LabelledSettings
from afloc_jax.settings import NOT_NEGATIVE, setting


@dataclass(frozen=True)
class RetrievalSettings(LabelledSettings):
    """A data set of images and reports.

    Attributes:
        by_class: whether items are relevant by class and not by pair.
        per_class: the number of records of each class.
        tops: the values of K in R@K and P@K.
    """

    task: ClassVar[str] = "retrieval"

    by_class: bool = setting(False, help="items are relevant if they have the class of the query (5 x 200)")
    per_class: int = setting(200, NOT_NEGATIVE, help="records of each class", metavar="N")
    tops: tuple[int, ...] = (1, 5, 10)
