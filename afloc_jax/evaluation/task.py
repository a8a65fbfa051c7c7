"""What a task is: its settings, its evaluation, its section of the page, and its table of the model card.

`tasks.TASKS` lists the tasks. The command line, `run`, the page and the model card read that list and know no task by
its name. The modules of a task, which need NumPy and JAX, are imported when they are used: the command line is built
from the list at once.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
"""What summary.json holds."""


class Models:
    """The model that is evaluated, and the same network without training; each is made when it is first used."""

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
    """A number in the head of the page: its interval, and (kind, title, mean) of what it is compared with."""

    label: str
    about: str
    value: "Interval"
    others: Sequence[tuple[str, str, float | None]] = ()


@dataclass(frozen=True)
class Section:
    """One evaluation on the page.

    Attributes:
        kicker: what was evaluated, in a few words.
        lede: the first sentence of the page, before and after the name of the data set.
        headline: the numbers in the head of the page.
        shown: what the room's section.html.jinja reads.
        data: what was hashed to tell data sets apart, in words.
    """

    kicker: str
    lede: tuple[str, str]
    headline: Sequence[Figure]
    shown: Mapping[str, Any]
    data: str = "data"


@dataclass(frozen=True)
class CardTable:
    """A table of the model card: its title, and for each metric the name of its column."""

    title: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """A task: a folder of this package with the modules `evaluate`, `section` and `metrics`.

    Attributes:
        name: what `--task` takes, and the name of the folder. The page includes its section.html.jinja.
        settings: what it reads from an entry of `config.evaluation.datasets` and from the command line.
    """

    name: str
    settings: type[TaskSettings]

    def evaluate(self, models: Models, out: "Path", settings: TaskSettings) -> JsonObject:
        """Score the model on the data set, write the folder of results and return what summary.json holds.

        The data are opened before the model is loaded, so that a wrong data set is reported at once.
        """
        summary: JsonObject = self._module("evaluate").evaluate_dataset(models, out, settings)
        return summary

    def section(self, folder: "Path", summary: JsonObject) -> Section:
        """What the page shows of a folder of results and its summary.json."""
        shown: Section = self._module("section").section(folder, summary)
        return shown

    def card(self) -> CardTable:
        """Its table of the model card."""
        table: CardTable = self._module("metrics").CARD
        return table

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f"afloc_jax.evaluation.{self.name}.{name}")
