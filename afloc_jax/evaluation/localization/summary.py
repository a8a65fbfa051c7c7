"""Tables and files from scores: category means, overall means, intervals, paired differences.

Scores are averaged over the samples of a category, then over categories, then over thresholds. Compatible scores
compute intervals as the release does:

    case                          default                              compatible
    units that are drawn          patients, images or samples          samples
    samples are drawn             within each category                 from the whole table
    overall limits                percentiles of the overall mean      mean of the categories' limits (wider)
    skipped at one threshold      never skipped                        0 in the sample's mean over thresholds
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.files import json_of, json_text, write_folder
from afloc_jax.evaluation.localization.metrics import BY_NAME
from afloc_jax.evaluation.localization.scores import Facts, Scores
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Replicates, Units
from afloc_jax.evaluation.statistics.coverage import FewPositives, few_positives, remark_on_few
from afloc_jax.evaluation.statistics.interval import Interval, limits, mean_of_finite
from afloc_jax.evaluation.task import JsonObject
from afloc_jax.files import AnyPath, Path, csv_text


@dataclass(frozen=True)
class MetricTable:
    """The means and limits of one metric, or of the difference of two systems in it.

    Attributes:
        overall: the mean over categories.
        per_category: the mean of each category.
        per_threshold: the mean over categories at each threshold; empty for a metric without thresholds, None for a
            difference.
        per_category_per_threshold: means without limits; None for a metric without thresholds.
    """

    overall: Interval
    per_category: Mapping[str, Interval]
    per_threshold: Mapping[str, Interval] | None = None
    per_category_per_threshold: Mapping[str, Mapping[str, float]] | None = None

    def to_json(self) -> JsonObject:
        """Its entry of summary.json."""
        return {name: part for name, part in json_of(self).items() if part is not None}


@dataclass(frozen=True)
class Baseline:
    """Another system on the same samples: its metrics, and the paired differences to it.

    Attributes:
        metrics: the table of each metric.
        difference: the system's metrics minus these.
        n_per_category: the number of samples of each category; more than the system's if this baseline's file has
            predictions on further images.
        made_from: a description.
        rare_prompts: of a prior by prompt the number of samples that get that of their category; None for others.
    """

    metrics: Mapping[str, MetricTable]
    difference: Mapping[str, MetricTable]
    n_per_category: Mapping[str, int]
    made_from: str = ""
    rare_prompts: int | None = None

    def to_json(self) -> JsonObject:
        """Its entry of summary.json."""
        content: JsonObject = {
            "metrics": {name: table.to_json() for name, table in self.metrics.items()},
            "difference": {name: table.to_json() for name, table in self.difference.items()},
        }
        content |= {} if self.rare_prompts is None else {"samples_of_rare_prompts": self.rare_prompts}
        return {**content, "from": self.made_from} if self.made_from else content


@dataclass(frozen=True)
class Summary:
    """The result of an evaluation.

    Attributes:
        protocol, compatible: how samples were scored.
        n_per_category: the number of samples of each category.
        facts: the protocol's results beside its metrics.
        bootstrap: how intervals were computed.
        units: the units that were drawn.
        few_positives: the categories with few positives, and what their intervals cover.
        metrics: the table of each metric.
        baselines: baselines by name.
        about: further entries of summary.json: title, settings, provenance and others.
    """

    protocol: str
    compatible: bool
    n_per_category: Mapping[str, int]
    facts: Facts
    bootstrap: Bootstrap
    units: Units
    few_positives: Mapping[str, FewPositives]
    metrics: Mapping[str, MetricTable]
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    about: JsonObject = field(default_factory=dict)

    @property
    def n(self) -> int:
        """The number of samples."""
        return sum(self.n_per_category.values())

    def to_json(self) -> JsonObject:
        """The content of summary.json, with None where nothing was scored."""
        stratified = self.units.clusters is None and not self.compatible
        drawn = "within each category" if stratified else "from the whole table"
        content: JsonObject = {"protocol": self.protocol, "compatible": self.compatible, "n": self.n}
        content |= {"n_per_category": dict(self.n_per_category), **self.facts.json}
        content |= {"bootstrap": {**self.bootstrap.to_dict(self.units), "drawn": drawn}}
        content |= {"few_positives": json_of(self.few_positives)}
        content |= {"metrics": {name: table.to_json() for name, table in self.metrics.items()}}
        if self.baselines:
            content |= {"baselines": {name: baseline.to_json() for name, baseline in self.baselines.items()}}
        return {**content, **self.about}

    def to_markdown(self) -> str:
        """The content of summary.md: overall and per category, then each baseline."""
        lines = [
            f"# Localisation, protocol {self.protocol}{' (compatible)' if self.compatible else ''}",
            "",
            f"{self.n} samples in {len(self.n_per_category)} categories. Mean [95 % {self.bootstrap.kind()} "
            f"bootstrap interval, {self.bootstrap.resamples} resamples of {self.units.name}s].",
            "",
            *_table(self.metrics, self.n_per_category, self.few_positives),
            "",
            *filter(None, [remark_on_few(self.few_positives, self.units.name)]),
            *self.facts.remarks,
        ]
        for name, baseline in self.baselines.items():
            counts = baseline.n_per_category
            tables = [_table(part, counts, self.few_positives) for part in (baseline.metrics, baseline.difference)]
            described = [f"{baseline.made_from[0].upper()}{baseline.made_from[1:]}.", ""] if baseline.made_from else []
            lines += ["", f"## Baseline: {name}", "", *described, *tables[0]]
            lines += ["", "Difference to it on the same samples (paired):", "", *tables[1]]
        return "\n".join(lines) + "\n"


def _table(metrics: Mapping[str, MetricTable], counts: Mapping[str, int], few: Collection[str]) -> list[str]:
    titles = [BY_NAME[metric].title for metric in metrics]
    lines = [f"| | n | {' | '.join(titles)} |", "|---|---|" + "---|" * len(metrics)]
    rows = [("**all categories**", sum(counts.values()), [table.overall for table in metrics.values()])]
    for name, n in counts.items():
        rows.append((name + "*" * (name in few), n, [table.per_category[name] for table in metrics.values()]))
    for name, count, intervals in rows:
        lines.append(f"| {name.replace('|', '/')} | {count} | {' | '.join(map(str, intervals))} |")
    return lines


class Resampled:
    """Scores with their resamples. Each metric is resampled only once."""

    def __init__(self, scores: Scores, bootstrap: Bootstrap) -> None:
        self.scores, self.bootstrap = scores, bootstrap.as_released() if scores.options.compatible else bootstrap
        self._found: dict[str, tuple[Replicates, Replicates]] = {}
        how = (self.bootstrap.interval, self.bootstrap.unit)
        if scores.options.compatible and how != ("percentile", "sample"):
            raise UsageError("compatible intervals are the release's: percentiles of resampled samples; leave one out")
        self.units = self.bootstrap.units(scores.patients, scores.images)

    def means(self, metric: str) -> tuple[Replicates, Replicates]:
        """The resampled category means per threshold [C, K] and over thresholds [C]."""
        if metric not in self._found:
            self._found[metric] = self._resample(metric)
        return self._found[metric]

    def _resample(self, metric: str) -> tuple[Replicates, Replicates]:
        scores = self.scores
        columns = scores[metric].reshape(len(scores.truths), -1)
        release = scores.options.compatible and scores.thresholded(metric)
        # In the release's mean over the thresholds of a sample, skipped values count as 0.
        of_release = np.nan_to_num(columns, nan=0.0).mean(axis=1, keepdims=True)
        means = self.bootstrap.means(
            np.concatenate([columns, of_release], axis=1) if release else columns,
            scores.category_index,
            len(scores.categories),
            self.units.clusters,
            stratified=not scores.options.compatible,
        )
        per_threshold = means[: columns.shape[1]]
        over_thresholds = per_threshold.mean_over(-1)
        if release:
            over_thresholds = Replicates(over_thresholds.point, means.resampled[..., -1])
        return per_threshold, over_thresholds

    def overall(self, means: Replicates) -> Interval:
        """The interval of the mean over categories, from category means [C]."""
        if not self.scores.options.compatible:
            return self.bootstrap.limits_of(means.mean_over(-1))
        lower, upper = limits(means.resampled)
        return Interval(*(float(mean_of_finite(values, axis=0)) for values in (means.point, lower, upper)))

    def per_category(self, means: Replicates) -> dict[str, Interval]:
        """The interval of each category, from category means [C]."""
        return {name: self.bootstrap.limits_of(means[c]) for c, name in enumerate(self.scores.categories)}

    def table(self, metric: str) -> MetricTable:
        """The table of a metric."""
        means, over_thresholds = self.means(metric)
        overall, per_category = self.overall(over_thresholds), self.per_category(over_thresholds)
        if not self.scores.thresholded(metric):
            return MetricTable(overall, per_category, {})
        # The published order: over samples, categories, thresholds. It matters if values are missing.
        by_threshold = mean_of_finite(means.point, axis=0)
        overall = Interval(float(mean_of_finite(by_threshold, axis=0)), overall.lower, overall.upper)
        shown = [f"{threshold:g}" for threshold in self.scores.options.thresholds]
        return MetricTable(
            overall,
            per_category,
            {name: self.overall(means[k]) for k, name in enumerate(shown)},
            {
                name: {at: float(means.point[c, k]) for k, at in enumerate(shown)}
                for c, name in enumerate(self.scores.categories)
            },
        )

    def tables(self) -> dict[str, MetricTable]:
        """The tables of all metrics."""
        return {metric: self.table(metric) for metric in self.scores.metrics}

    @property
    def few_positives(self) -> dict[str, FewPositives]:
        """The categories with few positives, and what their intervals cover."""
        present = np.array([truth.present for truth in self.scores.truths])
        of = {name: self.scores.category_index == c for c, name in enumerate(self.scores.categories)}
        return few_positives({name: self.units.number(chosen & present) for name, chosen in of.items()})

    def on(self, other: Scores) -> "Resampled":
        """These scores on the samples of `other`, see `Scores.on`."""
        wider = self.scores.on(other.truths)
        return self if wider is self.scores else Resampled(wider, self.bootstrap)

    def minus(self, other: "Resampled") -> dict[str, MetricTable]:
        """The paired differences of the metrics that both have, with 95 % limits.

        Both use the same resamples, so that samples that are hard or easy for both cancel. An interval that excludes 0
        says that the systems differ on such samples. Raises ValueError unless both scored the same samples with the
        same options.
        """
        mine, theirs = self.scores, other.scores
        if [t.id for t in mine.truths] != [t.id for t in theirs.truths] or mine.options != theirs.options:
            raise ValueError(
                "a paired difference needs scores of the same samples, in the same order, with the same options"
            )
        tables = {}
        for metric in [name for name in mine.metrics if name in theirs.metrics]:
            difference = self.means(metric)[1] - other.means(metric)[1]
            overall = self.bootstrap.limits_of(difference.mean_over(-1))
            tables[metric] = MetricTable(overall, self.per_category(difference))
        return tables


def summarise(
    scores: Scores,
    bootstrap: Bootstrap,
    baselines: Mapping[str, Scores] | None = None,
    *,
    made_from: Mapping[str, str] | None = None,
    rare_prompts: Mapping[str, int] | None = None,
    about: JsonObject | None = None,
) -> Summary:
    """The metrics of scores and, on the same samples, of baselines, with their intervals and paired differences.

    Args:
        scores: the scores of the system.
        bootstrap: how intervals are computed.
        baselines: scores of other systems on the same samples, by name. They may end with further negatives, on which
            this system predicts nothing; its own tables leave them out.
        made_from: descriptions of baselines, by name.
        rare_prompts: see `Baseline`, by name.
        about: further entries of summary.json.
    """
    own = Resampled(scores, bootstrap)
    others = {name: Resampled(other, bootstrap) for name, other in (baselines or {}).items()}
    return Summary(
        protocol=scores.options.protocol,
        compatible=scores.options.compatible,
        n_per_category=_counts(scores),
        facts=scores.facts(own.bootstrap),
        bootstrap=own.bootstrap,
        units=own.units,
        few_positives=own.few_positives,
        metrics=own.tables(),
        baselines={
            name: Baseline(
                other.tables(),
                own.on(other.scores).minus(other),
                _counts(other.scores),
                (made_from or {}).get(name, ""),
                (rare_prompts or {}).get(name),
            )
            for name, other in others.items()
        },
        about=about or {},
    )


def _counts(scores: Scores) -> dict[str, int]:
    """The number of samples of each category."""
    return scores.by_category(np.ones(len(scores.truths), bool))


PER_SAMPLE_COLUMNS = ("id", "image", "label_text", "category", "metric", "threshold", "value", "note", "patient")
BASELINE_COLUMNS = ("system", "id", "image", "patient", "category", "metric", "threshold", "value")


def per_sample_rows(scores: Scores) -> Iterator[tuple[str, ...]]:
    """The rows of per_sample.csv (`PER_SAMPLE_COLUMNS`), one per sample, threshold and metric.

    `threshold` is empty for metrics without thresholds, and for thresholds chosen on other data, which are in `note`,
    so that systems with different thresholds can be paired. `value` is empty if there is no score; `note` says why.
    """
    for n, truth in enumerate(scores.truths):
        sample = (truth.id, truth.image, truth.label_text, truth.category)
        for metric in scores.metrics:
            for k, value in enumerate(np.atleast_1d(scores[metric][n])):
                shown = "" if np.isnan(value) else repr(float(value))
                parts = (scores.outcome(n, metric, k), scores.chosen_threshold(n, metric))
                note = "; ".join(part for part in parts if part)
                yield (*sample, metric, scores.threshold(metric, k), shown, note, truth.patient)


def baseline_rows(baselines: Mapping[str, Scores]) -> Iterator[tuple[str, ...]]:
    """The rows of baselines.csv (`BASELINE_COLUMNS`): a table of systems for `afloc compare`, without empty values."""
    for name, scores in baselines.items():
        for sample, image, _, category, metric, threshold, value, _, patient in per_sample_rows(scores):
            if value:
                yield name, sample, image, patient, category, metric, threshold, value


def write_results(
    out: AnyPath, scores: Scores, summary: Summary, baselines: Mapping[str, Scores] | None = None
) -> None:
    """Writes per_sample.csv, summary.json, summary.md and, if there are baselines, baselines.csv to `out`.

    Each file is written completely or not at all.
    """
    files = {"per_sample.csv": csv_text(PER_SAMPLE_COLUMNS, per_sample_rows(scores))}
    if baselines:
        files["baselines.csv"] = csv_text(BASELINE_COLUMNS, baseline_rows(baselines))
    else:  # of an earlier call in the same folder
        (Path(out) / "baselines.csv").unlink(missing_ok=True)
    write_folder(out, {**files, "summary.md": summary.to_markdown(), "summary.json": json_text(summary.to_json())})
