"""The results of the runs of a sweep, read from their folders, and their means over seeds."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from functools import cached_property

from afloc_jax.errors import UserError
from afloc_jax.evaluation.report.numbers import interval_of, part_of, read_object
from afloc_jax.evaluation.report.training import Logged, read_metrics
from afloc_jax.evaluation.statistics.interval import Interval, of_few
from afloc_jax.evaluation.task import JsonObject
from afloc_jax.evaluation.tasks import task_of
from afloc_jax.files import Path, csv_text, matching
from afloc_jax.settings import Json
from afloc_jax.weights.card import flatten

MAIN_METRIC = "iou"  # of the paper; where no evaluation has it, the first metric of the first evaluation
SEED = "seed"  # runs that differ in this key alone are of one setting
FACTS = ("best_validation_loss", "final_validation_loss", "best_step", "steps", "training_seconds")
_MOST_COLUMNS = 4  # metrics of an evaluation that the page shows; sweep.csv has all of them
_SEED_AT_END = re.compile(r"[._+=,-]*(seed|s)?[._+=,-]*$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run of a sweep, as the sweep knows it.

    Attributes:
        name: its name, which is that of its folder.
        folder: its working directory.
        status: "finished", "failed", "running" or "not finished".
        overrides: its value of every key that any run overrides.
        reason: why it failed, in one line.
    """

    name: str
    folder: Path
    status: str
    overrides: Mapping[str, Json]
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Run:
    """The results of a run.

    Attributes:
        entry: what the sweep knows of it.
        facts: the values of `FACTS` in its finished.json.
        scores: title of an evaluation -> metric -> mean with its interval over samples.
        config: its settings by dotted key.
        about: its run.json.
        logged: the lines of its metrics.jsonl.
    """

    entry: Entry
    facts: Mapping[str, float]
    scores: Mapping[str, Mapping[str, Interval]]
    config: Mapping[str, Json]
    about: JsonObject
    logged: Sequence[Logged]

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def loss(self) -> float:
        """Its lowest validation loss; NaN before its end."""
        return float(self.facts.get(FACTS[0], math.nan))


@dataclasses.dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone. Their order is that of the sweep.

    `place` is its number in the order of settings, from 0 for the best.
    """

    name: str
    overrides: Mapping[str, Json]
    runs: Sequence[Run]
    place: int = 0

    def score(self, evaluation: str, metric: str) -> Interval:
        """The mean over its runs. Of one run alone the interval is that over samples, which knows nothing of seeds."""
        found = [run.scores[evaluation][metric] for run in self.runs if metric in run.scores.get(evaluation, {})]
        return found[0] if len(found) == 1 else of_few([one.mean for one in found])

    def scores(self, evaluation: str, metric: str) -> list[float]:
        """The value of each run that has one."""
        values = [run.scores.get(evaluation, {}).get(metric) for run in self.runs]
        return [value.mean for value in values if value is not None and math.isfinite(value.mean)]

    @property
    def loss(self) -> Interval:
        """The mean of the lowest validation losses."""
        return of_few([run.loss for run in self.runs])


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A data set that runs were scored on.

    `title` is the name of its folder in a run, `heading` that on the page, `metrics` those of its task that the page
    shows, with their titles.
    """

    title: str
    heading: str
    metrics: Mapping[str, str]


