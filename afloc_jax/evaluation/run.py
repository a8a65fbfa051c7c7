"""Evaluate a model on data sets by name: what training does last, and `afloc evaluate`."""

import itertools
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from afloc_jax.evaluation.settings import TaskSettings
from afloc_jax.evaluation.statistics.interval import Interval
from afloc_jax.evaluation.task import JsonObject, Models, Task
from afloc_jax.evaluation.tasks import TASKS, EvaluationSettings, task_of
from afloc_jax.inference.model import load
from afloc_jax.weights.folder import update_card, weights_hash


def evaluate_dataset(model: str | Path, out: str | Path, task: Task[Any], settings: TaskSettings) -> JsonObject:
    """Evaluate a model folder on one data set; returns what summary.json holds.

    Raises:
        UsageError, UserError: an unusable folder or data set.
    """
    return task.evaluate(Models(lambda: load(model)), Path(out), settings)


def evaluate_datasets(evaluation: EvaluationSettings, workdir: str | Path) -> dict[str, JsonObject]:
    """Evaluate `workdir/model` on every data set of a config; what training does last.

    Results that were made with these weights and settings are kept. The model card is given the results.

    Returns:
        Folder name under `workdir/evaluation` -> what its summary.json holds.
    """
    workdir = Path(workdir)
    if not evaluation.datasets:
        return {}
    weights = weights_hash(workdir / "model")
    models = Models(lambda: load(workdir / "model"))
    summaries: dict[str, JsonObject] = {}
    for entry in evaluation.entries:
        recorded = entry.settings.recorded()
        name = _folder_name(recorded, taken=summaries)
        out = workdir / "evaluation" / name
        done = _finished(out, weights, recorded)
        summaries[name] = entry.task.evaluate(models, out, entry.settings) if done is None else done
    kept = ("task", "n", "metrics")
    results = {name: {key: summary[key] for key in kept if key in summary} for name, summary in summaries.items()}
    update_card(workdir / "model", {"results": results, "tables": card_tables(results)})
    return summaries


def card_tables(results: Mapping[str, Mapping[str, Any]]) -> list[JsonObject]:
    """For each task that was evaluated, its table of the model card: `title`, `columns`, and `rows` of finished cells.

    Args:
        results: name of the data set -> its summary, or `task`, `n` and `metrics` of it.
    """
    tables: list[JsonObject] = []
    for task in TASKS.values():
        rows = {name: result for name, result in results.items() if task_of(result, name) is task}
        scored = {metric for result in rows.values() for metric in result["metrics"]}
        if rows:
            card = task.card()
            columns = {metric: title for metric, title in card.columns.items() if metric in scored}
            cells = [
                [name, str(result["n"]), *(_card_cell(result["metrics"].get(metric)) for metric in columns)]
                for name, result in rows.items()
            ]
            header = ["data set", "samples", *columns.values()]
            tables.append({"title": card.title, "columns": header, "rows": cells})  # type: ignore[dict-item]
    return tables


def _card_cell(values: Mapping[str, Any] | None) -> str:
    overall = (values or {}).get("overall", {})
    if overall.get("mean") is None:
        return "-"
    return f"{overall['mean']:.3f}" if overall.get("lower") is None else str(Interval.read(overall))


def _folder_name(settings: JsonObject, taken: Collection[str]) -> str:
    spoken = settings["title"] or f"{settings['name']} {settings.get('task', '')}"
    base = re.sub(r"[^A-Za-z0-9._-]+", "_", str(spoken)).strip("._") or "dataset"
    candidates = itertools.chain([base, f"{base}_{settings['split']}"], (f"{base}_{n}" for n in itertools.count(2)))
    return next(name for name in candidates if name not in taken)


def _finished(folder: Path, weights: str, settings: JsonObject) -> JsonObject | None:
    """The summary of an earlier evaluation with the same weights and settings."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    same = summary.get("provenance", {}).get("weights_sha256") == weights
    return summary if same and summary.get("settings") == json.loads(json.dumps(settings)) else None
