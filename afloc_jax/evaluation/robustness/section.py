"""Robustness to wording on the page: the spread over phrases by class, and every phrase with its intervals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from afloc_jax.evaluation.report.small_charts import interval_cell, spread_chart
from afloc_jax.evaluation.task import Figure, Section

METRICS = {"auc": "AUC", "iou": "IoU"}
FIGURES = {
    "mean": ("mean", "mean over the phrases of a class, then over classes"),
    "deviation": ("deviation", "standard deviation of the phrases of a class, mean over classes"),
    "range": ("range", "highest less lowest of the phrases of a class, mean over classes"),
}


def section(folder: Path, summary: Mapping[str, Any]) -> Section:
    """What section.html.jinja shows of one evaluation."""
    spread = summary.get("spread", {})
    present = [name for name in METRICS if name in spread]
    classes = list(summary.get("paraphrases", {}))
    return Section(
        kicker="Robustness to wording",
        lede=(
            f"The same {len(classes)} findings asked in several ways, on {summary.get('n') or 0:,} images of",
            ".",
        ),
        headline=[_figure(summary, metric, part) for metric in present for part in FIGURES],
        shown={
            "names": METRICS,
            "present": present,
            "charts": [(METRICS[metric], Markup(_chart(spread[metric], metric))) for metric in present],  # our own SVG
            "rows": [_row(spread, name) for name in classes],
            "phrases": [{"category": name, "rows": _phrases(spread, name)} for name in classes],
        },
    )


def _figure(summary: Mapping[str, Any], metric: str, part: str) -> Figure:
    label, about = FIGURES[part]
    entry = summary.get("metrics", {}).get(f"{metric} {part}", {}).get("overall", {})
    return Figure(f"{METRICS[metric]}, {label}", about, entry)


def _chart(classes: Mapping[str, Any], metric: str) -> str:
    rows = [
        {
            "name": name,
            "mean": values["mean"]["mean"],
            "phrases": {
                text: entry["mean"] for text, entry in values["per_paraphrase"].items() if entry["mean"] is not None
            },
        }
        for name, values in classes.items()
    ]
    label = f"{METRICS[metric]} of every phrase, by class"
    return spread_chart(rows, label, high=1.0 if metric == "auc" else None)


def _row(spread: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {"name": name, "parts": {metric: classes[name] for metric, classes in spread.items() if name in classes}}


def _phrases(spread: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The phrases of a class, that with the highest first metric first."""
    metrics = [metric for metric in METRICS if name in spread.get(metric, {})]
    tables = {metric: spread[metric][name]["per_paraphrase"] for metric in metrics}
    texts = sorted(tables[metrics[0]], key=lambda text: -(tables[metrics[0]][text]["mean"] or 0.0)) if metrics else []
    return [
        {
            "text": text,
            "cells": [
                (tables[m][text], Markup(interval_cell(tables[m][text], reference=0.5 if m == "auc" else None)))
                for m in metrics
            ],
        }
        for text in texts
    ]
