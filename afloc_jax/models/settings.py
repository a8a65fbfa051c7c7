"""`config.model`: what shapes the two towers. Every wrong key or value is named before any array exists."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from afloc_jax.errors import UsageError
from afloc_jax.models.backbone import Backbone, Structure
from afloc_jax.models.bert import BertSettings
from afloc_jax.models.densenet import DENSENETS
from afloc_jax.models.resnet import RESNETS
from afloc_jax.settings import NOT_NEGATIVE, POSITIVE, Json, Settings, at_least, known_keys, setting

BACKBONES: dict[str, Backbone] = {**RESNETS, **DENSENETS}

Merge = Literal["sum", "mean"]


@dataclass(frozen=True)
class ImageSettings(Settings, section="model.image"):
    """The image encoder.

    Attributes:
        backbone: a name in `BACKBONES`.
        input_size: side to which the square is resized inside the model, pixels.
        options: fields of the backbone's structure as the config states them; `structure` is the result.
        statistics_group: images whose batch statistics are taken together, in order; 0 stands for the whole batch.
        center: whether projected features are batch-normalised (beyond the published recipe).
        freeze: whether the backbone stays as initialised.
    """

    backbone: str = "resnet50"
    input_size: int = setting(299, at_least(32, "the encoder divides the side by 32"))
    options: Mapping[str, Json] = field(default_factory=dict, hash=False)
    statistics_group: int = setting(0, NOT_NEGATIVE)
    center: bool = False
    freeze: bool = False

    def check(self) -> None:
        if self.backbone not in BACKBONES:
            raise UsageError(f"{self.name_of('backbone')} = {self.backbone!r}: must be one of {', '.join(BACKBONES)}")
        self.structure  # noqa: B018 (checks the options)

    @functools.cached_property
    def structure(self) -> Structure:
        """The structure of the backbone with its options."""
        backbone = BACKBONES[self.backbone]
        known_keys(self.options, backbone.options, f"{self.backbone}: {backbone.structure.section}")
        return replace(backbone.structure, **self.options)


@dataclass(frozen=True)
class TextSettings(Settings, section="model.text"):
    """The text encoder.

    Attributes:
        bert: fields of a Hugging Face BertConfig; `structure` is the result. Empty: BERT-base, or
            the text encoder that `config.init_from` brings.
        tokenizer: folder of the vocabulary; "" where one is learned from the training reports.
        last_layers: how many hidden states are combined, the last ones.
        merge_layers: how they are combined.
        merge_pieces: how word pieces become words.
        context: whether pieces see the whole "report" or their own "sentence" alone (beyond the published recipe).
        freeze: whether the text encoder stays as initialised.
    """

    bert: Mapping[str, Json] = field(default_factory=dict, hash=False)
    tokenizer: str = ""
    last_layers: int = setting(4, POSITIVE)
    merge_layers: Merge = "sum"
    merge_pieces: Merge = "sum"
    context: Literal["report", "sentence"] = "report"
    freeze: bool = False

    def check(self) -> None:
        self.structure  # noqa: B018 (checks the fields)

    @functools.cached_property
    def structure(self) -> BertSettings:
        """The structure of the text encoder; BERT-base where `bert` says nothing."""
        return BertSettings.from_hugging_face(self.bert)


@dataclass(frozen=True)
class ModelSettings(Settings, section="model"):
    """Everything that shapes the two towers; hashable, so that it can be a static attribute of a module.

    Attributes:
        projection_dim: D, the width in which image regions and text units meet.
        normalize: whether every embedding is divided by its length.
    """

    projection_dim: int = setting(768, POSITIVE)
    normalize: bool = False
    image: ImageSettings = ImageSettings()
    text: TextSettings = TextSettings()

    def check(self) -> None:
        if self.text.bert:
            self.check_text_encoder()

    def check_text_encoder(self) -> None:
        """Refuse settings that do not fit the text encoder. Raises UsageError.

        The constructor does so where `text.bert` is given. Where it is empty, `config.init_from` may still bring the
        text encoder, so those who know call this: the config of a run without `init_from`, and `build`.
        """
        text = self.text.structure
        if self.text.last_layers > text.num_hidden_layers + 1:
            raise UsageError(
                f"model.text.last_layers = {self.text.last_layers}: the text encoder has {text.num_hidden_layers} "
                f"layers, so {text.num_hidden_layers + 1} hidden states with the embeddings"
            )
        if self.projection_dim != text.hidden_size:
            raise UsageError(
                f"model.projection_dim = {self.projection_dim}: model.text.bert.hidden_size is {text.hidden_size}; "
                "text units are not projected, so both must be the same"
            )
