"""Sweeps: several runs of one config with different overrides, each in a process of its own, and a table of results.

A sweep file defines `sweep(config)`, which yields one dict per run: dotted config keys -> values. The optional key
`name` names the folder of the run. configs/sweeps/levels.py is an example.
"""

import dataclasses
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict
from jinja2 import Environment
from ml_collections import ConfigDict

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import Path, csv_text, read_json, write_json, write_whole
from afloc_jax.settings import Json
from afloc_jax.training import recipes
from afloc_jax.training.config import load_module, override
from afloc_jax.training.failures import StopSignal
from afloc_jax.training.restarts import wait_for
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.workdir import FINISHED, check_workdir, make_folder
from data_pipelines.what_images import images_of

# The table is sorted by the main metric of the paper, averaged over data sets, or by validation loss without it.
MAIN_METRIC = "iou"
_FACTS = ("best_validation_loss", "final_validation_loss", "best_step", "steps", "training_seconds")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]*")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep: the name of its folder, its overrides and its config."""

    name: str
    overrides: dict[str, Json]
    config: RunConfig


def load_runs(path: Path, config: ConfigDict) -> list[Run]:
    """The runs that the sweep file yields for `config`, with every config checked.

    Raises:
        UsageError: the file does not exist or has no usable `sweep`, an override is wrong, or a name is used twice or
            cannot be a folder name.
    """
    if not path.is_file():
        raise UsageError(f"--sweep={path}: no such file; configs/sweeps/levels.py is an example")
    try:
        yielded = list(load_module(path).sweep(config))
    except Exception as error:
        raise UsageError(f"--sweep={path}: {type(error).__name__}: {error}; it must define sweep(config)") from error
    runs: list[Run] = []
    for number, overrides in enumerate(yielded):
        if not isinstance(overrides, dict):
            raise UsageError(f"--sweep={path}: run {number} is {overrides!r}; yield dicts of dotted config keys")
        run = _run(path, config, overrides)
        if any(run.name == other.name for other in runs):
            raise UsageError(f"--sweep={path}: two runs are named {run.name!r}; give each a name of its own")
        runs.append(run)
    if not runs:
        raise UsageError(f"--sweep={path}: yields no run")
    return runs


def _run(path: Path, config: ConfigDict, overrides: dict[str, Json]) -> Run:
    changes = {key: value for key, value in overrides.items() if key != "name"}
    name = overrides.get("name") or ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in changes.items())
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"--sweep={path}: {name!r} is no folder name; use letters, digits and . _ + = , -")
    changed = config.copy_and_resolve_references()
    try:
        for key, value in changes.items():
            override(changed, key, value)
        checked = RunConfig.from_config(changed)
        checked.check_batch()
    except UsageError as error:
        raise UsageError(f"--sweep={path}: run {name}: {error}") from error
    return Run(name, changes, checked)


def run_sweep(
    path: Path,
    config: ConfigDict,
    workdir: Path,
    dry_run: bool,
    launcher: Sequence[str],
    passed_on: Sequence[str] = (),
) -> int:
    """Runs all unfinished runs, one after the other, and writes sweep.csv and sweep.html after each of them.

    A run that fails is reported, and the next one starts. The same call again resumes the sweep.

    Args:
        path: the sweep file.
        config: the config that the overrides of each run are applied to.
        workdir: the working directory of a run is `workdir/<name>`.
        dry_run: print the table of runs and stop.
        launcher: the words before the flags of a run, as `program.command` gives them.
        passed_on: further flags of each run.

    Returns:
        0 when every run is finished, 1 when some failed, 128 + signal number when a signal stopped the sweep.
    """
    runs = load_runs(path, config)
    if dry_run:
        print(_text_table(["run", *_override_keys(runs)], [[run.name, *_values(run, runs)] for run in runs]))
        return 0
    for run in runs:  # before the first run starts: no folder may belong to another config
        check_workdir(run.config, workdir / run.name)
    make_folder(workdir)
    failed: dict[str, int] = {}
    with StopSignal() as stop:
        for number, run in enumerate(runs, start=1):
            if _is_finished(run, workdir):
                _say(f"[{number}/{len(runs)}] {run.name}: already finished")
                continue
            _say(f"[{number}/{len(runs)}] {run.name}")
            status = _launch(run, workdir, launcher, passed_on, stop)
            write_tables(runs, workdir, failed)
            if stop.received:
                _say(f"{stop.received.name}: run the same command to go on with {run.name}")
                return stop.exit_status
            if status:
                failed[run.name] = status
                _say(f"[{number}/{len(runs)}] {run.name}: failed with exit status {status}")
    write_tables(runs, workdir, failed)
    if failed:
        _say(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}; run the same command to try them again")
        return 1
    _say(f"{workdir}: all {len(runs)} runs are finished; see {workdir / 'sweep.html'}")
    return 0


def _launch(run: Run, workdir: Path, launcher: Sequence[str], passed_on: Sequence[str], stop: StopSignal) -> int:
    """Runs one run in a new process, which shares no compiled program, memory or flag with other runs."""
    given = workdir / f"{run.name}.json"
    write_json(given, run.config.plain())
    command = [*launcher, f"--config={recipes.FOLDER / 'resolved.py'}:{given}"]
    return wait_for(subprocess.Popen([*command, f"--workdir={workdir / run.name}", *passed_on]), stop)


