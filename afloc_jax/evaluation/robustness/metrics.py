"""The metrics of robustness, and the measures of their spread over phrases."""

from dataclasses import dataclass

from afloc_jax.evaluation.task import CardTable


@dataclass(frozen=True)
class Metric:
    """A score of each phrase of a class. `high` is the end of its scale on the page; None for the largest value."""

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
"""The spreads at the top of the page and in the model card, with their explanations."""
CARD = CardTable(
    "The same findings with several phrases: mean, standard deviation and range over phrases; mean over classes",
    {f"{metric.name} {part}": f"{metric.title} {part}" for metric in METRICS for part in HEADLINE},
)
