"""The config of a run: its sections, and the rules between them.

Each section is a settings class of the package that reads it, and checks itself. This file declares the sections of
training and checks the rules that concern several sections. A key that a config file does not state takes its default,
as in configs/afloc.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from afloc_jax.buckets import is_bucket
from afloc_jax.errors import UsageError
from afloc_jax.evaluation.tasks import EvaluationSettings
from afloc_jax.files import bucket_path, user_path
from afloc_jax.heatmaps import HeatmapSettings
from afloc_jax.losses.settings import LossSettings
from afloc_jax.models.normalization import statistics_groups
from afloc_jax.models.settings import ModelSettings
from afloc_jax.settings import (
    NOT_EMPTY,
    NOT_NEGATIVE,
    POSITIVE,
    Json,
    Settings,
    at_least,
    each_of,
    one_of,
    plain,
    setting,
)
from afloc_jax.training.mesh import check_fsdp
from afloc_jax.training.optimizer import EXTENDING, OptimizerSettings
from data_pipelines.settings import DataSettings, records_path

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

TRACKERS = ("wandb", "mlflow")  # experiment trackers that a run has only if it names them

# Which activations are kept for the backward pass of the encoders; the others are computed again.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,  # keep everything
    "blocks": jax.checkpoint_policies.save_only_these_names("block"),  # outputs of residual blocks and BERT's layers
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclass(frozen=True)
class TrainingSettings(Settings, section="training"):
    """`config.training`. configs/afloc.py explains each setting."""

    batch_size: int = setting(128, at_least(2, "a contrast needs two pairs"))
    epochs: int = setting(5, NOT_NEGATIVE)
    steps: int = setting(0, NOT_NEGATIVE)
    precision: str = setting("bfloat16", one_of(PRECISIONS))
    micro_batch: int = setting(0, NOT_NEGATIVE)
    remat: str = setting("none", one_of(REMAT_POLICIES))
    fsdp: int = setting(1, POSITIVE)
    log_every: int = setting(10, POSITIVE)
    validate_every: int = setting(0, NOT_NEGATIVE)
    keep_best: int = setting(5, POSITIVE)
    checkpoint_every: int = setting(0, NOT_NEGATIVE)
    early_stopping: int = setting(10, NOT_NEGATIVE)
    extend: str = setting("none", one_of(EXTENDING))
    trackers: tuple[str, ...] = setting((), each_of(TRACKERS))

    def check(self) -> None:
        if self.steps == 0 and self.epochs == 0:
            raise UsageError("training.epochs = 0 and training.steps = 0: set one of them above 0")

    def total_steps(self, steps_per_epoch: int) -> int:
        """The number of steps of the run: `steps`, or that of `epochs` where `steps` is 0."""
        return self.steps or self.epochs * steps_per_epoch


@dataclass(frozen=True)
class LowRank:
    """Whether the word level is computed in the width of the shallow features (losses/low_rank.py), and why."""

    on: bool
    why: str

    def __str__(self) -> str:
        return f"loss.low_rank is {'on' if self.on else 'off'}: {self.why}"


@dataclass(frozen=True)
class RunConfig(Settings):
    """The config of a run.

    Attributes:
        name: the title in the report and the model card.
        seed: the seed of initial parameters, shuffling, sentence sampling and dropout.
        init_from: one path or several to weights to start from (docs/weights.md); empty for random weights.
    """

    name: str = setting("afloc", NOT_EMPTY)
    seed: int = setting(1, NOT_NEGATIVE)
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    init_from: str | tuple[str, ...] = ""
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    localization: HeatmapSettings = field(default_factory=HeatmapSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    @classmethod
    def from_config(cls, config: Mapping[str, Json]) -> "RunConfig":
        """The checked config from a config file (a ConfigDict) or a config.json.

        Raises:
            UsageError: names the first wrong key, its value and what is allowed.
        """
        return cls.read(_with_one_cache(plain(config)), prefix="config.")

    def check(self) -> None:
        if not self.init_from:  # its weights may bring settings of the text encoder
            self.model.check_text_encoder()
        starts = (self.init_from,) if isinstance(self.init_from, str) else self.init_from
        if len(starts) != 1 and not all(starts):
            raise UsageError(f"init_from = {self.init_from!r}: must be a path or a tuple of paths")
        if len(starts) == 1:  # a model folder may lie in a bucket
            bucket_path(starts[0], "init_from")
        paths = [("init_from", path) for path in starts if len(starts) > 1]
        paths += [("model.text.tokenizer", self.model.text.tokenizer)]
        for number, entry in enumerate(self.evaluation.entries):
            dataset = f"evaluation.datasets[{number}]"
            own = entry.settings
            records_path(own.directory, own.cache, f"{dataset}.directory", "--config.data.cache")
            paths += [(f"{dataset}.cache", own.cache), (f"{dataset}.raw", own.raw)]
        for name, path in paths:
            user_path(path, name)
        if self.localization.cells == "receptive_field" and not self.model.image.structure.strided:
            raise UsageError(
                f"localization.cells = 'receptive_field': the cells of {self.model.image.backbone} are patches, which "
                "tile the image; set localization.cells = 'tiles'"
            )
        if self.data.features and not self.model.image.freeze:
            raise UsageError(
                "data.features: only a frozen image tower gives the same features in every step; set "
                "model.image.freeze = True, or data.features = ''"
            )
        if self.data.features and self.data.augment:
            raise UsageError(
                "data.features: augmented images have other features in every step; set data.augment = False, or "
                "data.features = ''"
            )
        if self.loss.low_rank is True and (needs := self._low_rank_needs()):
            raise UsageError(f"loss.low_rank = True: {needs}")

    @property
    def one_group(self) -> bool:
        """Whether the contrast and the batch statistics are both over the whole batch."""
        groups = self.loss.contrast_group, self.model.image.statistics_group
        return all(group in (0, self.training.batch_size) for group in groups)

    def low_rank(self, features: int) -> LowRank:
        """What `loss.low_rank` stands for, where the shallow map has so many features before its projection."""
        width = self.model.projection_dim
        if self.loss.low_rank != "auto":
            return LowRank(self.loss.low_rank, "the config says so")
        if not self.loss.weights.word:
            return LowRank(False, "the word level has no weight")
        if needs := self._low_rank_needs():
            return LowRank(False, f"it {needs}")
        if features >= width:
            return LowRank(False, f"the shallow map has {features} features, not fewer than the shared width {width}")
        return LowRank(True, f"words are compared in {features} dimensions instead of {width}")

    def _low_rank_needs(self) -> str:
        """As `LossSettings.low_rank_needs`: the shallow map has to be a plain product of features and a projection."""
        if self.model.image.center:
            return "needs model.image.center = False"
        if self.model.normalize:
            return "needs model.normalize = False"
        return self.loss.low_rank_needs()

    def check_batch(self, devices: int = 1) -> None:
        """Raises UsageError where the batch does not divide into its groups or over the devices.

        The constructor does not check this, because `afloc compile --largest` tries other batches.
        """
        batch = self.training.batch_size
        if batch % devices:
            raise UsageError(
                f"config.training.batch_size = {batch}: must be a multiple of the number of devices, {devices}"
            )
        try:
            self.loss.group_size(batch)
            statistics_groups(self.model.image.statistics_group, batch)
        except UsageError as error:
            raise UsageError(f"config.{error}") from None
        check_fsdp(self.training.fsdp, devices)


def _with_one_cache(config: dict[str, Json]) -> dict[str, Json]:
    """The config, in which evaluated data sets in a bucket that name no cache take that of the training data."""
    data, evaluation = config.get("data"), config.get("evaluation")
    datasets = evaluation.get("datasets") if isinstance(evaluation, dict) else None
    if isinstance(data, dict) and isinstance(datasets, list):
        for entry in datasets:
            if isinstance(entry, dict) and is_bucket(str(entry.get("directory"))):
                entry.setdefault("cache", data.get("cache", ""))
    return config
