"""config.json of a model folder as typed settings, checked where they are read and where they are written."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from afloc_jax import buckets
from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import AnyPath, Path, bucket_path, read_json
from afloc_jax.heatmaps import HeatmapSettings
from afloc_jax.models.settings import ImageSettings, ModelSettings
from afloc_jax.settings import Json, Rule, Settings, at_least, plain, setting, up_to
from data_pipelines.constants import IMAGE_SIZE, Equalization, GreyRule
from data_pipelines.frames import Frame, Resample
from data_pipelines.images import Geometry
from data_pipelines.settings import DataSettings

CONFIG = "config.json"
LARGEST_CONFIG = 1 << 21  # bytes; those of trained models have a thousandth
FORMAT_VERSION = 1

_HALF = Rule(lambda value: value == 0.5, "0.5, because pixels are scaled to [-1, 1]")


class ModelFolderError(UserError):
    """An unusable model folder. The message names the file and what to do."""


@runtime_checkable
class Run(Protocol):
    """The part of a run's config that a model folder stores."""

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def model(self) -> ModelSettings: ...
    @property
    def data(self) -> DataSettings: ...
    @property
    def localization(self) -> HeatmapSettings: ...


@dataclass(frozen=True)
class Preprocessing(Settings, section="preprocessing"):
    """How an image becomes the square that the model reads. Size, grey values and equalisation can be chosen.

    Attributes:
        image_size: the side of the square in pixels.
        grey, equalize: how files become grey and their histogram is equalised, as in training.
        geometry: "pad": the longest side is scaled to `image_size` by area interpolation, and zeros fill the square.
            "crop" and "stretch": see `data_pipelines.frames.Frame`; imported encoders may need them.
        resample: how Pillow interpolates to crop or stretch.
        short_side: the pixels to which the short side is scaled before the middle is cut out; 0: `image_size`.
        channels: 1, grey values.
        mean, std: both 0.5: (x - mean) / std maps pixels from [0, 1] to [-1, 1].
    """

    image_size: int = setting(IMAGE_SIZE, up_to(1 << 14))
    grey: GreyRule = "luma"
    equalize: Equalization = "none"
    geometry: Literal["pad", "crop", "stretch"] = "pad"
    resample: Resample = "bicubic"
    short_side: int = setting(0, Rule(lambda side: 0 <= side <= 1 << 14, "0 or greater and at most 16,384"))
    channels: Literal[1] = 1
    mean: float = setting(0.5, _HALF)
    std: float = setting(0.5, _HALF)

    def plain(self) -> dict[str, Json]:
        """As JSON values. What earlier versions did not have is left out where it is the default."""
        new = ("grey", "equalize", "resample", "short_side")
        unchanged = [name for name in new if getattr(self, name) == getattr(Preprocessing, name)]
        return {name: value for name, value in super().plain().items() if name not in unchanged}

    def check(self) -> None:
        if self.short_side and (self.geometry != "crop" or self.short_side < self.image_size):
            raise UsageError(
                f"{self.name_of('short_side')} = {self.short_side}: must be 0, or at least image_size with "
                "geometry = 'crop'"
            )

    def frame(self, height: int, width: int) -> Geometry:
        """Where an image of height x width pixels lies in the square."""
        if self.geometry == "pad":
            return Geometry(height, width, self.image_size)
        return Frame(height, width, self.image_size, self.geometry, self.resample, self.short_side)


@dataclass(frozen=True)
class PromptRules(Settings, section="prompts"):
    """How a prompt becomes tokens.

    Attributes:
        max_tokens: token slots of a prompt; longer prompts are cut.
        lower_case: True: text is lower-cased.
    """

    max_tokens: int = setting(97, at_least(3, "[CLS], a word, [SEP]"))
    lower_case: bool = setting(True, Rule(bool, "true; every model reads lower-cased text"))


