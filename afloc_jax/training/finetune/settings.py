"""The config of a transfer: configs/finetune_linear.py and others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from afloc_jax.evaluation.transfer.settings import TransferSettings
from afloc_jax.files import bucket_path, user_path
from afloc_jax.settings import NOT_EMPTY, NOT_NEGATIVE, Json, Settings, plain, setting
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
class FinetuneConfig(Settings):
    """The config of a transfer.

    Attributes:
        name: the title in the report.
        seed: the seed of the batches; the subsets have `transfer.subset_seed`.
        init_from: the model folder that is transferred.
        encoder: "frozen" (a linear probe).
        data: the data set.
        transfer: the keys of `TransferSettings` that are not in `data`: classes, shares of the labels, intervals.
    """

    name: str = setting("finetune", NOT_EMPTY)
    seed: int = setting(1, NOT_NEGATIVE)
    init_from: str = ""
    encoder: Literal["frozen"] = "frozen"
    data: LabelledData = field(default_factory=LabelledData)
    transfer: Mapping[str, Json] = setting({})

    @classmethod
    def from_config(cls, config: Mapping[str, Json]) -> "FinetuneConfig":
        """The checked config from a config file (a ConfigDict). Raises UsageError, which names the first wrong key."""
        return cls.read(plain(config), prefix="config.")

    def check(self) -> None:
        bucket_path(self.init_from, "init_from")
        _ = self.settings

    @property
    def settings(self) -> TransferSettings:
        """The data set and the shares of its labels. Raises UsageError for an unknown key or a wrong value."""
        data = self.data
        given: tuple[Json, ...] = (data.dataset, data.directory, data.cache, data.raw, dict(data.builder))
        splits = (data.train_split, data.validation_split, data.test_split)
        where: dict[str, Json] = dict(zip(_OF_DATA, (*given, *splits), strict=True))
        own = {key: value for key, value in self.transfer.items() if value is not None}
        return TransferSettings.read({**own, **where}, prefix="config.transfer.")
