"""The whole config of a run: the sections of all rooms that read it, and what they must agree on.

Each section is checked by its own class, which is what the room reads. Here are the sections of training itself, and
the rules between sections. A key that a config file does not state takes its default, which is the published recipe.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.tasks import EvaluationSettings
from afloc_jax.files import user_path
from afloc_jax.heatmaps import HeatmapSettings
from afloc_jax.losses.settings import LossSettings
from afloc_jax.models.convolution import statistics_groups
from afloc_jax.models.settings import ModelSettings
from afloc_jax.settings import NOT_EMPTY, NOT_NEGATIVE, POSITIVE, Json, Settings, at_least, one_of, setting
from afloc_jax.training.mesh import check_fsdp
from afloc_jax.training.optimizer import OptimizerSettings
from data_pipelines.settings import DataSettings

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

# What is kept for the backward pass of the encoders; the rest is computed again.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,  # keep everything
    "blocks": jax.checkpoint_policies.save_only_these_names("block"),  # outputs of residual blocks and BERT's layers
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclass(frozen=True)
class TrainingSettings(Settings, section="training"):
    """`config.training`; configs/afloc.py says what each setting means."""

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

    def check(self) -> None:
        if self.steps == 0 and self.epochs == 0:
            raise UsageError("training.epochs = 0 and training.steps = 0: set one of them above 0")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the run: `steps`, or what the epochs make."""
        return self.steps or self.epochs * steps_per_epoch


@dataclass(frozen=True)
class RunConfig(Settings):
    """The config of a run.

    Attributes:
        name: appears in the report and the model card.
        seed: parameters, shuffling, sentence sampling and dropout derive from it.
        init_from: weights to start from, a path or several (docs/weights.md); empty: random ones.
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
        """The checked config of a config file (a ConfigDict) or of a config.json.

        Raises:
            UsageError: names the first wrong key, its value and what is allowed.
        """
        return cls.read(config, prefix="config.")

    def check(self) -> None:
        if not self.init_from:  # which may bring a text encoder
            self.model.check_text_encoder()
        starts = (self.init_from,) if isinstance(self.init_from, str) else self.init_from
        if len(starts) != 1 and not all(starts):
            raise UsageError(f"init_from = {self.init_from!r}: must be a path or a tuple of paths")
        paths = [("init_from", path) for path in starts]
        paths += [("model.text.tokenizer", self.model.text.tokenizer)]
        for number, entry in enumerate(self.evaluation.entries):
            dataset = f"evaluation.datasets[{number}]"
            paths += [(f"{dataset}.directory", entry.settings.directory), (f"{dataset}.raw", entry.settings.raw)]
        for name, path in paths:
            user_path(path, name)
        if self.loss.low_rank:  # the shallow map has to be a plain product of features
            for key, switched_on in (
                ("model.image.center", self.model.image.center),
                ("model.normalize", self.model.normalize),
            ):
                if switched_on:
                    raise UsageError(f"loss.low_rank = True: needs {key} = False")

    def check_batch(self, devices: int = 1) -> None:
        """Refuse a batch that does not divide into its groups or over the devices. Raises UsageError.

        The constructor does not: `afloc compile --largest` takes any batch.
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
