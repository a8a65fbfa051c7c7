"""The metrics of retrieval: R@K and P@K in both directions."""

from dataclasses import dataclass
from typing import Self

from afloc_jax.evaluation.task import CardTable

KINDS = {"recall": "R", "precision": "P"}
DIRECTIONS = {"image_to_text": "image to report", "text_to_image": "report to image"}


@dataclass(frozen=True)
class Metric:
    """Recall (any of the first `top` items is relevant) or precision (the share of them that is), in one direction."""

    kind: str
    top: int
    direction: str

    @classmethod
    def of_key(cls, key: str) -> Self:
        """The metric of a key of summary.json."""
        metric, direction = key.split()
        kind, top = metric.split("@")
        return cls(kind, int(top), direction)

    @property
    def key(self) -> str:
        """The key in summary.json and per_sample.csv, such as "recall@5 image_to_text"."""
        return f"{self.kind}@{self.top} {self.direction}"

    @property
    def short(self) -> str:
        """The name without the direction, such as "R@5"."""
        return f"{KINDS[self.kind]}@{self.top}"

    @property
    def title(self) -> str:
        """The name in summary.md and in the model card, such as "R@5, image to text"."""
        return f"{self.short}, {self.direction.replace('_', ' ')}"

    @property
    def heading(self) -> str:
        """The name on the page, such as "R@5, image to report"."""
        return f"{self.short}, {DIRECTIONS[self.direction]}"


_COLUMNS = [
    Metric(kind, top, direction)
    for direction in DIRECTIONS
    for kind, top in (("recall", 1), ("recall", 5), ("recall", 10), ("precision", 5))
]
CARD = CardTable(
    "Retrieval of reports for images and of images for reports", {metric.key: metric.title for metric in _COLUMNS}
)
