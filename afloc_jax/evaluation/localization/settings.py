"""How a data set is evaluated by localisation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from afloc_jax.evaluation.settings import TaskSettings
from afloc_jax.settings import NOT_NEGATIVE, Json, setting
from data_pipelines.constants import CLASS_PROMPT

if TYPE_CHECKING:
    from afloc_jax.evaluation.localization.protocol import LocalizationProtocol

# Thresholds of the paper, where a data set has its own: the maps of histopathology are read from their low end.
THRESHOLDS_OF_BUILDER = {"sicapv2": (-1.0, -0.9, -0.8, -0.7, -0.6, -0.5, -0.4, -0.3, -0.2, -0.1)}


@dataclass(frozen=True)
class LocalizationSettings(TaskSettings):
    """A data set with annotated places, and the way its maps are scored.

    Attributes:
        protocol: name of one of `protocols.PROTOCOLS`.
        thresholds, margin: None for those of the protocol, or of `THRESHOLDS_OF_BUILDER`.
        validation_split: where a protocol chooses its thresholds.
        class_prompt: the prompt of a class where a protocol has negatives; "{finding}" is replaced by its name.
        prior_split: the part whose masks make the location prior; "" takes the other evaluation images.
    """

    validation_split: str = setting(
        "validation", help="which part thresholds are chosen on, of chexlocalize and classification"
    )
    class_prompt: str = setting(
        CLASS_PROMPT, help="the prompt of a class in chexlocalize; {finding} stands for its name", metavar="TEXT"
    )
    prior_split: str = setting(
        "train", help='which part makes the location prior; "" takes the other evaluation images'
    )
    protocol: str = setting("afloc", help="how maps are scored: afloc, chexlocalize or grounding", metavar="NAME")
    thresholds: tuple[float, ...] | None = setting(
        None,
        help="thresholds on the map scaled to [-1, 1], ascending, of afloc and grounding; write --thresholds=-1,-0.5 "
        "where the first is negative (default: 0.1,0.2,0.3,0.4,0.5)",
        metavar="T,T,...",
    )
    margin: int | None = setting(
        None,
        NOT_NEGATIVE,
        help="border left unscored, of 224 pixels, of afloc and grounding (default: 14 of afloc, 0 of grounding)",
        metavar="PIXELS",
    )

    @property
    def scoring(self) -> "LocalizationProtocol":
        """The protocol with these thresholds and this margin. Raises UsageError where it does not take them."""
        from afloc_jax.evaluation.localization.protocols import get_protocol

        return get_protocol(self.protocol, self.scored_thresholds, self.margin, self.compatible)

    def check(self) -> None:
        """The protocol is known and takes these thresholds and this margin."""
        _ = self.scoring

    @property
    def scored_thresholds(self) -> tuple[float, ...] | None:
        """The thresholds of these settings, else those of the data set; None: the protocol's own."""
        own = THRESHOLDS_OF_BUILDER.get(self.name) if self.protocol == "afloc" else None
        return own if self.thresholds is None else self.thresholds

    def recorded(self) -> dict[str, Json]:
        """The settings with the thresholds that were scored at."""
        thresholds = self.scored_thresholds
        return {**self.plain(), "thresholds": None if thresholds is None else list(thresholds)}
