"""The settings of data: `config.data`, and the same keys in entries of `config.evaluation.datasets`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from afloc_jax.buckets import is_bucket
from afloc_jax.errors import UsageError
from afloc_jax.files import AnyPath, Path, bucket_path, user_path
from afloc_jax.settings import NOT_EMPTY, NOT_NEGATIVE, POSITIVE, Json, Settings, at_least, setting
from data_pipelines.constants import IMAGE_SIZE, Equalization, GreyRule

SentenceSampling = Literal["subset", "impression", "all", "release_subset", "release_impression"]


@dataclass(frozen=True)
class DataSettings(Settings, section="data"):
    """The section `data` of a config.

    Attributes:
        dataset: the name of the builder, one of the folders in data_pipelines/builders.
        directory: the folder of prepared records, on this machine or in a bucket.
        cache: the folder of this machine to which records in a bucket are copied, see `data_pipelines.cache`.
        raw: the folder of raw files; empty if the records are prepared already, or drawn (`phantom`).
        builder: keyword arguments of the builder, which checks them.
        grey: how image files become grey, see `data_pipelines.images.read_image`.
        equalize: histogram equalisation of images, see `data_pipelines.images.equalized`.
        cleaning: whether reports are cleaned, and their words counted, by our rules ("default") or by those of the
            "release", see `data_pipelines.reports.clean_report` and `data_pipelines.tokens.tokenize`.
        train_split, validation_split: the splits for training and validation.
        sentences: how sentences of a report are sampled, see `data_pipelines.batches.sample_sentences`.
        validation_sentences: "all" sentences of each validation report, or "sampled" ones as in training, drawn anew at
            each validation.
        validation_drop_last: whether the validation records that do not fill a batch are left out.
        augment: whether training images are augmented, see `data_pipelines.augment`.
        augment_on: the "host" that makes batches, or the "device", inside the training step.
        max_tokens: token slots per report; longer reports are cut.
        vocabulary_reports, vocabulary_patients: in how many distinct reports, of how many patients, a word must stand
            to be learned, see `data_pipelines.vocabulary`.
        exclude_words: a file of words that are never learned; empty for none.
        features: a folder of this machine for the features of a frozen image tower, which are computed once and then
            read in every step; empty to compute them in every step. See `afloc_jax.training.frozen`.
        workers: worker processes that make batches; 0 for threads of this process.
    """

    dataset: str = setting("pairs", NOT_EMPTY)
    directory: str = setting("data", NOT_EMPTY)
    cache: str = ""
    raw: str = ""
    builder: Mapping[str, Json] = setting({})
    grey: GreyRule = "luma"
    equalize: Equalization = "none"
    cleaning: Literal["default", "release"] = "default"
    train_split: str = setting("train", NOT_EMPTY)
    validation_split: str = setting("validation", NOT_EMPTY)
    sentences: SentenceSampling = "subset"
    validation_sentences: Literal["all", "sampled"] = "all"
    validation_drop_last: bool = False
    augment: bool = False
    augment_on: Literal["host", "device"] = "host"
    max_tokens: int = setting(97, at_least(3, "[CLS], a word, [SEP]"))
    vocabulary_reports: int = setting(5, POSITIVE)
    vocabulary_patients: int = setting(3, POSITIVE)
    exclude_words: str = ""
    workers: int = setting(0, NOT_NEGATIVE)
    features: str = ""

    def check(self) -> None:
        records_path(self.directory, self.cache, self.name_of("directory"), "--config.data.cache")
        for key in ("cache", "raw", "exclude_words", "features"):
            user_path(getattr(self, key), self.name_of(key))

    @property
    def reading(self) -> dict[str, Json]:
        """The arguments that say how a builder reads files; those with default values are left out."""
        stated: dict[str, Json] = {"grey": self.grey, "equalize": self.equalize}
        reading = {name: value for name, value in stated.items() if value != getattr(DataSettings, name)}
        return reading | ({"compatible": True} if self.cleaning == "release" else {})

    @property
    def image_size(self) -> int:
        """The side of the stored square in pixels, from the builder's arguments or its default."""
        side = self.builder.get("image_size", IMAGE_SIZE)
        return side if isinstance(side, int) else IMAGE_SIZE


def records_path(directory: AnyPath, cache: AnyPath, name: str, flag: str) -> Path:
    """The path of a folder of prepared records, checked before anything is read.

    Args:
        directory: the folder, on this machine or in a bucket.
        cache: the folder of this machine to which records of a bucket are copied; empty for none.
        name: the name of the setting in errors.
        flag: how the user sets the cache, such as "--config.data.cache".

    Raises:
        UsageError: the folder is in a bucket and there is no cache, or a path is on other remote storage.
    """
    if not is_bucket(directory):
        return user_path(directory, name)
    path = bucket_path(directory, name)
    if not cache:
        raise UsageError(
            f"{name} = {path}: records cannot be read at random from a bucket; add {flag}=DIR, a folder of this "
            "machine to which they are copied once"
        )
    return path
