"""The metrics of robustness: what is scored, and how it spreads over phrases."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A score of every phrase of a class; `high` is the end of its scale on the page, None: from the data."""

    name: str
    title: str
    chance: float | None = None
    high: float | None = None


METRICS = (Metric("auc", "AUC", chance=0.5, high=1.0), Metric("iou", "IoU"))
SPREADS = ("mean", "deviation", "lowest", "highest", "range")
HEADLINE = {
    "mean": "mean over the phrases of a class, then over classes",
    "deviation": "standard deviation of the phrases of a class, mean over classes",
    "range": "highest less lowest of the phrases of a class, mean over classes",
}
"""The spreads in the head of the page and in the model card, and what they say."""
