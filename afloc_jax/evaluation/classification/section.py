"""Classification on the page: metrics of each class with intervals, ROC, reliability, the most confident mistakes."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from afloc_jax.evaluation.report.numbers import number, read_json
from afloc_jax.evaluation.report.small_charts import interval_cell, reliability_chart, roc_chart
from afloc_jax.evaluation.statistics.discrimination import roc_curve
from afloc_jax.evaluation.task import Figure, Section
from afloc_jax.inference import overlays

METRICS = {
    "auc": ("AUC", "chance that an image with the finding scores above one without it"),
    "f1": ("F1", "harmonic mean of precision and sensitivity at the threshold"),
    "balanced_accuracy": ("Balanced accuracy", "mean of sensitivity and specificity, or of the classes' recalls"),
    "mcc": ("MCC", "Matthews' correlation of decision and label"),
    "accuracy": ("Accuracy", "share of decisions that are right"),
    "sensitivity": ("Sensitivity", "share of images with the finding that are called positive"),
    "specificity": ("Specificity", "share of images without the finding that are called negative"),
    "brier": ("Brier", "mean squared distance of probability and outcome; lower is better"),
    "ece": ("ECE", "expected calibration error: how far probabilities are from shares; lower is better"),
}
HEADLINE = ("auc", "f1", "balanced_accuracy", "mcc", "ece")
MAIN = ("auc", "f1", "balanced_accuracy", "mcc")  # in the table that is open
CHANCE = {"auc": 0.5, "balanced_accuracy": 0.5, "mcc": 0.0}  # where chance does not depend on the data
PHRASES = 12  # of a class that are listed


def section(folder: Path, summary: Mapping[str, Any]) -> Section:
    """What section.html.jinja shows of one evaluation."""
    metrics = summary.get("metrics", {})
    classes = list(summary.get("n_per_category", {}))
    present = [name for name in METRICS if name in metrics]
    multiclass = summary.get("multiclass", False)
    asked = "which one of the classes they show" if multiclass else "whether they show a finding"
    return Section(
        kicker="Zero-shot classification",
        lede=(f"Asked by phrases alone {asked}: {summary.get('n') or 0:,} images of", f", {len(classes)} classes."),
        headline=[_figure(metrics, name, multiclass) for name in HEADLINE if name in metrics],
        shown={
            "classes": classes,
            "main": [name for name in MAIN if name in present],
            "present": present,
            "names": METRICS,
            "rows": [_row(summary, name) for name in [None, *classes]],
            "curves": _curves(folder / "per_sample.csv", metrics, classes),
            "reliability": [
                {"title": name, "note": _note("ECE", metrics.get("ece"), name), "svg": _reliability(name, table)}
                for name, table in summary.get("reliability", {}).items()
            ],
            "mistakes": _mistakes(folder, summary.get("thresholds", {})),
            "phrases": {name: _phrases(asked["positive"]) for name, asked in summary.get("prompts", {}).items()},
        },
    )


def _figure(metrics: Mapping[str, Any], name: str, multiclass: bool) -> Figure:
    label, about = METRICS[name]
    chance = CHANCE.get(name) if name == "auc" or not multiclass else None
    others = [] if chance is None else [("chance", "chance", chance)]
    return Figure(label, about, metrics[name]["overall"], others)


def _row(summary: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """A line of the tables; all classes together without a name."""
    entries, cells = {}, {}
    for metric in METRICS:
        values = summary.get("metrics", {}).get(metric)
        if values is None:
            continue
        entries[metric] = values["overall"] if name is None else values["per_category"].get(name, {})
        low = -1.0 if metric == "mcc" else 0.0
        chance = CHANCE.get(metric) if metric == "auc" or not summary.get("multiclass") else None
        cells[metric] = Markup(interval_cell(entries[metric], low=low, reference=chance))  # our own SVG
    return {
        "name": name,
        "positives": None if name is None else summary.get("positives", {}).get(name),
        "known": None if name is None else summary["n_per_category"][name],
        "threshold": None if name is None else summary.get("thresholds", {}).get(name),
        "entries": entries,
        "cells": cells,
    }


def _curves(path: Path, metrics: Mapping[str, Any], classes: list[str]) -> list[dict[str, Any]]:
    """The ROC curve of each class that has positives and negatives; none without per_sample.csv."""
    if not path.is_file():
        return []
    found: dict[str, list[tuple[bool, float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["label"]:
                found.setdefault(row["category"], []).append((row["label"] == "1", float(row["probability"])))
    curves = []
    for name in classes:
        pairs = found.get(name, [])
        false, true = roc_curve(np.array([label for label, _ in pairs], bool), np.array([p for _, p in pairs]))
        if len(false):
            chart = Markup(roc_chart(false.tolist(), true.tolist(), f"ROC curve of {name}"))  # our own SVG
            curves.append({"title": name, "note": _note("AUC", metrics.get("auc"), name), "svg": chart})
    return curves


def _reliability(name: str, table: list[Mapping[str, Any]]) -> Markup:
    return Markup(reliability_chart(table, f"Observed share over probability of {name}"))  # our own SVG


def _note(label: str, values: Mapping[str, Any] | None, name: str) -> str:
    return "" if values is None else f"{label} {number(values['per_category'].get(name, {}).get('mean'), 2)}"


def _mistakes(folder: Path, thresholds: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """The pictures that `classification.examples.write_mistakes` left, by class."""
    described = read_json(folder / "examples.json")
    if not described or not (folder / "examples.npz").is_file():
        return []
    groups: dict[str, list[dict[str, Any]]] = {}
    with np.load(folder / "examples.npz", allow_pickle=False) as arrays:
        images, truths = arrays["images"], arrays["truths"]
    for i, mistake in enumerate(described):
        picture = {
            "size": images[i].shape[0],
            "image": overlays.jpeg_uri(images[i]),
            "outline": overlays.outline_path(truths[i]),
        }
        groups.setdefault(mistake["category"], []).append({**mistake, **picture})
    return [
        {"category": category, "threshold": thresholds.get(category), "examples": examples}
        for category, examples in groups.items()
    ]


def _phrases(texts: list[str]) -> dict[str, Any]:
    return {"shown": texts[:PHRASES], "more": max(0, len(texts) - PHRASES)}
