"""The files of an evaluation: per_sample.csv, summary.json and summary.md."""

from collections.abc import Iterator, Mapping

import numpy as np

from afloc_jax.evaluation.files import csv_text, json_text, write_folder
from afloc_jax.evaluation.localization.metrics import BY_NAME
from afloc_jax.evaluation.localization.outcomes import joined
from afloc_jax.evaluation.localization.scores import Scores
from afloc_jax.evaluation.localization.summary import MetricTable, Summary
from afloc_jax.files import Path

PER_SAMPLE_COLUMNS = ("id", "image", "label_text", "category", "metric", "threshold", "value", "note", "patient")


def per_sample_rows(scores: Scores) -> Iterator[tuple[str, ...]]:
    """Rows of per_sample.csv (`PER_SAMPLE_COLUMNS`): one per sample, threshold and metric.

    `threshold` is empty for metrics without one, and where the protocol chose it on other data (`note` has the value):
    systems that chose differently are scored alike. `value` is empty where there is no score, `note` says why.
    """
    for n, truth in enumerate(scores.truths):
        sample = (truth.id, truth.image, truth.label_text, truth.category)
        for metric in scores.metrics:
            for k, value in enumerate(np.atleast_1d(scores[metric][n])):
                shown = "" if np.isnan(value) else repr(float(value))
                note = joined(scores.outcome(n, metric, k), scores.chosen_threshold(n, metric))
                yield (*sample, metric, scores.threshold(metric, k), shown, note, truth.patient)


def to_markdown(summary: Summary) -> str:
    """The summary as tables that read well in plain text: overall and per category, then each baseline."""
    samples, bootstrap = summary.n_per_category, summary.bootstrap
    lines = [
        f"# Localisation, protocol {summary.protocol}{' (compatible)' if summary.compatible else ''}",
        "",
        f"{summary.n} samples in {len(samples)} categories. Mean [95 % {bootstrap.interval} bootstrap interval, "
        f"{bootstrap.resamples} resamples of {bootstrap.unit}s].",
        "",
        *_table(summary.metrics, samples),
        "",
        *summary.facts.remarks(),
    ]
    for name, baseline in summary.baselines.items():
        lines += ["", f"## Baseline: {name}", "", *_table(baseline.metrics, samples)]
        lines += ["", "Difference to it on the same samples (paired):", "", *_table(baseline.difference, samples)]
    return "\n".join(lines) + "\n"


def _table(metrics: Mapping[str, MetricTable], samples: Mapping[str, int]) -> list[str]:
    titles = [BY_NAME[metric].title for metric in metrics]
    lines = [f"| | n | {' | '.join(titles)} |", "|---|---|" + "---|" * len(metrics)]
    rows = [("**all categories**", sum(samples.values()), [table.overall for table in metrics.values()])]
    rows += [(name, n, [table.per_category[name] for table in metrics.values()]) for name, n in samples.items()]
    for name, count, intervals in rows:
        lines.append(f"| {name.replace('|', '/')} | {count} | {' | '.join(map(str, intervals))} |")
    return lines


def write_results(out: str | Path, scores: Scores, summary: Summary) -> None:
    """Write per_sample.csv, summary.json and summary.md into `out`; each file appears whole or not at all."""
    table = csv_text(PER_SAMPLE_COLUMNS, per_sample_rows(scores))
    content = json_text(summary.to_json())
    write_folder(out, {"per_sample.csv": table, "summary.md": to_markdown(summary), "summary.json": content})
