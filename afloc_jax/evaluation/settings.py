"""The settings that all tasks read; those of one task are declared in its folder.

A field with a help text is an option of `afloc evaluate`, and every field a key of an entry of
`config.evaluation.datasets`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from afloc_jax.evaluation.statistics import IntervalKind, Unit
from afloc_jax.inference.class_prompts import PromptSet, read_prompt_set
from afloc_jax.settings import Json, Settings, at_least, setting
from data_pipelines.constants import Framing

if TYPE_CHECKING:
    from afloc_jax.evaluation.results import Account
    from afloc_jax.evaluation.statistics.bootstrap import Bootstrap
    from afloc_jax.inference.model import Model
    from data_pipelines.reading import Records, RecordSource


@dataclass(frozen=True)
class TaskSettings(Settings):
    """A data set and how it is evaluated.

    Attributes:
        name, directory, raw, builder, split: as in `data_pipelines.prepared.open_source`.
        title: name of the data set on the page, and of its folder of results.
        compatible: reproduce the published release.
        bootstrap, interval, unit: resamples, kind of interval and what is drawn, see `statistics.bootstrap.Bootstrap`.
    """

    name: str = ""
    directory: str = ""
    raw: str = setting("", help="raw files, to prepare records that are absent", metavar="DIR")
    builder: Mapping[str, Json] = setting(
        {},
        help="argument of the builder, such as test=300; repeatable; other arguments are other records",
        metavar="KEY=VALUE",
    )
    split: str = setting("test", help="which part is scored")
    title: str = setting(
        "",
        help="name of the data set for the report; one that begins with RSNA, MS-CXR, COVID Rural or Fundus has the "
        "published numbers beside its own",
    )
    bootstrap: int = setting(1000, at_least(1, "resamples make an interval"), help="resamples")
    interval: IntervalKind = setting("percentile", help="kind of bootstrap interval")
    unit: Unit = setting("sample", help="what a resample draws")
    compatible: bool = setting(False, help="reproduce the published release number for number, defects included")

    @property
    def resampling(self) -> "Bootstrap":
        """How intervals are made."""
        from afloc_jax.evaluation.statistics.bootstrap import Bootstrap

        return Bootstrap(self.bootstrap, interval=self.interval, unit=self.unit)

    def open(self, split: str) -> "RecordSource":
        """One split of the data set."""
        from data_pipelines.prepared import open_source

        return open_source(self.name, self.directory, split, raw=self.raw, builder=self.builder)

    def recorded(self) -> dict[str, Json]:
        """The settings as summary.json keeps them: an evaluation with the same account is not repeated."""
        return self.plain()


@dataclass(frozen=True)
class LabelledSettings(TaskSettings):
    """The settings that the tasks on labelled records share.

    Attributes:
        classes: names; empty for all that occur.
        framing: "pad" or "crop" of the square; heat maps are always padded. None: the task's own.
        labels: CSV of labels; None: those of the records, see `read_labelled`.
        unlisted: what a class is that the labels of a record do not list.
    """

    task: ClassVar[str] = ""

    classes: tuple[str, ...] = setting((), help="a class; repeatable", flag="class", metavar="NAME")
    framing: Framing | None = setting(
        None,
        help="how the image becomes the square that the model sees: the image surrounded by zeros, or its middle "
        "(default: pad; crop where classification is compatible, as in the release)",
    )
    labels: str | None = setting(
        None, help="labels of the records: column id and one per class; 1, 0, empty", metavar="FILE.csv"
    )
    unlisted: Literal["unknown", "absent"] = setting(
        "unknown",
        help="what a class is that the labels of a record do not list; absent where they list all that is present",
    )

    @property
    def framed(self) -> Framing:
        """How images are framed."""
        return self.framing or "pad"

    @property
    def prompt_set(self) -> PromptSet | None:
        """The prompts of classes; None for a task without."""
        return None

    def recorded(self) -> dict[str, Json]:
        """The same keys for every task of this kind; those that it does not read have their defaults."""
        unread: dict[str, Json] = {"validation_split": "validation", "aggregation": "mean", "by_class": False}
        unread |= {"per_class": 200, "tops": [1, 5, 10]}
        own = {key: value for key, value in self.plain().items() if key not in ("prompts", "interval", "unit")}
        prompts = None if self.prompt_set is None else _hash(self.prompt_set)
        about: dict[str, Json] = {"task": self.task, "framing": self.framed, "prompts_sha256": prompts}
        return {**unread, **own, **about, "bootstrap": self.resampling.to_dict()}

    def account(self, model: "Model", source: "Records", data_sha256: str) -> "Account":
        """The origin of the numbers of an evaluation with these settings."""
        from afloc_jax.evaluation.results import Account, evaluation_provenance

        return Account(
            task=self.task,
            title=self.title,
            compatible=self.compatible,
            framing=self.framed,
            bootstrap=self.resampling.to_dict(),
            settings=self.recorded(),
            provenance=evaluation_provenance(model, source, data_sha256),
        )


@dataclass(frozen=True)
class PromptedSettings(LabelledSettings):
    """What the tasks with prompts of classes share: `prompts` is a prompt set, its file or its name."""

    prompts: str | PromptSet | None = setting(
        None,
        help="phrases of each class: a JSON file (docs/classification.md) or the name of a built-in set such as chest; "
        "without it: the phrases of the validation records; ten of each class for robustness",
        metavar="FILE",
    )

    @property
    def prompt_set(self) -> PromptSet | None:
        """The prompts of classes; None: those that the task takes by default."""
        return read_prompt_set(self.prompts) if isinstance(self.prompts, str) else self.prompts

    def check(self) -> None:
        """The prompt set can be read."""
        _ = self.prompt_set


def _hash(prompts: PromptSet) -> str:
    from afloc_jax.provenance import hash_of

    return hash_of(asdict(prompts))
