"""The page of a sweep, sweep.html: settings with intervals over seeds, parallel coordinates, learning curves, all runs.

Like the page of a run it is one file, and has the same style sheet, charts and numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from afloc_jax.evaluation.report.charts import Line, curve_chart, mark, smooth
from afloc_jax.evaluation.report.numbers import interval, number, part_of
from afloc_jax.evaluation.report.templates import environment
from afloc_jax.evaluation.report.training import series
from afloc_jax.evaluation.statistics.interval import Interval
from afloc_jax.evaluation.sweep import coordinates
from afloc_jax.evaluation.sweep.overrides import differing, leaves, short_names, text_of
from afloc_jax.evaluation.sweep.results import SEED, Evaluation, Results, Run, Setting
from afloc_jax.levels import LEVELS
from afloc_jax.settings import Json
from data_pipelines.what_images import images_of

KINDS = ("model", "prior", "benchmark")  # colours and marks of the best settings; the others are grey
REST = "rest"
_MOST_AXES = 8  # of settings, in the parallel coordinates
_MOST_POINTS = 200  # of a learning curve
_CELL = (128, 18)  # width and height of a chart in a table


@dataclass(frozen=True)
class _Cell:
    """A number of a table with its limits and a chart; `order` sorts it."""

    number: str
    limits: str
    svg: Markup
    order: float | None


@dataclass(frozen=True)
class _Link:
    """A run of a setting: what is shown, its name, and the address of its report; empty while there is none."""

    text: str
    name: str
    address: str


@dataclass(frozen=True)
class _Row:
    """A setting in a table."""

    setting: Setting
    kind: str
    differs: Sequence[tuple[str, str]]
    cells: Sequence[_Cell]
    links: Sequence[_Link]


@dataclass(frozen=True)
class _Table:
    """The settings by one evaluation; by the validation loss alone where `evaluation` is None."""

    evaluation: Evaluation | None
    heads: Sequence[str]
    rows: Sequence[_Row]


def sweep_page(results: Results, title: str, dataset: Sequence[str]) -> str:
    """The page as HTML.

    Args:
        results: those of all runs.
        title: the name of the sweep.
        dataset: the names of the data sets that the runs are trained on.
    """
    keys = differing(results.runs)
    evaluations: list[Evaluation | None] = [*results.evaluations] or [None]
    states = [run.entry.status for run in results.given]
    return environment().get_template("sweep/page.html.jinja").render(
        title=title,
        images="; ".join(dict.fromkeys(map(images_of, dataset))),
        results=results,
        counts=[(state, states.count(state)) for state in dict.fromkeys(states) if state != "finished"],
        done=states.count("finished"),
        headline=_headline(results),
        tables=[_table(results, evaluation, keys) for evaluation in evaluations],
        coordinates=_coordinates(results, keys),
        omitted=max(len(keys) - _MOST_AXES, 0),
        curves=_curves(results),
        incomparable=[name for key, name in short_names(keys).items() if key.startswith("loss.")],
        failed=[(run, _address(run, ".log")) for run in results.runs if run.entry.status == "failed"],
        kind_of=_kind,
        kinds=[(_kind(setting), setting.name) for setting in results.settings[: len(KINDS)]],
        links={run.name: _link(run) for run in results.runs},
        facts=_facts(results.runs),
        shared=_shared(results.runs, keys),
        SEED=SEED,
    )  # fmt: skip


def _kind(setting: Setting) -> str:
    return KINDS[setting.place] if setting.place < len(KINDS) else REST


# The tables


def _table(results: Results, evaluation: Evaluation | None, keys: Sequence[str]) -> _Table:
    names = short_names(keys)
    columns: list[tuple[str, Callable[[Setting], Interval], Callable[[Setting], Sequence[float]]]] = []
    for metric, heading in evaluation.metrics.items() if evaluation else ():
        columns.append((heading, *_readers(evaluation.title if evaluation else "", metric)))
    columns.append(("Validation loss", lambda one: one.loss, lambda one: [run.loss for run in one.runs]))
    settings = results.settings
    drawn = [
        _cells([mean(one) for one in settings], [of_runs(one) for one in settings]) for _, mean, of_runs in columns
    ]
    rows = []
    for index, setting in enumerate(results.settings):
        flat = leaves(setting.overrides)
        differs = [(names[key], text_of(flat.get(key))) for key in keys]
        links = [_link(run, setting) for run in setting.runs]
        rows.append(_Row(setting, _kind(setting), differs, [column[index] for column in drawn], links))
    return _Table(evaluation, [heading for heading, _, _ in columns], rows)


def _readers(
    evaluation: str, metric: str
) -> tuple[Callable[[Setting], Interval], Callable[[Setting], Sequence[float]]]:
    return lambda one: one.score(evaluation, metric), lambda one: one.scores(evaluation, metric)


def _cells(values: Sequence[Interval], of_runs: Sequence[Sequence[float]]) -> list[_Cell]:
    """The cells of a column. Their charts have one scale, which the values of the runs span; whiskers may leave it."""
    known = [value for runs in of_runs for value in runs if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    margin = 0.15 * (high - low) or 0.5
    low, high = low - margin, high + margin
    width, height = _CELL

    def x(value: float) -> float:
        return 6 + (min(max(value, low), high) - low) / (high - low) * (width - 12)

    cells = []
    for value, runs in zip(values, of_runs, strict=True):
        size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        parts = [f'<svg {size} class="cell" aria-hidden="true">']
        parts.append(f'<line class="grid" x1="6" x2="{width - 6}" y1="{height / 2}" y2="{height / 2}"/>')
        parts += mark("model", value, height / 2, x)
        parts += [f'<path class="seed" d="M{x(one):.1f} 3v{height - 6}"/>' for one in runs if len(runs) > 1]
        finite = math.isfinite(value.mean)
        svg = Markup("".join([*parts, "</svg>"])) if finite else Markup()
        cells.append(_Cell(number(value.mean), interval(value), svg, value.mean if finite else None))
    return cells


def _link(run: Run, setting: Setting | None = None) -> _Link:
    seed = run.entry.overrides.get(SEED)
    text = str(seed) if setting is not None and len(setting.runs) > 1 and seed is not None else "report"
    return _Link(text, run.name, _address(run, "/report/index.html"))


def _address(run: Run, ending: str) -> str:
    """The address of a file of a run beside the page; empty while there is no such file."""
    folder = run.entry.folder
    exists = (folder.parent / f"{folder.name}{ending}").is_file()
    return f"{quote(folder.name)}{ending}" if exists else ""


@dataclass(frozen=True)
class _Figure:
    """A number of the best setting at the top of the page, beside those of other settings."""

    label: str
    value: Interval
    others: Sequence[tuple[str, str, float]]


def _headline(results: Results) -> list[_Figure]:
    if results.main is None:
        return []
    title, main = results.main
    shown = next(one for one in results.evaluations if one.title == title).metrics
    best, *others = results.settings
    beside = [others[0], others[-1]] if len(others) > 1 else others
    return [
        _Figure(
            heading,
            best.score(title, metric),
            [(_kind(one), one.name, one.score(title, metric).mean) for one in beside],
        )
        for metric, heading in sorted(shown.items(), key=lambda item: item[0] != main)
    ]


# The charts


def _coordinates(results: Results, keys: Sequence[str]) -> Markup:
    runs = [(setting, run) for setting in reversed(results.settings) for run in setting.runs]
    flat = [leaves(run.entry.overrides) for _, run in runs]
    names = short_names(keys)
    axes = [coordinates.Axis(names[key], [one.get(key) for one in flat]) for key in keys[:_MOST_AXES]]
    losses: list[Json] = [run.loss for _, run in runs]
    axes.append(coordinates.Axis("validation loss", losses, measured=True, falling=True))
    if results.main is not None:
        title, main = results.main
        evaluation = next(one for one in results.evaluations if one.title == title)
        chosen = sorted(evaluation.metrics, key=lambda metric: metric == main)  # what the runs are sorted by comes last
        for metric in chosen[-3:]:
            values: list[Json] = [getattr(run.scores.get(title, {}).get(metric), "mean", None) for _, run in runs]
            axes.append(coordinates.Axis(evaluation.metrics[metric], values, measured=True))
    axes = [axis for axis in axes if any(value is not None and value == value for value in axis.values)]
    if len(axes) < 2:
        return Markup()
    paths = [coordinates.Path(run.name, _kind(setting), setting.place) for setting, run in runs]
    return Markup(coordinates.coordinates(axes, paths, "What the runs override, and their results, one line per run"))


@dataclass(frozen=True)
class _Curves:
    title: str
    svg: Markup
    small: bool


def _curves(results: Results) -> list[_Curves]:
    wanted = [("loss", "validation", "Validation loss"), ("loss", "train", "Training loss, running mean")]
    wanted += [(f"loss/{level}", "validation", f"{level.capitalize()} level, validation") for level in LEVELS]
    drawn: list[tuple[str, list[Line], bool]] = []
    for key, split, title in wanted:
        lines: list[Line] = []
        for setting in reversed(results.settings):
            for run in setting.runs:
                steps, values = series(run.logged, key, split)
                if not len(steps):
                    continue
                if split == "train":
                    values = smooth(values, max(1, len(values) // 25))
                every = max(1, math.ceil(len(steps) / _MOST_POINTS))
                chosen = np.unique([*range(0, len(steps), every), len(steps) - 1])
                line = Line(name=run.name, kind=_kind(setting), steps=steps[chosen], values=values[chosen])
                line["group"], line["dots"] = setting.place, split == "validation"
                lines.append(line)
        drawn.append((title, lines, key != "loss"))
    levels = [lines for _, lines, of_level in drawn if of_level and lines]
    found = []
    for title, lines, of_level in drawn:
        small = of_level and len(levels) > 2  # three fit in a row
        if chart := curve_chart(lines, f"{title} over training steps, one line per run", small=small):
            found.append(_Curves(title, Markup(chart), small))
    return found


# The facts


def _facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    def all_of(key: str) -> str:
        return ", ".join(dict.fromkeys(str(run.about[key]) for run in runs if run.about.get(key)))

    pairs = sorted({int(str(run.about["pairs"])) for run in runs if run.about.get("pairs")})
    steps = sorted({int(run.facts["steps"]) for run in runs if "steps" in run.facts})
    minutes = sum(run.facts.get("training_seconds", 0.0) for run in runs) / 60
    data = dict.fromkeys(str(run.config["data.dataset"]) for run in runs if "data.dataset" in run.config)
    versions = part_of(next((run.about for run in runs if run.about), {}), "versions")
    facts = [
        ("Training data", ", ".join(data)),
        ("Training pairs", _range(pairs)),
        ("Steps", _range(steps)),
        (
            "Training time, all runs",
            f"{minutes / 60:.1f} h" if minutes >= 60 else f"{minutes:.1f} min" if minutes else "",
        ),
        ("Device", all_of("device")),
        ("Code", all_of("code")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [(key, value) for key, value in facts if value]


def _range(values: Sequence[int]) -> str:
    """The lowest and the highest of sorted numbers; one where they are the same."""
    return " to ".join(dict.fromkeys(f"{values[end]:,}" for end in (0, -1) if values))


def _shared(runs: Sequence[Run], keys: Sequence[str]) -> dict[str, str]:
    """The settings that no run changes."""
    config = next((run.config for run in runs if run.config), {})
    changed = (*keys, SEED)
    return {
        key: str(value)
        for key, value in config.items()
        if not any(key == one or key.startswith(f"{one}.") or one.startswith(f"{key}.") for one in changed)
    }
