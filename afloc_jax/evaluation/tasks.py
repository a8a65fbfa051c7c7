"""The table of tasks, and the section of a config with the data sets and tasks to evaluate."""

from collections.abc import Mapping
from dataclasses import dataclass

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.classification.settings import ClassificationSettings
from afloc_jax.evaluation.counterfactual.settings import CounterfactualSettings
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.presence.settings import PresenceSettings
from afloc_jax.evaluation.retrieval.settings import RetrievalSettings
from afloc_jax.evaluation.robustness.settings import RobustnessSettings
from afloc_jax.evaluation.settings import TaskSettings
from afloc_jax.evaluation.task import Task
from afloc_jax.evaluation.transfer.settings import TransferSettings
from afloc_jax.settings import NOT_NEGATIVE, Json, Settings, setting

_SETTINGS: dict[str, type[TaskSettings]] = {
    "localization": LocalizationSettings,
    "classification": ClassificationSettings,
    "retrieval": RetrievalSettings,
    "robustness": RobustnessSettings,
    "counterfactual": CounterfactualSettings,
    "presence": PresenceSettings,
    "transfer": TransferSettings,
}
TASKS = {name: Task(name, settings) for name, settings in _SETTINGS.items()}
DEFAULT = next(iter(TASKS))  # the task if an entry, a command or a summary names none


def task_of(given: Mapping[str, Json], where: str) -> Task:
    """The task that a mapping names by its key `task`. Raises UsageError, which begins with `where`."""
    name = given.get("task", DEFAULT)
    if not isinstance(name, str) or name not in TASKS:
        raise UsageError(f"{where}: unknown task {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]


@dataclass(frozen=True)
class Entry:
    """An entry of `config.evaluation.datasets`."""

    task: Task
    settings: TaskSettings


@dataclass(frozen=True)
class EvaluationSettings(Settings, section="evaluation"):
    """The evaluations at the end of training.

    Attributes:
        datasets: each entry has `name` (the builder) and `directory`, and optionally `task` (default: the first of
            `TASKS`) and the settings of that task.
        bootstrap: the number of resamples of entries that do not state it.
        calibrate: whether the presence of prompts is fitted on the run's validation data.
    """

    datasets: tuple[Mapping[str, Json], ...] = ()
    bootstrap: int = setting(1000, NOT_NEGATIVE)
    calibrate: bool = True

    @property
    def entries(self) -> list[Entry]:
        """The data sets with their tasks. Raises UsageError for an unknown task, key or value."""
        found = []
        for number, given in enumerate(self.datasets):
            where = f"{self.name_of('datasets')}[{number}]"
            task = task_of(given, where)
            for key in ("name", "directory"):
                if not given.get(key):
                    raise UsageError(f"{where}.{key}: missing; each data set has one")
            own = {key: value for key, value in given.items() if key != "task"}
            found.append(Entry(task, task.settings.read({"bootstrap": self.bootstrap, **own}, prefix=f"{where}.")))
        return found

    def check(self) -> None:
        """Raises UsageError for an entry with an unknown task, key or value."""
        _ = self.entries
