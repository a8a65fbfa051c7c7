"""The result of a classification: summary.json and summary.md."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from afloc_jax.evaluation.results import ByCategory, Result
from afloc_jax.evaluation.statistics.discrimination import ReliabilityBin


@dataclass(frozen=True)
class Classification(Result):
    """Metrics of a data set, by class.

    Attributes:
        multiclass: whether each record gets exactly one class.
        n, n_left_out: the numbers of scored records, and of records without a usable label.
        n_per_category, positives: for each class the numbers of records with a known label, and of positive ones.
        metrics: metrics by name, see `metrics.METRICS`.
        thresholds: for each class the probability from which a record is positive; NaN with `multiclass`.
        thresholds_chosen_on: a description of the data on which thresholds are chosen.
        reliability: the reliability table of each class.
        prompt_set: the name of the prompt set.
        prompts_from: a description of the origin of prompts.
        prompts: for each class its "positive" and "negative" phrases.
        aggregation: how the scores of the phrases of a class are aggregated.
        never_known_absent: classes left out because no record is known not to have them.
        asked_without_phrases: classes that the prompt set does not list, which get the fallback phrase.
    """

    multiclass: bool
    n: int
    n_left_out: int
    n_per_category: Mapping[str, int]
    positives: Mapping[str, int]
    never_known_absent: Sequence[str] = field(kw_only=True, default=())
    metrics: Mapping[str, ByCategory]
    thresholds: Mapping[str, float]
    thresholds_chosen_on: str
    reliability: Mapping[str, Sequence[ReliabilityBin]]
    prompt_set: str
    prompts_from: str
    prompts: Mapping[str, Mapping[str, Sequence[str]]]
    asked_without_phrases: Sequence[str] = field(kw_only=True, default=())
    aggregation: str

    @property
    def classes(self) -> list[str]:
        return list(self.n_per_category)

    def to_markdown(self) -> str:
        kind = "one class per record" if self.multiclass else "each class for itself"
        remarks = [
            f"{words}: {', '.join(names)}."
            for words, names in (
                ("Left out, since no record is known to lack them", self.never_known_absent),
                ("With the fallback phrase, since the prompt set does not list them", self.asked_without_phrases),
            )
            if names
        ]
        metrics = self.metrics.values()
        lines = [
            f"# Zero-shot classification, {kind}{' (compatible)' if self.account.compatible else ''}",
            "",
            f"{self.n} records; square: {self.account.framing}; prompts: {self.prompts_from}. "
            f"Value [{self.account.interval}].",
            f"Thresholds chosen on: {self.thresholds_chosen_on}.",
            *remarks,
            *self.remark_on_few,
            "",
            f"| | positive / known | {' | '.join(name.replace('_', ' ') for name in self.metrics)} | threshold |",
            "|---|---|" + "---|" * (len(metrics) + 1),
            f"| **all classes** | | {' | '.join(str(values.overall) for values in metrics)} | |",
        ]
        for name, known in self.n_per_category.items():
            threshold = self.thresholds[name]
            cells = [str(values.per_category[name]) for values in metrics]
            cells.append("" if math.isnan(threshold) else f"{threshold:.4g}")
            lines.append(f"| {self.marked(name)} | {self.positives[name]} / {known} | {' | '.join(cells)} |")
        lines += ["", "## Reliability", "", "Mean probability and observed share of the records in each tenth.", ""]
        lines += ["| class | probability | n | mean probability | observed |", "|---|---|---|---|---|"]
        for name, table in self.reliability.items():
            for row in table:
                if row.n:
                    span = f"{row.lower:.1f} to {row.upper:.1f}"
                    lines.append(f"| {name} | {span} | {row.n} | {row.mean_probability:.3f} | {row.observed:.3f} |")
        return "\n".join(lines) + "\n"
