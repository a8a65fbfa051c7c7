"""What an evaluation leaves behind: per_sample.csv, summary.json and summary.md; and `afloc score` in one function."""

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import afloc_jax
from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.localization import METRICS, ProtocolOptions, Scores, score
from afloc_jax.evaluation.statistics import RESAMPLES
from afloc_jax.evaluation.summary import THRESHOLDED, summarise
from afloc_jax.evaluation.truth import HeatmapFile, read_truth

PROTOCOLS = ("afloc",)
PER_SAMPLE_COLUMNS = ("id", "image", "label_text", "category", "metric", "threshold", "value", "note")


def per_sample_rows(scores: Scores) -> Iterator[tuple[str, ...]]:
    """Rows of per_sample.csv (`PER_SAMPLE_COLUMNS`): one per sample, threshold and metric.

    `threshold` is empty for CNR and the pointing game; `value` is empty where there is no score, `note` says why.
    """
    for n, truth in enumerate(scores.truths):
        sample = (truth.id, truth.image, truth.label_text, truth.category)
        for metric in METRICS:
            values = np.atleast_1d(getattr(scores, metric)[n])
            for k, value in enumerate(values):
                threshold = f"{scores.options.thresholds[k]:g}" if metric in THRESHOLDED else ""
                note = ""
                if scores.empty_truth[n]:
                    note = "no truth in the scored region"
                elif metric in THRESHOLDED and scores.empty_prediction[n, k]:
                    note = "empty prediction"
                elif np.isnan(value):
                    note = "nothing inside or nothing outside"
                yield (*sample, metric, threshold, "" if np.isnan(value) else repr(float(value)), note)


def to_markdown(summary: Mapping[str, Any]) -> str:
    """The summary as tables that read well in plain text: overall and per category, then each baseline."""
    lines = [
        f"# Localisation, protocol {summary['protocol']}{' (compatible)' if summary.get('compatible') else ''}",
        "",
        f"{summary['n']} samples in {len(summary['n_per_category'])} categories. Mean [95 % bootstrap interval, "
        f"{summary['bootstrap']['resamples']} resamples of samples].",
        "",
        *_table(summary["metrics"], summary["n_per_category"]),
    ]
    not_scored = sum(summary["not_scored"].values())
    empty = ", ".join(f"{count} at {threshold}" for threshold, count in summary["empty_predictions"].items() if count)
    lines += ["", f"Not scored (no truth in the scored region): {not_scored}."]
    lines += [f"Empty predictions, {summary['empty_predictions_are']}: {empty or 'none'}."]
    for name, baseline in summary.get("baselines", {}).items():
        lines += ["", f"## Baseline: {name}", "", *_table(baseline["metrics"], summary["n_per_category"])]
        lines += ["", "Difference to it on the same samples (paired):", ""]
        lines += _table(baseline["difference"], summary["n_per_category"])
    return "\n".join(lines) + "\n"


def _table(metrics: Mapping[str, Any], samples: Mapping[str, int]) -> list[str]:
    names = {"iou": "IoU", "dice": "Dice", "cnr": "CNR", "pointing": "Pointing game"}
    lines = [f"| | n | {' | '.join(names[metric] for metric in METRICS)} |", "|---|---|" + "---|" * len(METRICS)]
    rows = [("**all categories**", sum(samples.values()), {m: metrics[m]["overall"] for m in METRICS})]
    rows += [(name, count, {m: metrics[m]["per_category"][name] for m in METRICS}) for name, count in samples.items()]
    for name, count, intervals in rows:
        cells = [_cell(intervals[metric]) for metric in METRICS]
        lines.append(f"| {name.replace('|', '/')} | {count} | {' | '.join(cells)} |")
    return lines


def _cell(interval: Mapping[str, float | None]) -> str:
    mean, lower, upper = (
        "-" if interval[part] is None else f"{interval[part]:.3f}" for part in ("mean", "lower", "upper")
    )
    return mean if mean == "-" else f"{mean} [{lower}, {upper}]"


def write_results(out: str | Path, scores: Scores, summary: Mapping[str, Any]) -> None:
    """Write per_sample.csv, summary.json and summary.md into `out`; each file appears whole or not at all."""
    out = Path(out)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(PER_SAMPLE_COLUMNS)
    writer.writerows(per_sample_rows(scores))
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_whole(out / "per_sample.csv", table.getvalue())
        _write_whole(out / "summary.md", to_markdown(summary))
        _write_whole(out / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{out}: cannot write the results ({error.strerror or error})") from None


def _write_whole(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)  # mkstemp makes private files
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def score_files(
    truth: str | Path,
    heatmaps: str | Path,
    out: str | Path,
    protocol: str = "afloc",
    compatible: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Score any system's heat maps against a truth file and write the results to `out`; what `afloc score` does.

    Returns the summary. Raises `UserError` for unreadable, incomplete or malformed input, before anything is written.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol {protocol!r}; this command knows {', '.join(PROTOCOLS)}")
    truths = read_truth(truth, compatible=compatible)
    maps = HeatmapFile(heatmaps)
    maps.check(truths)
    progress = tqdm(maps.maps(truths), total=len(truths), desc="scoring", unit="map", disable=None)
    scores = score(truths, progress, ProtocolOptions(compatible=compatible))
    summary = summarise(scores, resamples, seed)
    summary["unused_heatmaps"] = len(maps) - len({t.key for t in truths})
    summary["provenance"] = {
        "code": f"afloc_jax {afloc_jax.__version__}",
        "truth": {"file": Path(truth).name, "sha256": _sha256(truth)},
        "heatmaps": {"file": Path(heatmaps).name, "sha256": _sha256(heatmaps)},
        "device": f"cpu, numpy {np.__version__} float64",
    }
    write_results(out, scores, summary)
    return summary