@dataclass(frozen=True)
class FolderConfig:
    """The contents of config.json.

    Attributes:
        name: the name of the model.
        seed: the seed of the run; the evaluation compares with the untrained model of this seed.
        architecture: the settings of both towers.
        preprocessing: how images are prepared.
        prompts: how prompts are tokenized.
        localization: how embeddings become a heat map.
        trained_on: the data sets that the weights were trained on, with those of the model that training started from;
            empty if that is not known.
        card: facts for the model card, see `afloc_jax.weights.card.render_card`.
        unseen_pieces: pieces of the vocabulary that no training report held; None if that is not known. A file of
            their own stores them.
    """

    name: str = "afloc"
    seed: int = 0
    architecture: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    preprocessing: Preprocessing = Preprocessing()
    prompts: PromptRules = PromptRules()
    localization: HeatmapSettings = dataclasses.field(default_factory=HeatmapSettings)
    trained_on: tuple[str, ...] = ()
    card: Mapping[str, Json] = dataclasses.field(default_factory=dict)
    unseen_pieces: frozenset[str] | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def of_run(cls, run: Run, card: Mapping[str, Json]) -> "FolderConfig":
        """The config of the model folder that a run writes."""
        data, architecture = DataSettings.read(plain(run.data)), ModelSettings.read(plain(run.model))
        read = {**data.reading, **data.builder}
        how: dict[str, Json] = {name: read[name] for name in ("grey", "equalize") if name in read}
        # The folder has its own tokenizer; a path on the training machine must not be published with the weights.
        text = dataclasses.replace(architecture.text, tokenizer="")
        return cls(
            name=run.name,
            seed=run.seed,
            architecture=dataclasses.replace(architecture, text=text),
            preprocessing=Preprocessing.read({**how, "image_size": data.builder.get("image_size", IMAGE_SIZE)}),
            prompts=PromptRules(data.max_tokens),
            localization=HeatmapSettings.read(plain(run.localization)),
            trained_on=(data.dataset,) if data.dataset else (),
            card=plain(card),
        )

    def stored(self) -> dict[str, Json]:
        """The content of config.json. `architecture` and `localization` have sorted keys, as in earlier versions.

        What earlier versions did not have is left out where it is the default.
        """
        content = {key: plain(value) for key, value in vars(self).items() if key != "unseen_pieces"}
        for name in ("mean", "std"):
            if getattr(self.architecture.image, name) == getattr(ImageSettings, name):
                del content["architecture"]["image"][name]
        if not self.architecture.text.projection:
            del content["architecture"]["text"]["projection"]
        if not self.localization.sharpen:
            del content["localization"]["sharpen"]
        if not self.trained_on:  # not known, as in folders of earlier versions
            del content["trained_on"]
        for key in ("architecture", "localization"):
            content[key] = json.loads(json.dumps(content[key], sort_keys=True))
        return {"format_version": FORMAT_VERSION, **content}


def read_config(folder: AnyPath) -> FolderConfig:
    """The config of a model folder.

    Raises:
        ModelFolderError: the folder or its config.json is missing, it is not JSON, it has another format version, or a
            section holds an unknown key or a wrong value.
    """
    stored, path = read_stored(folder), Path(folder) / CONFIG
    try:
        return FolderConfig(
            name=str(stored.get("name", FolderConfig.name)),
            seed=_whole_number(stored.get("seed", FolderConfig.seed)),
            # Errors name these settings as in a run's config, such as model.image.backbone; the prefix says where.
            architecture=ModelSettings.read(_section(stored, "architecture"), prefix="architecture: "),
            preprocessing=Preprocessing.read(_section(stored, "preprocessing")),
            prompts=PromptRules.read(_section(stored, "prompts")),
            localization=HeatmapSettings.read(_section(stored, "localization")),
            trained_on=_trained_on(stored),
            card=_section(stored, "card"),
        )
    except UsageError as error:
        raise ModelFolderError(f"{path}: {error}") from None


def read_stored(folder: AnyPath) -> dict[str, Json]:
    """The content of config.json, unparsed, after a check of its format version and keys."""
    place = bucket_path(folder)
    path = place / CONFIG
    if buckets.is_bucket(place):
        buckets.check(str(place))
    if not place.is_dir():
        raise ModelFolderError(f"{folder}: no such model folder; give the folder that holds {CONFIG} and the weights")
    if not path.is_file():
        raise ModelFolderError(f"{folder}: {CONFIG} is missing, so this is not a model folder; give WORKDIR/model")
    try:
        stored = read_json(path, "copy the folder again", LARGEST_CONFIG)
    except UserError as error:
        raise ModelFolderError(str(error)) from None
    version = stored.get("format_version") if isinstance(stored, dict) else None
    if version != FORMAT_VERSION:
        said = f"has format_version {version!r}" if version is not None else "has no format_version"
        is_newer = isinstance(version, int) and version > FORMAT_VERSION
        todo = "update afloc_jax" if is_newer else "export or train the model again with this program"
        raise ModelFolderError(f"{path} {said}; this program reads version {FORMAT_VERSION}: {todo}")
    missing = [key for key in ("architecture", "preprocessing", "prompts") if key not in stored]
    if missing:
        raise ModelFolderError(f"{path}: key {missing[0]!r} is missing; copy the folder again")
    return stored


def _section(stored: Mapping[str, Json], key: str) -> Mapping[str, Json]:
    section = stored.get(key, {})
    if not isinstance(section, Mapping):
        raise UsageError(f"{key} = {section!r}: must be a section, a mapping of names to values")
    return section


def _trained_on(stored: Mapping[str, Json]) -> tuple[str, ...]:
    """The data sets of `trained_on`; in folders of earlier versions that of the card."""
    given = stored.get("trained_on")
    if given is None:
        data = _section(stored, "card").get("data")
        named = data.get("data set") if isinstance(data, dict) else None
        return (named,) if isinstance(named, str) else ()
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise UsageError(f"trained_on = {given!r}: must be a list of names of data sets")
    return tuple(str(name) for name in given)


def _whole_number(seed: Json) -> int:
    if type(seed) is not int:
        raise UsageError(f"seed = {seed!r}: must be a whole number")
    return seed
