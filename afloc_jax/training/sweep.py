"""Many runs of one config: a generator of overrides, run in turn, each in a process of its own, one table at the end.

A sweep file defines `sweep(config)`, which yields dicts of dotted config keys -> values; the optional key `name` names
the run's folder. See configs/sweeps/levels.py.
"""

import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from ml_collections import ConfigDict

import configs.resolved
from afloc_jax.errors import UsageError
from afloc_jax.files import write_whole
from afloc_jax.training import config as settings
from afloc_jax.training.failures import StopSignal

FINISHED = "finished.json"
# The table is sorted by the published headline number, averaged over data sets; without evaluation by validation loss.
MAIN_METRIC = "iou"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=,-]*")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep: its folder's name, what it overrides, and the whole config."""

    name: str
    overrides: dict[str, Any]
    config: ConfigDict


def load_runs(path: Path, config: ConfigDict) -> list[Run]:
    """The runs that the sweep file yields for `config`, every config validated.

    Raises:
        UsageError: no such file, no usable `sweep` in it, a wrong override, or a name that is taken or no folder name.
    """
    if not path.is_file():
        raise UsageError(f"--sweep={path}: no such file; configs/sweeps/levels.py is an example")
    try:
        yielded = list(settings.load_module(path).sweep(config))
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


def _run(path: Path, config: ConfigDict, overrides: dict[str, Any]) -> Run:
    changes = {key: value for key, value in overrides.items() if key != "name"}
    name = overrides.get("name") or ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in changes.items())
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"--sweep={path}: {name!r} is no folder name; use letters, digits and . _ + = , -")
    changed = config.copy_and_resolve_references()
    for key, value in changes.items():
        try:
            settings.override(changed, key, value)
        except UsageError as error:
            raise UsageError(f"--sweep={path}: run {name}: {error}") from error
    try:
        settings.validate(changed)
    except UsageError as error:
        raise UsageError(f"--sweep={path}: run {name}: {error}") from error
    return Run(name, changes, changed)


def run_sweep(path: Path, config: ConfigDict, workdir: Path, dry_run: bool, launcher: Path, debug: bool = False) -> int:
    """Run what is not finished, one after the other, then write sweep.csv and sweep.html (also after every run).

    A run that fails is reported and the next one starts; the same call again takes up what is missing.

    Args:
        path: the sweep file.
        config: what every run starts from.
        workdir: each run works in `workdir/<name>`.
        dry_run: print the table of runs and stop.
        launcher: launch.py, called for each run.

    Returns:
        0 when every run is finished, 1 when some failed, 128 + signal number when a signal stopped the sweep.
    """
    runs = load_runs(path, config)
    if dry_run:
        print(_text_table(["run", *_override_keys(runs)], [[run.name, *_values(run, runs)] for run in runs]))
        return 0
    for run in runs:  # before any work: none of the folders may belong to another config
        settings.check_workdir(run.config, workdir / run.name)
    settings.make_folder(workdir)
    failed: dict[str, int] = {}
    with StopSignal() as stop:
        for number, run in enumerate(runs, start=1):
            if _is_finished(run, workdir):
                _say(f"[{number}/{len(runs)}] {run.name}: already finished")
                continue
            _say(f"[{number}/{len(runs)}] {run.name}")
            status = _launch(run, workdir, launcher, debug, stop)
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


def _launch(run: Run, workdir: Path, launcher: Path, debug: bool, stop: StopSignal) -> int:
    """One run in a fresh process, so that no compiled program, memory or flag of another run is left in it."""
    given = workdir / f"{run.name}.json"
    settings.write_json(given, settings.resolve(run.config))
    command = [sys.executable, str(launcher), f"--config={configs.resolved.__file__}:{given}"]
    command += [f"--workdir={workdir / run.name}", *(["--debug"] if debug else [])]
    child = subprocess.Popen(command)
    forwarded = False
    while True:
        try:
            return child.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            if stop.received and not forwarded:
                child.terminate()  # it saves and exits
                forwarded = True


def _is_finished(run: Run, workdir: Path) -> bool:
    found = _read(workdir / run.name / FINISHED)
    evaluation = json.loads(json.dumps(settings.resolve(run.config)["evaluation"]))
    return bool(found) and found.get("evaluation") == evaluation


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


# The table


def _override_keys(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.overrides))


def _values(run: Run, runs: Sequence[Run]) -> list[Any]:
    """The run's value of everything that any run overrides."""
    flat = dict(settings.flatten(settings.resolve(run.config)))
    return [run.overrides.get(key, flat.get(key, "")) for key in _override_keys(runs)]


def collect(runs: Sequence[Run], workdir: Path, failed: dict[str, int]) -> list[dict[str, Any]]:
    """One row per run, the best first: overrides, losses, evaluation metrics; absent numbers are absent keys."""
    rows = []
    for run in runs:
        finished = _read(workdir / run.name / FINISHED)
        status = "failed" if run.name in failed else "finished" if _is_finished(run, workdir) else "not finished"
        row: dict[str, Any] = {"run": run.name, "status": status}
        row |= dict(zip(_override_keys(runs), _values(run, runs), strict=True))
        keys = ("best_validation_loss", "final_validation_loss", "best_step", "steps", "training_seconds")
        row |= {key: finished[key] for key in keys if finished.get(key) is not None}
        for summary in sorted((workdir / run.name).glob("evaluation/*/summary.json")):
            for metric, scores in _read(summary).get("metrics", {}).items():
                row[f"{summary.parent.name}/{metric}"] = scores.get("overall", {}).get("mean")
        rows.append(row)

    def order(row: dict[str, Any]) -> tuple:
        main = [value for key, value in row.items() if key.endswith(f"/{MAIN_METRIC}") and value is not None]
        loss = row.get("best_validation_loss")
        return (-sum(main) / len(main) if main else float("inf"), float("inf") if loss is None else loss, row["run"])

    return sorted(rows, key=order)


def write_tables(runs: Sequence[Run], workdir: Path, failed: dict[str, int]) -> None:
    """sweep.csv and sweep.html in `workdir`, from what the runs have left there so far."""
    rows = collect(runs, workdir, failed)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    # Overrides beside the name, losses behind them, metrics last, whichever run brought a column first.
    fixed = ["run", "status", *_override_keys(runs)]
    columns = (
        fixed
        + [key for key in columns if key not in fixed and "/" not in key]
        + sorted(key for key in columns if key not in fixed and "/" in key)
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(workdir / "sweep.csv", text.getvalue())
    page = Environment(autoescape=True).from_string(_PAGE)
    cells = [[row.get(column) for column in columns] for row in rows]
    write_whole(workdir / "sweep.html", page.render(title=workdir.name, columns=columns, rows=cells))


def _text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
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
<p>{{ rows | length }} runs, the best first. A click on a heading sorts by that column, another one turns the order.</p>
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