class Results:
    """The results of all runs of a sweep that exist so far."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._evaluations: dict[str, Evaluation] = {}
        self.keys = list(dict.fromkeys(key for entry in entries for key in entry.overrides))
        self.given = [self._read(entry) for entry in entries]

    def _read(self, entry: Entry) -> Run:
        scores: dict[str, dict[str, Interval]] = {}
        for path in matching(entry.folder, "evaluation/*/summary.json"):
            summary, title = _object(path), path.parent.name
            try:
                columns = task_of(summary, str(path)).card().columns
            except UserError:
                continue  # of a task that this version does not know
            metrics = part_of(summary, "metrics")
            scores[title] = {name: interval_of(metrics, name, "overall") for name in metrics}
            shown = {name: column for name, column in columns.items() if name in metrics}
            heading = str(summary.get("title") or title.replace("_", " "))
            self._evaluations.setdefault(title, Evaluation(title, heading, dict(list(shown.items())[:_MOST_COLUMNS])))
        finished = _object(entry.folder / "finished.json")
        facts = {key: value for key in FACTS if isinstance(value := finished.get(key), int | float)}
        config = flatten(_object(entry.folder / "config.json"))
        about, logged = _object(entry.folder / "run.json"), read_metrics(entry.folder / "metrics.jsonl")
        return Run(entry, facts, scores, config, about, logged)

    @property
    def evaluations(self) -> list[Evaluation]:
        """The evaluations that any run has, those with the main metric first."""
        return sorted(self._evaluations.values(), key=lambda one: MAIN_METRIC not in one.metrics)

    @property
    def main(self) -> tuple[str, str] | None:
        """The evaluation and the metric that the runs are sorted by; None where none is scored."""
        for one in self.evaluations:
            if one.metrics:
                return one.title, MAIN_METRIC if MAIN_METRIC in one.metrics else next(iter(one.metrics))
        return None

    def _main_of(self, scores: Sequence[Mapping[str, Interval]]) -> float:
        """The main metric, averaged over evaluations; minus infinity without one."""
        metric = self.main[1] if self.main else MAIN_METRIC
        values = [one[metric].mean for one in scores if metric in one and math.isfinite(one[metric].mean)]
        return sum(values) / len(values) if values else -math.inf

    @cached_property
    def runs(self) -> list[Run]:
        """All runs, the best by the main metric first, then by the validation loss."""

        def order(run: Run) -> tuple[float, float, str]:
            return -self._main_of(list(run.scores.values())), _or_last(run.loss), run.name

        return sorted(self.given, key=order)

    @cached_property
    def settings(self) -> list[Setting]:
        """The settings, the best by the mean of the main metric over their runs first, then by the validation loss."""
        groups: dict[str, list[Run]] = {}
        for run in self.given:
            others = {key: value for key, value in run.entry.overrides.items() if key != SEED}
            groups.setdefault(repr(others), []).append(run)
        names = [_common_name([run.name for run in group]) for group in groups.values()]
        found = []
        for name, group in zip(names, groups.values(), strict=True):
            overrides = {key: value for key, value in group[0].entry.overrides.items() if key != SEED}
            found.append(Setting(name if name and names.count(name) == 1 else group[0].name, overrides, group))

        def order(setting: Setting) -> tuple[float, float, str]:
            means = [self._main_of(list(run.scores.values())) for run in setting.runs]
            scored = [mean for mean in means if math.isfinite(mean)]
            mean = sum(scored) / len(scored) if scored else -math.inf
            return -mean, _or_last(setting.loss.mean), setting.name

        return [dataclasses.replace(one, place=place) for place, one in enumerate(sorted(found, key=order))]

    def score(self, run: Run, evaluation: str, metric: str) -> Interval:
        """The value of a run, NaN without one."""
        return run.scores.get(evaluation, {}).get(metric, Interval(math.nan, math.nan, math.nan))

    def place_of(self, run: Run) -> int:
        """The place of the setting of a run."""
        return next(setting.place for setting in self.settings if run in setting.runs)

    @cached_property
    def seeded(self) -> bool:
        """Whether any setting has several runs."""
        return any(len(setting.runs) > 1 for setting in self.settings)

    def to_csv(self) -> str:
        """sweep.csv: a row per run, the best first, with its overrides, the facts of its training and all metrics."""
        facts = [key for key in FACTS if any(key in run.facts for run in self.runs)]
        metrics = sorted({(title, name) for run in self.runs for title in run.scores for name in run.scores[title]})
        columns = ["run", "status", *self.keys, *facts, *(f"{title}/{name}" for title, name in metrics)]
        rows = []
        for run in self.runs:
            scores = [run.scores.get(title, {}).get(name) for title, name in metrics]
            means = [one.mean if one is not None and math.isfinite(one.mean) else None for one in scores]
            overrides = [run.entry.overrides.get(key) for key in self.keys]
            rows.append([run.name, run.entry.status, *overrides, *map(run.facts.get, facts), *means])
        return csv_text(columns, rows)


def _or_last(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _common_name(names: Sequence[str]) -> str:
    """What the names of the runs of a setting have in common; without the seed at its end where there are several."""
    if len(names) == 1:
        return names[0]
    shared = itertools.takewhile(lambda letters: len({*letters}) == 1, zip(*names, strict=False))
    return _SEED_AT_END.sub("", "".join(letters[0] for letters in shared))


def _object(path: Path) -> JsonObject:
    """The object in a JSON file of a run; empty where the file is absent or damaged, which the run itself tells of."""
    try:
        return read_object(path)
    except UserError:
        return {}