def _is_finished(run: Run, workdir: Path) -> bool:
    return _read(workdir / run.name / FINISHED).get("evaluation") == run.config.evaluation.plain()


def _read(path: Path) -> dict[str, Any]:
    """The content of a JSON file of a run; empty where the file does not exist yet."""
    try:
        content: dict[str, Any] = read_json(path)
    except UserError:
        return {}
    return content


# The table


def _override_keys(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.overrides))


def _values(run: Run, runs: Sequence[Run]) -> list[Json]:
    """The run's values of all keys that any run overrides."""
    flat = flatten_dict(run.config.plain(), sep=".")
    return [run.overrides.get(key, flat.get(key, "")) for key in _override_keys(runs)]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: one run.

    Attributes:
        run: its name.
        status: "finished", "failed" or "not finished".
        overrides: its value of every key that any run overrides.
        facts: the values of `_FACTS` in its finished.json.
        metrics: "<data set>/<metric>" -> mean.
    """

    run: str
    status: str
    overrides: dict[str, Json]
    facts: dict[str, float]
    metrics: dict[str, float | None]

    def order(self) -> tuple[float, float, str]:
        """The sort key that puts the best run first: by the main metric, then by the validation loss."""
        main = [value for key, value in self.metrics.items() if key.endswith(f"/{MAIN_METRIC}") and value is not None]
        mean = sum(main) / len(main) if main else -math.inf
        return -mean, self.facts.get("best_validation_loss", math.inf), self.run


def collect(runs: Sequence[Run], workdir: Path, failed: Mapping[str, int]) -> list[Row]:
    """One row per run, the best run first."""
    rows = []
    for run in runs:
        folder = workdir / run.name
        finished = _read(folder / FINISHED)
        rows.append(
            Row(
                run.name,
                "failed" if run.name in failed else "finished" if _is_finished(run, workdir) else "not finished",
                dict(zip(_override_keys(runs), _values(run, runs), strict=True)),
                {key: finished[key] for key in _FACTS if finished.get(key) is not None},
                {
                    f"{summary.parent.name}/{metric}": scores.get("overall", {}).get("mean")
                    for summary in sorted(folder.glob("evaluation/*/summary.json"))
                    for metric, scores in _read(summary).get("metrics", {}).items()
                },
            )
        )
    return sorted(rows, key=Row.order)


def write_tables(runs: Sequence[Run], workdir: Path, failed: Mapping[str, int]) -> None:
    """Writes sweep.csv and sweep.html to `workdir`, from the results that exist so far."""
    rows = collect(runs, workdir, failed)
    facts = [key for key in _FACTS if any(key in row.facts for row in rows)]
    metrics = sorted({key for row in rows for key in row.metrics})
    columns = ["run", "status", *_override_keys(runs), *facts, *metrics]
    cells = [
        [row.run, row.status, *row.overrides.values(), *map(row.facts.get, facts), *map(row.metrics.get, metrics)]
        for row in rows
    ]
    write_whole(workdir / "sweep.csv", csv_text(columns, cells))
    images = "; ".join(dict.fromkeys(images_of(run.config.data.dataset) for run in runs))
    page = Environment(autoescape=True).from_string(_PAGE)
    write_whole(workdir / "sweep.html", page.render(title=workdir.name, columns=columns, rows=cells, images=images))


def _text_table(columns: Sequence[str], rows: Sequence[Sequence[Json]]) -> str:
    cells = [[str(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Sweep {{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #1d2733; background: #fff }
table { border-collapse: collapse } th, td { padding: .35rem .8rem; border-bottom: 1px solid #dde3ea; text-align: left }
th { cursor: pointer; white-space: nowrap; position: sticky; top: 0; background: #f3f6f9 }
td.number { text-align: right; font-variant-numeric: tabular-nums } th::after { content: " \\2195"; color: #9aa7b5 }
tbody tr:hover { background: #f7fafc } td.failed { color: #b3261e }
</style>
<h1>Sweep {{ title }}</h1>
<p>Training images: {{ images }}.</p>
<p>{{ rows | length }} runs, the best first. Click on a heading to sort by that column, again to reverse the order.</p>
<table><thead><tr>{% for column in columns %}<th scope="col" tabindex="0">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}<tr>{% for cell in row %}
{%- if cell is none %}<td></td>
{%- elif cell is number and cell is not boolean %}<td class="number" data-value="{{ cell }}">
{{- "%.4g" % cell if cell is float else cell }}</td>
{%- else %}<td{% if cell == "failed" %} class="failed"{% endif %}>{{ cell }}</td>{% endif %}
{%- endfor %}</tr>
{% endfor %}</tbody></table>
<script>
const body = document.querySelector("tbody");
document.querySelectorAll("th").forEach((heading, column) => {
  let direction = -1;
  const sort = () => {
    direction = -direction;
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return direction * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
    });
    body.append(...rows);
  };
  heading.addEventListener("click", sort);
  heading.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
});
</script>
</html>
"""
