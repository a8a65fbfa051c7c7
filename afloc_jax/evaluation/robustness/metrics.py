"""The metrics of robustness: what is scored, and how it spreads over phrases."""

from dataclasses import dataclass

from afloc_jax.evaluation.task import CardTable


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
CARD = CardTable(
    "The same findings asked in several ways: mean of the ways, standard deviation, range; mean over classes",
    {f"{metric.name} {part}": f"{metric.title} {part}" for metric in METRICS for part in HEADLINE},
)
