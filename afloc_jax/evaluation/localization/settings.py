"""How a data set is evaluated by localisation."""

from dataclasses import dataclass

from afloc_jax.evaluation.settings import TaskSettings
from afloc_jax.settings import NOT_NEGATIVE, Json, setting
from data_pipelines.constants import CLASS_PROMPT

# Thresholds of the paper, where a data set has its own: the maps of histopathology are read from their low end.
THRESHOLDS_OF_BUILDER = {"sicapv2": (-1.0, -0.9, -0.8, -0.7, -0.6, -0.5, -0.4, -0.3, -0.2, -0.1)}


@dataclass(frozen=True)
class LocalizationSettings(TaskSettings):
    """A data set with annotated places and how maps of it are scored.

    Attributes:
        protocol: by name, see `protocols`.
        thresholds, margin: other ones than the protocol's own; `THRESHOLDS_OF_BUILDER` go before those.
        validation_split: where a protocol chooses its thresholds.
        class_prompt: how a protocol with negatives asks for a class, "{finding}" replaced by its name.
        prior_split: the part whose masks make the location prior; "" takes the other evaluation images.
    """

    validation_split: str = setting(
        "validation", help="which part thresholds are chosen on, of chexlocalize and classification"
    )
    class_prompt: str = setting(CLASS_PROMPT, help="how chexlocalize asks every image for every class", metavar="TEXT")
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

    def check(self) -> None:
        """The protocol is known and takes these thresholds and this margin."""
        from afloc_jax.evaluation.localization.protocols import get_protocol

        get_protocol(self.protocol, self.scored_thresholds, self.margin)

    @property
    def scored_thresholds(self) -> tuple[float, ...] | None:
        """The thresholds that were asked for, or those of the data set; None: the protocol's own."""
        own = THRESHOLDS_OF_BUILDER.get(self.name) if self.protocol == "afloc" else None
        return own if self.thresholds is None else self.thresholds

    def recorded(self) -> dict[str, Json]:
        """With the thresholds that were scored at."""
        thresholds = self.scored_thresholds
        return {**self.plain(), "thresholds": None if thresholds is None else list(thresholds)}
