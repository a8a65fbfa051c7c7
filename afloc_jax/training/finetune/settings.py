"""The config of a transfer: configs/finetune_linear.py and others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.transfer.settings import TransferSettings
from afloc_jax.files import bucket_path, user_path
from afloc_jax.settings import NOT_EMPTY, NOT_NEGATIVE, POSITIVE, Json, Settings, one_of, plain, setting
from afloc_jax.training.optimizer import OptimizerSettings
from afloc_jax.training.settings import PRECISIONS
from data_pipelines.settings import records_path

_OF_DATA = ("name", "directory", "cache", "raw", "builder", "train_split", "validation_split", "split")


@dataclass(frozen=True)
class LabelledData(Settings, section="data"):
    """The section `data`, whose keys are those of training.

    Attributes:
        dataset: the name of the builder.
        directory, cache, raw, builder: see `data_pipelines.settings.DataSettings`.
        train_split, validation_split, test_split: the splits to learn from, to choose on and to score.
    """

    dataset: str = setting("phantom", NOT_EMPTY)
    directory: str = setting("data", NOT_EMPTY)
    cache: str = ""
    raw: str = ""
    builder: Mapping[str, Json] = setting({})
    train_split: str = setting("train", NOT_EMPTY)
    validation_split: str = setting("validation", NOT_EMPTY)
    test_split: str = setting("test", NOT_EMPTY)

    def check(self) -> None:
        records_path(self.directory, self.cache, self.name_of("directory"), "--config.data.cache")
        for key in ("cache", "raw"):
            user_path(getattr(self, key), self.name_of(key))


@dataclass(frozen=True)
class HeadTraining(Settings, section="training"):
    """The section `training`, for an encoder that is trained.

    Attributes:
        batch_size: images a step, over all devices; smaller where a share has fewer.
        steps: the most steps of each share.
        validate_every: steps between validations.
        early_stopping: validations without a lower loss after which training stops; 0: never.
        log_every: steps between lines of metrics.jsonl.
        precision: of activations; parameters and losses are float32.
        head: the linear head starts as the linear probe of its share, or at zero.
        augment: light shifts, scales and exposures of training images (`data_pipelines.augment`).
    """

    batch_size: int = setting(64, POSITIVE)
    steps: int = setting(1000, POSITIVE)
    validate_every: int = setting(50, POSITIVE)
    early_stopping: int = setting(10, NOT_NEGATIVE)
    log_every: int = setting(10, POSITIVE)
    precision: str = setting("float32", one_of(PRECISIONS))
    head: Literal["linear_probe", "zero"] = "linear_probe"
    augment: bool = True


@dataclass(frozen=True)
class FinetuneConfig(Settings):
    """The config of a transfer.

    Attributes:
        name: the title in the report.
        seed: the seed of the batches; the subsets have `transfer.subset_seed`.
        init_from: the model folder that is transferred.
        encoder: "frozen" (a linear probe) or "trained".
        data: the data set.
        transfer: the keys of `TransferSettings` that are not in `data`: classes, shares of the labels, intervals.
        optimizer, training: how a trained encoder learns.
    """

    name: str = setting("finetune", NOT_EMPTY)
    seed: int = setting(1, NOT_NEGATIVE)
    init_from: str = ""
    encoder: Literal["frozen", "trained"] = "frozen"
    data: LabelledData = field(default_factory=LabelledData)
    transfer: Mapping[str, Json] = setting({})
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    training: HeadTraining = field(default_factory=HeadTraining)

    @classmethod
    def from_config(cls, config: Mapping[str, Json]) -> "FinetuneConfig":
        """The checked config from a config file (a ConfigDict). Raises UsageError, which names the first wrong key."""
        return cls.read(plain(config), prefix="config.")

    def check(self) -> None:
        bucket_path(self.init_from, "init_from")
        if self.settings.target == "masks" and self.encoder == "trained":
            raise UsageError(
                "config.encoder = 'trained': masks are learned on a frozen encoder; take configs/finetune_segment.py, "
                "or config.transfer.target = 'labels'"
            )

    @property
    def settings(self) -> TransferSettings:
        """The data set and the shares of its labels. Raises UsageError for an unknown key or a wrong value."""
        data = self.data
        given: tuple[Json, ...] = (data.dataset, data.directory, data.cache, data.raw, dict(data.builder))
        splits = (data.train_split, data.validation_split, data.test_split)
        where: dict[str, Json] = dict(zip(_OF_DATA, (*given, *splits), strict=True))
        own = {key: value for key, value in self.transfer.items() if value is not None}
        return TransferSettings.read({**own, **where}, prefix="config.transfer.")
