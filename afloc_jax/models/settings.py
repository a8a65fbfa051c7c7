"""`config.model`: the settings of the two towers. A wrong key or value is refused before any array exists."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from afloc_jax.errors import UsageError
from afloc_jax.models.backbone import Backbone, Structure
from afloc_jax.models.bert import BertSettings
from afloc_jax.models.densenet import DENSENETS
from afloc_jax.models.resnet import RESNETS
from afloc_jax.models.vision_transformer import VISION_TRANSFORMERS
from afloc_jax.settings import NOT_NEGATIVE, POSITIVE, Json, Rule, Settings, at_least, known_keys, setting, up_to

BACKBONES: dict[str, Backbone] = {**RESNETS, **DENSENETS, **VISION_TRANSFORMERS}

Merge = Literal["sum", "mean"]

_CHANNELS = Rule(lambda values: len(values) in (1, 3), "one value, or one for each of three channels")
_SPREADS = Rule(lambda values: len(values) in (1, 3) and min(values) > 0, "one value above 0, or three of them")


@dataclass(frozen=True)
class ImageSettings(Settings, section="model.image"):
    """The image encoder.

    Attributes:
        backbone: a name in `BACKBONES`.
        input_size: the side in pixels to which the square is resized inside the model.
        options: changed fields of the backbone's structure; `structure` is the result.
        statistics_group: the number of images, in order, that share batch statistics; 0 stands for the whole batch.
        center: whether projected features are batch-normalised (not published).
        freeze: whether the backbone keeps its initial parameters.
        mean, std: pixels from [0, 1] become (x - mean) / std; one value, or one for each of three equal channels.
    """

    backbone: str = "resnet50"
    input_size: int = setting(299, at_least(32, "the encoder divides the side by 32"))
    options: Mapping[str, Json] = field(default_factory=dict, hash=False)
    statistics_group: int = setting(0, NOT_NEGATIVE)
    center: bool = False
    freeze: bool = False
    mean: tuple[float, ...] = setting((0.5,), _CHANNELS)
    std: tuple[float, ...] = setting((0.5,), _SPREADS)

    def check(self) -> None:
        if self.backbone not in BACKBONES:
            raise UsageError(f"{self.name_of('backbone')} = {self.backbone!r}: must be one of {', '.join(BACKBONES)}")
        self.structure.check_input(self.input_size)
        if len(self.mean) != len(self.std):
            raise UsageError(f"{self.name_of('std')} = {self.std}: must have as many values as mean, {len(self.mean)}")
        if len(self.mean) == 3 and self.structure.plain().get("channels") == 1:
            raise UsageError(f"{self.name_of('mean')} = {self.mean}: the stem of this network has one channel")

    @functools.cached_property
    def structure(self) -> Structure:
        """The structure of the backbone, with `options` applied."""
        backbone = BACKBONES[self.backbone]
        known_keys(self.options, backbone.options, f"{self.backbone}: {backbone.structure.section}")
        return replace(backbone.structure, **self.options)


@dataclass(frozen=True)
class TextSettings(Settings, section="model.text"):
    """The text encoder.

    Attributes:
        bert: fields of a Hugging Face BertConfig; `structure` is the result. Empty for BERT-base, or for the text
            encoder in `config.init_from`.
        tokenizer: the folder of the vocabulary; empty to learn one from the training reports.
        last_layers: how many of the last hidden states are combined.
        merge_layers: how hidden states are combined, "sum" or "mean".
        merge_pieces: how word pieces are merged into words, "sum" or "mean".
        context: the pieces that a piece attends to: those of the whole "report", or of its own "sentence" (not
            published).
        freeze: whether the text encoder keeps its initial parameters; its projection head is trained all the same.
        projection: the width of a projection head, through which the pieces go before they are merged
            (`afloc_jax.models.bert.ProjectionHead`); 0, as published: none.
    """

    bert: Mapping[str, Json] = field(default_factory=dict, hash=False)
    tokenizer: str = ""
    last_layers: int = setting(4, POSITIVE)
    merge_layers: Merge = "sum"
    merge_pieces: Merge = "sum"
    context: Literal["report", "sentence"] = "report"
    freeze: bool = False
    projection: int = setting(0, Rule(lambda width: 0 <= width <= 1 << 14, "0 or greater and at most 16,384"))

    def check(self) -> None:
        self.structure  # noqa: B018 (checks the fields)

    @functools.cached_property
    def structure(self) -> BertSettings:
        """The structure of the text encoder; that of BERT-base for fields that `bert` does not state."""
        return BertSettings.from_hugging_face(self.bert)

    @property
    def width(self) -> int:
        """The width of the text units: that of the projection head, or of the encoder where there is none."""
        return self.projection or self.structure.hidden_size


@dataclass(frozen=True)
class ModelSettings(Settings, section="model"):
    """The settings of the two towers. They are hashable, so that they can be a static attribute of a Flax module.

    Attributes:
        projection_dim: D, the shared width of image regions and text units.
        normalize: whether every embedding is divided by its norm.
        image: the image encoder.
        text: the text encoder.
    """

    projection_dim: int = setting(768, up_to(1 << 14))
    normalize: bool = False
    image: ImageSettings = ImageSettings()
    text: TextSettings = TextSettings()

    def check(self) -> None:
        if self.text.bert:
            self.check_text_encoder()

    def check_text_encoder(self) -> None:
        """Raises UsageError for settings that do not fit the text encoder.

        The constructor calls this where `text.bert` is given. Where it is empty, the text encoder may still come from
        `config.init_from`. A run's config without `init_from`, and `build`, therefore call this themselves.
        """
        text = self.text.structure
        if self.text.last_layers > text.num_hidden_layers + 1:
            raise UsageError(
                f"model.text.last_layers = {self.text.last_layers}: the text encoder has {text.num_hidden_layers} "
                f"layers, so {text.num_hidden_layers + 1} hidden states with the embeddings"
            )
        if self.projection_dim == self.text.width:
            return
        if self.text.projection:
            raise UsageError(
                f"model.projection_dim = {self.projection_dim}: model.text.projection is {self.text.projection}; both "
                "are the shared width, so they must be the same"
            )
        raise UsageError(
            f"model.projection_dim = {self.projection_dim}: model.text.bert.hidden_size is {text.hidden_size}; text "
            f"units are not projected, so both must be the same; or set model.text.projection = {self.projection_dim}"
        )
