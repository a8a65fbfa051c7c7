"""The config of a model folder while it is collected from foreign sources.

Settings that no source states keep their published values.
"""

import dataclasses
from dataclasses import dataclass, field

from afloc_jax.models.settings import BACKBONES, ImageSettings, Merge, ModelSettings, TextSettings
from afloc_jax.settings import Json
from afloc_jax.weights.config import FolderConfig, Preprocessing, PromptRules
from afloc_jax.weights.processors import XRAYVISION_SIDES, Processor
from data_pipelines.constants import IMAGE_SIZE


@dataclass
class Draft:
    """The settings that sources may decide. Fields are named as the settings that `config` fills from them."""

    name: str
    backbone: str = ImageSettings.backbone
    options: dict[str, Json] = field(default_factory=dict)
    input_size: int = ImageSettings.input_size
    mean: tuple[float, ...] = ImageSettings.mean
    std: tuple[float, ...] = ImageSettings.std
    preprocessing: Preprocessing | None = None
    center: bool = False
    freeze_image: bool = False
    bert: dict[str, Json] = field(default_factory=dict)
    last_layers: int = TextSettings.last_layers
    merge_layers: Merge = "sum"
    merge_pieces: Merge = "sum"
    freeze_text: bool = False
    projection: int = 0
    projection_dim: int = ModelSettings.projection_dim
    normalize: bool = False
    image_size: int = IMAGE_SIZE
    max_tokens: int = PromptRules.max_tokens

    def fit_image(self, processor: Processor | None) -> list[str]:
        """Sets the input of the backbone as its processor has it, and returns notes for the user.

        Without a processor, a backbone that does not take the published size gets that of its position embeddings.
        """
        backbone = BACKBONES[self.backbone]
        structure = dataclasses.replace(backbone.structure, **self.options)
        usual, notes = structure.usual_input, []
        if processor is None:
            if self.options.get("channels") == 1:
                self.input_size = self.image_size = XRAYVISION_SIDES.get(backbone.family.name, self.image_size)
                notes.append(
                    f"assumed: squares of {self.image_size} pixels in -1024 ... 1024, as torchxrayvision's networks of "
                    "one channel read them"
                )
            if usual:
                self.input_size = self.image_size = usual
                notes.append(
                    f"assumed: squares of {usual} pixels, scaled to [-1, 1] (no preprocessor_config.json states them)"
                )
            return notes
        self.preprocessing = processor.preprocessing
        self.input_size = self.image_size = processor.preprocessing.image_size
        how = {"crop": "its middle is cut out", "stretch": "it is stretched", "pad": "it is padded"}
        notes.append(
            f"an image becomes {self.image_size} x {self.image_size} pixels ({how[processor.preprocessing.geometry]}), "
            "as preprocessor_config.json states; a run that starts from here pads its records"
        )
        return notes

    def fit_text_encoder(self, fields: dict[str, Json]) -> None:
        """Sets the text encoder and what depends on it: the shared width, the number of last layers, token slots."""
        self.bert = fields
        self.projection_dim = self.bert_count("hidden_size", self.projection_dim)
        self.last_layers = min(self.last_layers, self.bert_count("num_hidden_layers", self.last_layers) + 1)
        self.max_tokens = min(self.max_tokens, self.bert_count("max_position_embeddings", self.max_tokens))

    def bert_count(self, key: str, default: int) -> int:
        """A size of the text encoder, or `default` where no source states it."""
        value = self.bert.get(key, default)
        return value if isinstance(value, int) else default

    def architecture(self) -> ModelSettings:
        """The settings of both towers. Raises UsageError where they do not fit together."""
        return ModelSettings(
            projection_dim=self.projection_dim,
            normalize=self.normalize,
            image=ImageSettings(
                self.backbone,
                self.input_size,
                self.options,
                center=self.center,
                freeze=self.freeze_image,
                mean=self.mean,
                std=self.std,
            ),
            text=TextSettings(
                self.bert,
                last_layers=self.last_layers,
                merge_layers=self.merge_layers,
                merge_pieces=self.merge_pieces,
                freeze=self.freeze_text,
                projection=self.projection,
            ),
        )

    def config(self, seed: int, card: dict[str, Json]) -> FolderConfig:
        """The finished config."""
        return FolderConfig(
            name=self.name,
            seed=seed,
            architecture=self.architecture(),
            preprocessing=self.preprocessing or Preprocessing(self.image_size),
            prompts=PromptRules(self.max_tokens),
            card=card,
        )
