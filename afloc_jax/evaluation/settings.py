"""The settings that all tasks read. Those of a single task are declared in its folder.

Every field is a key of an entry of `config.evaluation.datasets`. A field with a help text is also an option of `afloc
evaluate`.
"""

import functools
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from afloc_jax.errors import UserError
from afloc_jax.evaluation.statistics import IntervalKind, Unit
from afloc_jax.inference.class_prompts import PromptSet, read_prompt_set
from afloc_jax.settings import Json, Settings, at_least, setting
from data_pipelines.constants import Framing

if TYPE_CHECKING:
    from afloc_jax.evaluation.results import Account
    from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Units
    from afloc_jax.inference.model import Model
    from data_pipelines.reading import Records, RecordSource


@dataclass(frozen=True)
class TaskSettings(Settings):
    """A data set and how it is evaluated.

    Attributes:
        name, directory, raw, builder, cache, split: see `data_pipelines.prepared.open_source`.
        title: the name of the data set on the page, and of its result folder.
        compatible: whether to reproduce the published release.
        bootstrap, interval, unit: the number of resamples, the kind of interval and the unit of resampling, see
            `statistics.bootstrap.Bootstrap`.
    """

    name: str = ""
    directory: str = ""
    raw: str = setting("", help="folder of raw files, to prepare missing records", metavar="DIR")
    builder: Mapping[str, Json] = setting(
        {},
        help="argument of the builder, such as test=300; repeatable; each choice of arguments has records of its own",
        metavar="KEY=VALUE",
    )
    cache: str = setting("", help="folder to which records in a bucket (gs://) are copied once", metavar="DIR")
    split: str = setting("test", help="split that is scored")
    title: str = setting(
        "",
        help="name of the data set in the report, which also shows the published numbers if it begins with RSNA, "
        "MS-CXR, COVID Rural or Fundus",
    )
    bootstrap: int = setting(1000, at_least(1, "resamples make an interval"), help="number of bootstrap resamples")
    interval: IntervalKind = setting("auto", help="kind of bootstrap interval; auto: BCa for AUC, else percentile")
    unit: Unit = setting(
        "auto", help="unit of resampling and tests; auto: patients if samples share one, else images, else samples"
    )
    compatible: bool = setting(False, help="reproduce the numbers of the published release, with its defects")

    @property
    def resampling(self) -> "Bootstrap":
        """The settings of bootstrap intervals."""
        from afloc_jax.evaluation.statistics.bootstrap import Bootstrap

        chosen = Bootstrap(self.bootstrap, interval=self.interval, unit=self.unit)
        return chosen.as_released() if self.compatible else chosen

    @property
    def reading(self) -> dict[str, Json]:
        """How files are to be read, as arguments of the builder; empty for the builder's defaults."""
        return {}

    def open(self, split: str) -> "RecordSource":
        """One split of the data set. Without raw files, records that were read otherwise are taken with a warning."""
        from data_pipelines.prepared import open_source

        where = functools.partial(
            open_source, self.name, self.directory, split, raw=self.raw, builder=self.builder, cache=self.cache
        )
        try:
            return where(reading=self.reading)
        except UserError:
            if self.raw or not self.reading:
                raise
        source = where()
        _warn(
            f"{self.name}: --compatible reads grey values as cv2.imread(path, 0), but these records were read by the "
            "default rule, which differs in colour files and deep pixels; to have those, add --raw FOLDER or run: "
            f"afloc prepare {self.name} --raw FOLDER --out {self.directory} --builder grey=cv2"
        )
        return source

    def recorded(self) -> dict[str, Json]:
        """The settings in summary.json; an evaluation with the same ones is not repeated. The cache changes nothing."""
        return {key: value for key, value in self.plain().items() if key != "cache"}


@dataclass(frozen=True)
class LabelledSettings(TaskSettings):
    """The settings that the tasks on labelled records share.

    Attributes:
        classes: the names of classes; empty for all that occur.
        framing: "pad" or "crop" of the square; None for the task's default. Heat maps are always padded.
        labels: a CSV of labels; None for those of the records, see `read_labelled`.
        unlisted: the label of classes that a record does not list.
    """

    task: ClassVar[str] = ""

    classes: tuple[str, ...] = setting((), help="a class; repeatable", flag="class", metavar="NAME")
    framing: Framing | None = setting(
        None,
        help="how the image fills the square: padded by zeros, or its middle (default: pad; crop for classification "
        "with --compatible, as in the release)",
    )
    labels: str | None = setting(
        None, help="labels of records: a column id and one per class, with 1, 0 or nothing", metavar="FILE.csv"
    )
    unlisted: Literal["unknown", "absent"] = setting(
        "unknown",
        help="label of classes that a record does not list; absent if records list all that is present",
    )

    @property
    def framed(self) -> Framing:
        """How images are framed."""
        return self.framing or "pad"

    @property
    def prompt_set(self) -> PromptSet | None:
        """The prompts of classes; None for a task without prompts."""
        return None

    def recorded(self) -> dict[str, Json]:
        """The settings with the same keys for all tasks of this kind; keys that a task does not read have defaults."""
        unread: dict[str, Json] = {"validation_split": "validation", "aggregation": "mean", "by_class": False}
        unread |= {"per_class": 200, "tops": [1, 5, 10]}
        own = {key: value for key, value in super().recorded().items() if key not in ("prompts", "interval", "unit")}
        prompts = None if self.prompt_set is None else _hash(self.prompt_set)
        about: dict[str, Json] = {"task": self.task, "framing": self.framed, "prompts_sha256": prompts}
        return {**unread, **own, **about, "bootstrap": self.resampling.to_dict()}

    def account(self, model: "Model", source: "Records", data_sha256: str, units: "Units") -> "Account":
        """The account of an evaluation with these settings, which drew `units`."""
        from afloc_jax.evaluation.results import Account, evaluation_provenance

        return Account(
            task=self.task,
            title=self.title,
            compatible=self.compatible,
            framing=self.framed,
            bootstrap=self.resampling.to_dict(units),
            settings=self.recorded(),
            provenance=evaluation_provenance(model, source, data_sha256),
        )


@dataclass(frozen=True)
class PromptedSettings(LabelledSettings):
    """The settings of tasks with prompts of classes. `prompts` is a prompt set, its file or its name."""

    prompts: str | PromptSet | None = setting(
        None,
        help="phrases of each class: a JSON file (docs/classification.md) or the name of a built-in set such as chest "
        "(default: the phrases of the validation records; for robustness ten per class)",
        metavar="FILE",
    )

    @property
    def prompt_set(self) -> PromptSet | None:
        """The prompts of classes; None for the default of the task."""
        return read_prompt_set(self.prompts) if isinstance(self.prompts, str) else self.prompts

    def check(self) -> None:
        """Raises UsageError if the prompt set cannot be read."""
        _ = self.prompt_set


@functools.cache  # once for all splits
def _warn(message: str) -> None:
    print(f"afloc: {message}", file=sys.stderr)


def _hash(prompts: PromptSet) -> str:
    from afloc_jax.provenance import hash_of

    return hash_of(asdict(prompts))
