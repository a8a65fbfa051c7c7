"""The values of several systems on the samples that all of them have, as arrays: what is compared."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.comparison.failure import Failure
from afloc_jax.evaluation.comparison.sample_tables import Key, SampleTable
from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Replicates, Units
from afloc_jax.evaluation.statistics.interval import mean_of_finite
from afloc_jax.evaluation.statistics.jackknife import Weights

Drawn: TypeAlias = Mapping[tuple[str, str], str]
"""The unit of each sample: of its id and category, or of its id and "" in classification."""


@dataclass(frozen=True)
class Scored:
    """A metric that is a mean over samples.

    Attributes:
        metric: its name.
        values: the value of every system on every sample.
        category: the index of each sample's category in `names`.
        names: the categories.
        clusters: the unit of each sample; None where samples are drawn.
    """

    metric: str
    values: Float[np.ndarray, "S n"]
    category: Int[np.ndarray, " n"]
    names: Sequence[str]
    clusters: np.ndarray | None


@dataclass(frozen=True)
class Ranked:
    """The labels (NaN: unknown) and the probabilities of images and classes, for the AUC."""

    labels: Float[np.ndarray, "n C"]
    scores: Float[np.ndarray, "S n C"]
    names: Sequence[str]
    clusters: np.ndarray | None

    def positive_units(self, c: int) -> int:
        """The number of units with a positive of class `c`."""
        units = np.arange(len(self.labels)) if self.clusters is None else self.clusters
        return len(np.unique(units[self.labels[:, c] == 1]))


@dataclass(frozen=True)
class Values:
    """The values of several systems on the samples in common, with the units that are drawn."""

    bootstrap: Bootstrap
    units: Units
    ranked: Ranked | None
    scored: Sequence[Scored]

    @functools.cached_property
    def aucs(self) -> Replicates:
        """The AUC [C, S] of every class and system. Raises ValueError if there are no probabilities."""
        if self.ranked is None:
            raise ValueError("these are values of metrics; only probabilities have an AUC")
        labels, names, scores = self.ranked.labels, self.ranked.names, self.ranked.scores
        known = np.isfinite(labels)

        def statistic(weights: Weights) -> np.ndarray:
            classes = []
            for c in range(len(names)):
                rows = known[:, c]
                truth, w = labels[rows, c] == 1, weights[:, rows]
                classes.append(np.stack([discrimination.auc(truth, one[rows, c], w) for one in scores], axis=-1))
            return np.stack(classes, axis=1)  # [R, C, S]

        return self.bootstrap.resample(statistic, len(labels), self.ranked.clusters)


def values_of(
    tables: Sequence[SampleTable], common: Sequence[Key], bootstrap: Bootstrap, failures: Sequence[Failure] = ()
) -> Values:
    """The values of tables of one kind on the keys `common`, and those of failures.

    Raises UserError if there is no value that all have, labels differ, or a failure names a metric that is not there.
    """
    scored = bool(tables[0].scores)
    # All classes of an image are one sample of classification.
    samples = list(dict.fromkeys((key.id, key.category if scored else "") for key in common))
    named = next((table for table in tables if any(table.patients.values())), tables[0])
    patients, images = ([names[of] for of, _ in samples] for names in (named.patients, named.images))
    units = bootstrap.units(patients, images)
    drawn = None if units.clusters is None else dict(zip(samples, units.clusters.tolist(), strict=True))
    if not scored:
        if failures:
            raise UsageError(f"--failure {failures[0]}: a failure needs a metric, and these are probabilities")
        ranked = _ranked(tables, common, drawn)
        return Values(bootstrap, units, *ranked)
    metrics = list(_scored(tables, common, drawn))
    if not metrics:
        everyone = "both folders" if len(tables) == 2 else "all systems"
        raise UserError(f"the samples in common have no score in {everyone}, so there is nothing to compare")
    return Values(bootstrap, units, None, [*metrics, *(_failing(failure, metrics) for failure in failures)])


def _scored(tables: Sequence[SampleTable], common: Sequence[Key], drawn: Drawn | None) -> Iterator[Scored]:
    """Each metric, averaged over the thresholds of a sample at which all systems have a score."""
    rows: dict[str, dict[tuple[str, str], list[list[float]]]] = {}
    for key in common:
        of_sample = rows.setdefault(key.metric, {}).setdefault((key.id, key.category), [])
        of_sample.append([table.scores[key] for table in tables])
    for metric, per_sample in rows.items():
        means = {sample: _mean_of_all(np.array(values)) for sample, values in per_sample.items()}
        scored = {sample: values for sample, values in means.items() if np.isfinite(values).all()}
        if not scored:
            continue
        names = list(dict.fromkeys(category for _, category in scored))
        index = np.array([names.index(category) for _, category in scored])
        clusters = None if drawn is None else np.array([drawn[sample] for sample in scored])
        yield Scored(metric, np.stack(list(scored.values()), axis=1), index, names, clusters)


def _failing(failure: Failure, metrics: Sequence[Scored]) -> Scored:
    scored = next((one for one in metrics if one.metric == failure.metric), None)
    if scored is None:
        raise UsageError(f"--failure {failure}: the samples in common have no metric {failure.metric}")
    return replace(scored, metric=str(failure), values=failure.holds(scored.values))


def _mean_of_all(values: Float[np.ndarray, "t S"]) -> Float[np.ndarray, " S"]:
    """The mean of each system over the thresholds at which all of them have a score."""
    return mean_of_finite(np.where(np.isfinite(values).all(axis=1, keepdims=True), values, np.nan), axis=0)


def _ranked(
    tables: Sequence[SampleTable], common: Sequence[Key], drawn: Drawn | None
) -> tuple[Ranked, Sequence[Scored]]:
    """Probabilities; accuracy where all predictions are known, and Brier scores of numbers between 0 and 1."""
    common = [key for key in common if not any(math.isnan(table.decisions[key].label) for table in tables)]
    for key in common:
        for table in tables[1:]:
            if table.decisions[key].label != tables[0].decisions[key].label:
                sides = f"{tables[0].name} and {table.name}"
                raise UserError(f"the label of {key} differs between {sides}: not the same data")
    ids = list(dict.fromkeys(key.id for key in common))
    names = list(dict.fromkeys(key.category for key in common))
    if not ids:
        raise UserError("no sample in common has a known label, so there is nothing to compare")
    labels = np.full((len(ids), len(names)), np.nan)
    scores, right = np.full((2, len(tables), len(ids), len(names)), np.nan)
    position = {name: i for i, name in enumerate(ids)}
    for key in common:
        i, c = position[key.id], names.index(key.category)
        labels[i, c] = tables[0].decisions[key].label
        for side, table in enumerate(tables):
            decision = table.decisions[key]
            scores[side, i, c] = decision.probability
            if not math.isnan(decision.predicted):
                right[side, i, c] = decision.predicted == labels[i, c]
    clusters = None if drawn is None else np.array([drawn[name, ""] for name in ids])
    metrics = [("accuracy", right)]
    if np.nanmin(scores) >= 0 and np.nanmax(scores) <= 1:
        metrics.append(("brier", (scores - labels) ** 2))
    unit_of = np.array(ids) if clusters is None else clusters  # an image's classes are drawn together
    scored = []
    for metric, values in metrics:
        known_i, known_c = np.nonzero(np.isfinite(values).all(axis=0))
        if len(known_i):
            present = np.unique(known_c)
            category = np.searchsorted(present, known_c)
            kept = [names[c] for c in present]
            scored.append(Scored(metric, values[:, known_i, known_c], category, kept, unit_of[known_i]))
    return Ranked(labels, scores, names, clusters), scored
