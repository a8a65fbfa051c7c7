"""Sweeps: several runs of one config with different overrides, each in a process of its own, and their results.

A sweep file defines `sweep(config)`, which yields one dict per run: dotted config keys -> values. The optional key
`name` names the folder of the run. configs/sweeps/levels.py is an example.
"""

import dataclasses
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.sweep.page import sweep_page
from afloc_jax.evaluation.sweep.results import Entry, Results
from afloc_jax.files import Path, read_json, write_json, write_whole
from afloc_jax.settings import Json
from afloc_jax.training import extension, recipes
from afloc_jax.training.config import load_module, override
from afloc_jax.training.failures import NonFiniteError, StopSignal
from afloc_jax.training.launchers import Launcher, Started, last_line
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.workdir import FINISHED, check_workdir, make_folder

CSV, PAGE = "sweep.csv", "sweep.html"
_POLLED_EVERY = 0.2  # seconds
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
    command: Sequence[str],
    launcher: Launcher,
    passed_on: Sequence[str] = (),
) -> int:
    """Runs all unfinished runs, and writes sweep.csv and sweep.html whenever one ends.

    A run that fails is reported, and the others go on. The same call again resumes the sweep.

    Args:
        path: the sweep file.
        config: the config that the overrides of each run are applied to.
        workdir: the working directory of a run is `workdir/<name>`.
        dry_run: print the table of runs and stop.
        command: the words before the flags of a run, as `program.command` gives them.
        launcher: starts the runs.
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
    sweep = _Sweep(runs, workdir, launcher, command, passed_on)
    with StopSignal() as stop:
        sweep.run(stop)
    if stop.received:
        _say(f"{stop.received.name}: run the same command to go on with {', '.join(sweep.stopped) or 'the next run'}")
        return stop.exit_status
    if failed := sweep.failed:
        _say(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}; run the same command to try them again")
        return 1
    _say(f"{workdir}: all {len(runs)} runs are finished; see {workdir / PAGE}")
    return 0


class _Sweep:
    """The runs that go on, those that failed, by name with the reason, and those that a signal stopped."""

    def __init__(
        self,
        runs: Sequence[Run],
        workdir: Path,
        launcher: Launcher,
        command: Sequence[str],
        passed_on: Sequence[str],
    ) -> None:
        self.failed: dict[str, str] = {}
        self.stopped: list[str] = []
        self._runs, self._workdir, self._launcher = runs, workdir, launcher
        self._command, self._passed_on = command, passed_on
        self._places = {run.name: f"[{number}/{len(runs)}] {run.name}" for number, run in enumerate(runs, start=1)}
        self._going: dict[str, Started] = {}

    def run(self, stop: StopSignal) -> None:
        """Runs what is not finished, until all have ended or a signal comes, after which those that go on save."""
        waiting = deque[Run]()
        for run in self._runs:
            if _is_finished(run, self._workdir):
                _say(f"{self._places[run.name]}: already finished")
            else:
                waiting.append(run)
        told = False
        self._write()
        while self._going or (waiting and not stop.received):
            while waiting and len(self._going) < self._launcher.most and not stop.received:
                self._start(waiting.popleft())
            if stop.received and not told:
                for started in self._going.values():
                    started.stop()
                told = True
            time.sleep(_POLLED_EVERY)
            self._see(stop)

    def _start(self, run: Run) -> None:
        """Starts a run with its config, which is written beside its folder."""
        _say(self._places[run.name])
        given = self._workdir / f"{run.name}.json"
        write_json(given, run.config.plain())
        config, workdir = f"{recipes.FOLDER / 'resolved.py'}:{given}", self._workdir / run.name
        command = [*self._command, f"--config={config}", f"--workdir={workdir}", *self._passed_on]
        try:
            self._going[run.name] = self._launcher.start(command, self._log(run.name))
        except OSError as error:
            self._fail(run.name, f"could not be started: {error.strerror or error}")

    def _log(self, name: str) -> Path:
        return self._workdir / f"{name}.log"

    def _see(self, stop: StopSignal) -> None:
        """Takes up the runs that have ended."""
        ended = {name: status for name, started in self._going.items() if (status := started.status()) is not None}
        for name, status in ended.items():
            del self._going[name]
            if stop.received and status:
                self.stopped.append(name)
            elif status:
                said = last_line(self._log(name))
                self._fail(name, f"{_meaning(status)}{f': {said}' if said else ''}")
            elif self._launcher.most > 1:
                _say(f"{self._places[name]}: finished")
        if ended:
            self._write()

    def _fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        _say(f"{self._places[name]}: failed, {reason}")

    def _write(self) -> None:
        write_tables(self._runs, self._workdir, self.failed, self._going)


def _meaning(status: int) -> str:
    """What the exit status of a run says."""
    if status > 128:
        return f"ended by {signal.Signals(status - 128).name}"
    meanings = {2: "a wrong call", NonFiniteError.exit_status: "a loss that is not finite"}
    return f"exit status {status}" + (f" ({meanings[status]})" if status in meanings else "")


def _is_finished(run: Run, workdir: Path) -> bool:
    folder = workdir / run.name
    if _read(folder / FINISHED).get("evaluation") != run.config.evaluation.plain():
        return False
    try:
        return not extension.plan(run.config, folder).begins
    except UsageError:  # which the run itself tells
        return False


def _read(path: Path) -> dict[str, Any]:
    """The content of a JSON file of a run; empty where the file does not exist yet."""
    try:
        content: dict[str, Any] = read_json(path)
    except UserError:
        return {}
    return content


# The results


def _override_keys(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run.overrides))


def _values(run: Run, runs: Sequence[Run]) -> list[Json]:
    """The run's values of all keys that any run overrides."""
    flat = flatten_dict(run.config.plain(), sep=".")
    return [run.overrides.get(key, flat.get(key, "")) for key in _override_keys(runs)]


def write_tables(
    runs: Sequence[Run], workdir: Path, failed: Mapping[str, str], going: Mapping[str, Started] | None = None
) -> None:
    """Writes sweep.csv and sweep.html to `workdir`, from the results that exist so far.

    Args:
        runs: all runs of the sweep.
        workdir: its working directory.
        failed: the runs that failed, by name, with the reason.
        going: the runs that go on, by name.
    """

    def status(run: Run) -> str:
        if run.name in failed or run.name in (going or {}):
            return "failed" if run.name in failed else "running"
        return "finished" if _is_finished(run, workdir) else "not finished"

    keys = _override_keys(runs)
    results = Results(
        [
            Entry(
                run.name,
                workdir / run.name,
                status(run),
                dict(zip(keys, _values(run, runs), strict=True)),
                failed.get(run.name, ""),
            )
            for run in runs
        ]
    )
    write_whole(workdir / CSV, results.to_csv())
    write_whole(workdir / PAGE, sweep_page(results, workdir.name, [run.config.data.dataset for run in runs]))


def _text_table(columns: Sequence[str], rows: Sequence[Sequence[Json]]) -> str:
    cells = [[str(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
