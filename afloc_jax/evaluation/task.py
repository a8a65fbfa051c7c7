"""What a task is: its settings, its evaluation, its section of the page, and its table of the model card.

Each room of a task exports one `TASK`, and `tasks.TASKS` lists them. The command line, `run`, the page and the card
read that list and know no task by its name. A room's `task` module imports NumPy and JAX when the task is run, not
before: the command line is built from the list at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from afloc_jax.evaluation.settings import TaskSettings
from afloc_jax.settings import Json

if TYPE_CHECKING:
    from afloc_jax.files import Path
    from afloc_jax.inference.model import Model

JsonObject: TypeAlias = dict[str, Json]
"""What summary.json holds."""

S = TypeVar("S", bound=TaskSettings)


class Models:
    """The model that is evaluated, and the same network without training, each made when it is first asked for."""

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
    entry: Mapping[str, float | None]
    others: Sequence[tuple[str, str, float | None]] = ()


@dataclass(frozen=True)
class Section:
    """One evaluation on the page.

    Attributes:
        kicker: what was evaluated, in a few words.
        lede: the first sentence of the page, before and after the name of the data set.
        headline: the numbers in the head of the page.
        shown: what the room's section.html.jinja reads.
        data: in words, what the hash of the data is taken of.
    """

    kicker: str
    lede: tuple[str, str]
    headline: Sequence[Figure]
    shown: Any
    data: str = "data"


@dataclass(frozen=True)
class CardTable:
    """A table of the model card: its title, and for each metric the name of its column."""

    title: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Task(Generic[S]):
    """A task.

    Attributes:
        name: what `--task` takes; also the name of the room, whose section.html.jinja the page includes.
        about: one line for readers.
        settings: what it reads, of an entry of `config.evaluation.datasets` and of the command line.
        evaluate: scores the model on the data set, writes the folder of results and returns what summary.json holds.
            It asks for the model when the data are open, so that a wrong data set is told before weights are read.
        section: what the page shows of a folder of results and its summary.json.
        card: makes its table of the model card.
    """

    name: str
    about: str
    settings: type[S]
    evaluate: Callable[[Models, "Path", S], JsonObject]
    section: Callable[["Path", JsonObject], Section]
    card: Callable[[], CardTable]
