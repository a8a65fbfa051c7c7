"""What an evaluation leaves behind: per_sample.csv, summary.json and summary.md."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from afloc_jax.evaluation.files import csv_text, json_text, write_folder
from afloc_jax.evaluation.localization.scores import Scores

NAMES = {
    "iou": "IoU",
    "iou_true_positive": "IoU, true positives",
    "dice": "Dice",
    "cnr": "CNR",
    "pointing": "Pointing game",
}
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
                note = [scores.note(n, metric, k), scores.chosen_threshold(n, metric)]
                score = (metric, scores.threshold(n, metric, k), shown, "; ".join(part for part in note if part))
                yield (*sample, *score, truth.patient)


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as tables that read well in plain text: overall and per category, then each baseline."""
    lines = [
        f"# Localisation, protocol {summary['protocol']}{' (compatible)' if summary.get('compatible') else ''}",
        "",
        f"{summary['n']} samples in {len(summary['n_per_category'])} categories. Mean [95 % "
        f"{summary['bootstrap']['interval']} bootstrap interval, {summary['bootstrap']['resamples']} resamples of "
        f"{summary['bootstrap']['unit']}s].",
        "",
        *_table(summary["metrics"], summary["n_per_category"]),
    ]
    lines += ["", *_remarks(summary)]
    for name, baseline in summary.get("baselines", {}).items():
        lines += ["", f"## Baseline: {name}", "", *_table(baseline["metrics"], summary["n_per_category"])]
        lines += ["", "Difference to it on the same samples (paired):", ""]
        lines += _table(baseline["difference"], summary["n_per_category"])
    return "\n".join(lines) + "\n"


def _remarks(summary: Mapping[str, Any]) -> list[str]:
    """What a protocol adds: unscored samples and empty predictions, or operating points and presence."""
    lines = []
    if "not_scored" in summary:
        empty = ", ".join(f"{n} at {threshold}" for threshold, n in summary["empty_predictions"].items() if n)
        lines += [f"Not scored (no truth in the scored region): {sum(summary['not_scored'].values())}."]
        lines += [f"Empty predictions, {summary['empty_predictions_are']}: {empty or 'none'}."]
    if "outcomes" in summary:
        counts = ", ".join(f"{name} {sum(of.values())}" for name, of in summary["outcomes"].items())
        lines += [f"Outcomes: {counts}."]
    if "operating_points" in summary:
        lines += ["", "Thresholds, chosen on validation data, and presence:", "", *_presence_table(summary)]
        if summary["confidence_saturated"]:
            lines += ["", f"{summary['confidence_saturated']} maps exceed the range of the confidence and count as 1."]
    return lines


def _presence_table(summary: Mapping[str, Any]) -> list[str]:
    lines = ["| | mask | confidence | chosen on | AUC | sensitivity | specificity | area on negatives | uncut |"]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for name, point in summary["operating_points"].items():
        row = summary["presence"]["per_category"][name]
        keys = ("sensitivity", "specificity", "false_positive_area", "false_positive_area_ungated")
        numbers = ["-" if row[key] is None else f"{row[key]:.3f}" for key in keys]
        thresholds = f"{point['mask_threshold']:g} | {point['confidence_threshold']:g} | {point['chosen_on']}"
        lines.append(f"| {name.replace('|', '/')} | {thresholds} | {_cell(row['auc'])} | {' | '.join(numbers)} |")
    return lines


def _table(metrics: Mapping[str, Any], samples: Mapping[str, int]) -> list[str]:
    lines = [f"| | n | {' | '.join(NAMES[metric] for metric in metrics)} |", "|---|---|" + "---|" * len(metrics)]
    rows = [("**all categories**", sum(samples.values()), {m: metrics[m]["overall"] for m in metrics})]
    rows += [(name, count, {m: metrics[m]["per_category"][name] for m in metrics}) for name, count in samples.items()]
    for name, count, intervals in rows:
        cells = [_cell(intervals[metric]) for metric in metrics]
        lines.append(f"| {name.replace('|', '/')} | {count} | {' | '.join(cells)} |")
    return lines


def _cell(interval: Mapping[str, float | None]) -> str:
    mean, lower, upper = (
        "-" if interval[part] is None else f"{interval[part]:.3f}" for part in ("mean", "lower", "upper")
    )
    return mean if mean == "-" else f"{mean} [{lower}, {upper}]"


def write_results(out: str | Path, scores: Scores, summary: Mapping[str, Any]) -> None:
    """Write per_sample.csv, summary.json and summary.md into `out`; each file appears whole or not at all."""
    table = csv_text(PER_SAMPLE_COLUMNS, per_sample_rows(scores))
    files = {"per_sample.csv": table, "summary.md": to_markdown(summary), "summary.json": json_text(summary)}
    write_folder(out, files)
