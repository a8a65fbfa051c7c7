"""The result of a retrieval: summary.json and summary.md."""

from collections.abc import Mapping
from dataclasses import dataclass

from afloc_jax.evaluation.results import ByCategory, Result
from afloc_jax.evaluation.retrieval.metrics import Metric


@dataclass(frozen=True)
class BesideChance(ByCategory):
    """A metric with its expected value for a random order."""

    chance: float


@dataclass(frozen=True)
class Retrieval(Result):
    """R@K and P@K of a data set.

    Attributes:
        by_class: whether items are relevant by class and not by pair.
        n: the number of images and reports.
        n_per_category: by class, the number of records of each class; by pairs, all in one category.
        metrics: metrics by key, see `metrics.Metric`.
    """

    by_class: bool
    n: int
    n_per_category: Mapping[str, int]
    metrics: Mapping[str, BesideChance]

    @property
    def classes(self) -> list[str]:
        """The classes of the queries; none by pairs."""
        return list(self.n_per_category) if self.by_class else []

    def to_markdown(self) -> str:
        lines = [
            f"# Retrieval, {'by class' if self.by_class else 'by pairs'}",
            "",
            f"{self.n} images and their reports; square: {self.account.framing}. R@K: share of queries with a relevant "
            "item among the K most similar; P@K: share of relevant items among them.",
            f"Value [{self.account.interval}]; chance: a random order.",
            *self.remark_on_few,
            "",
            f"| | all | chance |{''.join(f' {self.marked(name)} |' for name in self.classes)}",
            "|---|---|---|" + "---|" * len(self.classes),
        ]
        for key, values in self.metrics.items():
            cells = "".join(f" {values.per_category[name]} |" for name in self.classes)
            lines.append(f"| {Metric.of_key(key).title} | {values.overall} | {values.chance:.3f} |{cells}")
        return "\n".join(lines) + "\n"
