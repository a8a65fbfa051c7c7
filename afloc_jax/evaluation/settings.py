"""How a data set is evaluated by tasks other than localisation: one object from the command line to summary.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.labelled import UNLISTED
from afloc_jax.evaluation.records import Source, evaluation_provenance
from afloc_jax.evaluation.statistics.bootstrap import RESAMPLES, Bootstrap
from afloc_jax.inference.class_prompts import PromptSet, read_prompt_set
from afloc_jax.inference.model import Model
from afloc_jax.inference.zero_shot import AGGREGATIONS, framing_of
from afloc_jax.provenance import hash_of
from data_pipelines.images import Framing
from data_pipelines.prepared import open_source
from data_pipelines.reading import RecordSource

TASKS = ("classification", "retrieval", "robustness")
FRAMINGS = get_args(Framing)


@dataclass(frozen=True)
class TaskSettings:
    """A data set and how it is evaluated.

    Attributes:
        task: one of `TASKS`.
        name, directory, raw, builder, split: as in `data_pipelines.prepared.open_source`.
        title: of the data set for readers; its name if empty.
        validation_split: where thresholds and the data set's own phrases come from; "" for none.
        classes: names; all that occur if empty.
        prompt_set: how classes are asked for. None: as the data set's validation records ask, and in the ten ways of
            this package where wording is evaluated. `multiclass` makes classification a choice of one class.
        aggregation: of classification, how the phrases of a class become one score, see `zero_shot`.
        framing: "pad" or "crop" of the square; heat maps are always padded. None: pad, but crop in compatible
            classification.
        labels: CSV of labels; None: those of the records, see `read_labelled`.
        unlisted: what a class is that the labels of a record do not list, "unknown" or "absent".
        by_class, per_class: of retrieval: by class instead of by pairs, and records of each class.
        tops: of retrieval: the K of R@K and P@K.
        compatible: prompts cleaned, and thresholds chosen on the scored records, as in the release.
        bootstrap: how intervals are made.
    """

    task: str = "classification"
    name: str = ""
    directory: str = ""
    raw: str = ""
    builder: Mapping[str, Any] = field(default_factory=dict)
    split: str = "test"
    title: str = ""
    validation_split: str = "validation"
    classes: Sequence[str] = ()
    prompt_set: PromptSet | None = None
    aggregation: str = "mean"
    framing: Framing | None = None
    labels: str | None = None
    unlisted: str = "unknown"
    by_class: bool = False
    per_class: int = 200
    tops: Sequence[int] = (1, 5, 10)
    compatible: bool = False
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UsageError(f"unknown task {self.task!r}; there are localization, {', '.join(TASKS)}")
        for name, value, values in (
            ("framing", self.framed, FRAMINGS),
            ("aggregation", self.aggregation, AGGREGATIONS),
            ("unlisted", self.unlisted, UNLISTED),
        ):
            if value not in values:
                raise UsageError(f"unknown {name} {value!r}; there are {', '.join(values)}")

    @property
    def framed(self) -> Framing:
        """How images are framed: `framing`, or what stands for None."""
        return framing_of(self.framing, self.compatible and self.task == "classification")

    def to_dict(self) -> dict[str, Any]:
        """For the record, as JSON holds it: same settings, same account."""
        prompts = None if self.prompt_set is None else hash_of(asdict(self.prompt_set))
        plain = {**vars(self), "builder": dict(self.builder), "bootstrap": self.bootstrap.to_dict()}
        plain |= {"classes": list(self.classes), "tops": list(self.tops), "directory": str(self.directory)}
        plain["framing"] = self.framed
        del plain["prompt_set"]
        return {**plain, "raw": str(self.raw), "labels": self.labels and str(self.labels), "prompts_sha256": prompts}

    def open(self, split: str) -> RecordSource:
        """One split of the data set."""
        return open_source(self.name, self.directory, split, raw=self.raw, builder=self.builder)

    def account(self, model: Model, source: Source, data_sha256: str) -> dict[str, Any]:
        """What the summaries of all tasks hold beside their numbers."""
        return {
            "task": self.task,
            "title": self.title,
            "compatible": self.compatible,
            "framing": self.framed,
            "bootstrap": self.bootstrap.to_dict(),
            "settings": self.to_dict(),
            "provenance": evaluation_provenance(model, source, data_sha256),
        }


def task_settings(task: str, given: Mapping[str, Any]) -> TaskSettings:
    """`TaskSettings` from plain values, as a config holds them.

    `bootstrap` (resamples), `interval` and `unit` make its bootstrap, `prompts` (file or name) its prompt set.

    Raises:
        UsageError: an unknown key or value.
    """
    plain = dict(given)
    bootstrap = Bootstrap(
        plain.pop("bootstrap", RESAMPLES),
        interval=plain.pop("interval", "percentile"),
        unit=plain.pop("unit", "sample"),
    )
    prompts = plain.pop("prompts", None)
    known = [f.name for f in fields(TaskSettings) if f.name not in ("task", "bootstrap", "prompt_set")]
    for key in plain:
        if key not in known:
            names = ", ".join([*known, "prompts", "bootstrap", "interval", "unit"])
            raise UsageError(f"evaluation data set {given.get('name')!r}, {task}: unknown key {key!r}; known: {names}")
    prompt_set = None if prompts is None else read_prompt_set(prompts)
    return TaskSettings(task, prompt_set=prompt_set, bootstrap=bootstrap, **plain)
