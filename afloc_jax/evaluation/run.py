"""Evaluation of a model on data sets by name, at the end of training and for `afloc evaluate`."""

import itertools
import json
import math
import re
import tempfile
from collections.abc import Collection, Mapping

import jax

from afloc_jax.errors import UserError
from afloc_jax.evaluation.report.numbers import interval_of, part_of, read_object
from afloc_jax.evaluation.settings import TaskSettings
from afloc_jax.evaluation.sharing import of_first
from afloc_jax.evaluation.task import JsonObject, Models, Task
from afloc_jax.evaluation.tasks import TASKS, EvaluationSettings, task_of
from afloc_jax.files import Path
from afloc_jax.inference.model import load
from afloc_jax.settings import Json
from afloc_jax.weights.folder import update_card, weights_hash


def evaluate_dataset(model: str | Path, out: str | Path, task: Task, settings: TaskSettings) -> JsonObject:
    """Evaluates a model folder on one data set; returns the content of summary.json. Raises UsageError, UserError."""
    return task.evaluate(Models(lambda: load(model)), Path(out), settings)


def evaluate_datasets(evaluation: EvaluationSettings, workdir: str | Path) -> dict[str, JsonObject]:
    """Evaluates `workdir/model` on every data set of a config, at the end of training.

    Results of the same weights and settings are kept. The results are added to the model card. With several processes
    all must call this: they share the batches, and process 0 writes the results.

    Returns:
        The content of each summary.json by the name of its folder under `workdir/evaluation`.
    """
    workdir = Path(workdir)
    if not evaluation.datasets:
        return {}
    weights = weights_hash(workdir / "model")
    models = Models(lambda: load(workdir / "model"))
    summaries: dict[str, JsonObject] = {}
    first = jax.process_index() == 0
    with tempfile.TemporaryDirectory() as unread:  # what processes other than the first write
        for entry in evaluation.entries:
            recorded = entry.settings.recorded()
            name = _folder_name(recorded, taken=summaries)
            out = workdir / "evaluation" / name
            done = of_first(_finished(out, weights, recorded))
            own = out if first else Path(unread) / name
            summaries[name] = entry.task.evaluate(models, own, entry.settings) if done is None else done
    if not first:
        return summaries
    results = {name: _for_card(summary) for name, summary in summaries.items()}
    update_card(workdir / "model", {"results": results, "tables": card_tables(results), "index": card_index(summaries)})
    return summaries


def card_tables(results: Mapping[str, JsonObject]) -> list[JsonObject]:
    """The tables of the model card, one for each evaluated task: `title`, `columns`, and `rows` of cells.

    `results` maps the name of a data set to its summary, or to `task`, `n`, `metrics` and `baselines` of it.
    """
    tables: list[JsonObject] = []
    for task in TASKS.values():
        rows = {name: result for name, result in results.items() if task_of(result, name) is task}
        if rows:
            card = task.card()
            scored = {metric for result in rows.values() for metric in part_of(result, "metrics")}
            metrics = [metric for metric in card.columns if metric in scored]
            columns: list[Json] = ["data set", "samples", *(card.columns[metric] for metric in metrics)]
            cells: list[Json] = []
            for name, result in rows.items():
                others = part_of(result, "baselines")
                named = {key: f"{name}: {said}" for key, said in card.baselines.items() if key in others}
                below = [(said, part_of(others, key)) for key, said in named.items()]
                for system, found in [(name, result), *below]:
                    cells.append([system, str(result["n"]), *(_card_cell(found, metric) for metric in metrics)])
            tables.append({"title": card.title, "columns": columns, "rows": cells})
    return tables


def card_index(summaries: Mapping[str, JsonObject]) -> list[JsonObject]:
    """The measured results in the order of the hub's model-index, one entry for each data set.

    An entry has `task`, `title`, `dataset`, `builder` and `metrics`, each with `type`, `name` and `value`: those of the
    table in the model card that are numbers. Baselines are no results of the model and are left out.
    """
    entries: list[JsonObject] = []
    for name, summary in summaries.items():
        task = task_of(summary, name)
        card, metrics = task.card(), list[Json]()
        for metric, said in card.columns.items():
            mean = interval_of(summary, "metrics", metric, "overall").mean
            if math.isfinite(mean):
                metrics.append({"type": metric, "name": said, "value": mean})
        if metrics:
            builder = part_of(summary, "settings").get("name", name)
            entry: JsonObject = {"task": task.name, "title": card.title, "dataset": name, "builder": builder}
            entries.append({**entry, "metrics": metrics})
    return entries


def _for_card(summary: JsonObject) -> JsonObject:
    """What the model card keeps of a summary: of baselines in its table the overall values alone."""
    result: JsonObject = {key: summary[key] for key in summary if key in ("task", "n", "metrics")}
    baselines: JsonObject = {}
    for name in task_of(summary, "summary.json").card().baselines:
        metrics = part_of(summary, "baselines", name, "metrics")
        if metrics:
            overall: JsonObject = {metric: {"overall": part_of(metrics, metric, "overall")} for metric in metrics}
            baselines[name] = {"metrics": overall}
    return {**result, "baselines": baselines} if baselines else result


def _card_cell(result: JsonObject, metric: str) -> str:
    overall = interval_of(result, "metrics", metric, "overall")
    return f"{overall.mean:.3f}" if math.isfinite(overall.mean) and math.isnan(overall.lower) else str(overall)


def _folder_name(settings: JsonObject, taken: Collection[str]) -> str:
    spoken = settings["title"] or f"{settings['name']} {settings.get('task', '')}"
    base = re.sub(r"[^A-Za-z0-9._-]+", "_", str(spoken)).strip("._") or "dataset"
    candidates = itertools.chain([base, f"{base}_{settings['split']}"], (f"{base}_{n}" for n in itertools.count(2)))
    return next(name for name in candidates if name not in taken)


def _finished(folder: Path, weights: str, settings: JsonObject) -> JsonObject | None:
    """The summary of an earlier evaluation with the same weights and settings."""
    try:
        summary = read_object(folder / "summary.json")
    except UserError:
        return None
    same = part_of(summary, "provenance").get("weights_sha256") == weights
    return summary if same and summary.get("settings") == json.loads(json.dumps(settings)) else None
