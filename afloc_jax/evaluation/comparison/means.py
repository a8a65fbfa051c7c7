"""The mean of every system on the samples that all of them have, with its interval: a paper's table."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from afloc_jax.evaluation.comparison.result import OVERALL
from afloc_jax.evaluation.comparison.values import Ranked, Scored, Values
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Replicates
from afloc_jax.evaluation.statistics.interval import Interval


@dataclass(frozen=True)
class Mean:
    """A metric of a system in a category; `units` as in `result.Row`."""

    system: str
    metric: str
    category: str
    n: int
    mean: float
    lower: float
    upper: float
    units: int

    @property
    def interval(self) -> Interval:
        """The mean with its limits."""
        return Interval(self.mean, self.lower, self.upper)


def means_of(values: Values, systems: Sequence[str]) -> list[Mean]:
    """The means of the metrics, first over categories (if there are several) and then of each, for every system."""
    means = [] if values.ranked is None else list(_of_aucs(values.ranked, values.aucs, systems, values.bootstrap))
    for scored in values.scored:
        means += _of_metric(scored, systems, values.bootstrap)
    return means


def _of_aucs(ranked: Ranked, aucs: Replicates, systems: Sequence[str], bootstrap: Bootstrap) -> Iterator[Mean]:
    n = np.isfinite(ranked.labels).sum(axis=0)
    parts = [(OVERALL, len(ranked.labels), 0, aucs.mean_over(-2))] if len(ranked.names) > 1 else []
    for c, name in enumerate(ranked.names):
        of_class = aucs.map(operator.itemgetter((..., c, slice(None))))
        parts.append((name, int(n[c]), ranked.positive_units(c), of_class))
    for name, number, units, replicates in parts:
        for s, system in enumerate(systems):
            found = bootstrap.limits_of(replicates[s], of_auc=True)
            yield Mean(system, "auc", name, number, found.mean, found.lower, found.upper, units)


def _of_metric(scored: Scored, systems: Sequence[str], bootstrap: Bootstrap) -> Iterator[Mean]:
    names, category = scored.names, scored.category
    means = bootstrap.means(scored.values.T, category, len(names), scored.clusters)
    units = np.arange(len(category)) if scored.clusters is None else scored.clusters
    everyone = np.ones(len(category), bool)
    parts = [(OVERALL, everyone, means.mean_over(-2))] if len(names) > 1 else []
    for c, name in enumerate(names):
        parts.append((name, category == c, means.map(operator.itemgetter((..., c, slice(None))))))
    for name, members, replicates in parts:
        for s, system in enumerate(systems):
            found = bootstrap.limits_of(replicates[s])
            number, drawn = int(members.sum()), len(np.unique(units[members]))
            yield Mean(system, scored.metric, name, number, found.mean, found.lower, found.upper, drawn)
