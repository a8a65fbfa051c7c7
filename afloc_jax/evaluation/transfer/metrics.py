"""The table of metrics of transfer. A key of summary.json is a metric and a share of the labels: "auc 10pct"."""

from dataclasses import dataclass

from afloc_jax.evaluation.task import CardTable


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: the first word of its keys in summary.json.
        title, about: the title and the explanation on the page.
        chance: the value of a random classifier; None if it depends on the data.
    """

    name: str
    title: str
    about: str
    chance: float | None = None


METRICS = (
    Metric("auc", "AUC", "chance that an image with the finding scores above one without it", chance=0.5),
    Metric("dice", "Dice", "overlap of the drawn mask with the truth, as an F-score, over images with the finding"),
    Metric("iou", "IoU", "the same overlap as a share of what either covers"),
)
BY_NAME = {metric.name: metric for metric in METRICS}
UNTRAINED = "untrained"  # the control: the same network with its random initial weights
_SHARES = {"1pct": "1 %", "10pct": "10 %", "100pct": "100 %"}  # of the protocol, for the model card
CARD = CardTable(
    "Transfer with a share of the labels, mean over classes",
    {key_of_share: f"{metric.title}, {title}" for metric in METRICS for share, title in _SHARES.items()
     for key_of_share in (f"{metric.name} {share}",)},
    baselines={UNTRAINED: "random weights"},
)  # fmt: skip


def key_of(metric: str, share: str) -> str:
    """The key of a metric in summary.json.

    >>> key_of("auc", "10pct")
    'auc 10pct'
    """
    return f"{metric} {share}"
