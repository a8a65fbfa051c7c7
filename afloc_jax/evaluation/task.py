"""The parts of a task: its settings, its evaluation, its section of the page, and its table of the model card.

`tasks.TASKS` lists the tasks. The command line, `run`, the page and the model card read that list and name no task
themselves. The modules of a task, which need NumPy and JAX, are imported when they are used: the command line is built
from the list at once.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from afloc_jax.evaluation.settings import TaskSettings
from afloc_jax.settings import Json

if TYPE_CHECKING:
    from afloc_jax.evaluation.statistics.interval import Interval
    from afloc_jax.files import Path
    from afloc_jax.inference.model import Model

JsonObject: TypeAlias = dict[str, Json]
"""The content of summary.json."""


class Models:
    """The evaluated model, and the same network without training. Each is loaded when it is first used."""

    def __init__(self, load: Callable[[], "Model"]) -> None:
        self._load = load

    @cached_property
    def trained(self) -> "Model":
        return self._load()

    @cached_property
    def untrained(self) -> "Model":
        return self.trained.untrained()


@dataclass(frozen=True)
class Figure:
    """A number at the top of the page: its interval, and (kind, title, mean) of other systems."""

    label: str
    about: str
    value: "Interval"
    others: Sequence[tuple[str, str, float | None]] = ()


@dataclass(frozen=True)
class Section:
    """One evaluation on the page.

    Attributes:
        kicker: the name of the task, above the title.
        lede: the first sentence of the page, before and after the name of the data set.
        headline: the numbers at the top of the page.
        shown: the variables of the task's section.html.jinja.
        data: a description of the hashed data.
        subject: what the title of the section says beside the name of the data set.
        featured: the variables of the task's featured.html.jinja, which is shown at the top; none: nothing is.
    """

    kicker: str
    lede: tuple[str, str]
    headline: Sequence[Figure]
    shown: Mapping[str, Any]
    data: str = "data"
    subject: str = ""
    featured: Sequence[Any] = ()


@dataclass(frozen=True)
class CardTable:
    """A table of the model card.

    Attributes:
        title: its title.
        columns: for each metric the name of its column.
        baselines: for each baseline that has a row below the model's, what it is called there.
    """

    title: str
    columns: Mapping[str, str]
    baselines: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task: a folder of this package with the modules `evaluate`, `section` and `metrics`.

    Attributes:
        name: the value of `--task` and the name of the folder, whose section.html.jinja the page includes.
        settings: the settings of an entry of `config.evaluation.datasets` and of the command line.
    """

    name: str
    settings: type[TaskSettings]

    def evaluate(self, models: Models, out: "Path", settings: TaskSettings) -> JsonObject:
        """Scores the model on the data set, writes the result folder, and returns the content of summary.json.

        The data are opened before the model is loaded, so that a wrong data set is reported at once.
        """
        summary: JsonObject = self._module("evaluate").evaluate_dataset(models, out, settings)
        return summary

    def section(self, folder: "Path", summary: JsonObject) -> Section:
        """The section of the page for a result folder and its summary.json."""
        shown: Section = self._module("section").section(folder, summary)
        return shown

    def card(self) -> CardTable:
        """The table of the task in the model card."""
        table: CardTable = self._module("metrics").CARD
        return table

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f"afloc_jax.evaluation.{self.name}.{name}")
