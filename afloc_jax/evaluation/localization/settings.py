"""The settings of localisation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from afloc_jax.evaluation.settings import TaskSettings
from afloc_jax.settings import NOT_NEGATIVE, Json, Rule, setting
from data_pipelines.constants import CLASS_PROMPT, Pixels

if TYPE_CHECKING:
    from afloc_jax.evaluation.localization.protocol import LocalizationProtocol

# The paper's thresholds for data sets with thresholds of their own: low ones for histopathology.
THRESHOLDS_OF_BUILDER = {"sicapv2": (-1.0, -0.9, -0.8, -0.7, -0.6, -0.5, -0.4, -0.3, -0.2, -0.1)}


@dataclass(frozen=True)
class LocalizationSettings(TaskSettings):
    """A data set with masks or boxes, and how maps are scored.

    Attributes:
        protocol: the name of a protocol of `protocols.PROTOCOLS`.
        thresholds, margin: None for those of the protocol, or of `THRESHOLDS_OF_BUILDER`.
        validation_split: the split on which a protocol chooses its thresholds.
        class_prompt: the prompt of a class in a protocol with negatives; "{finding}" is replaced by its name.
        prior_split: the split whose masks make the priors; "" for the other evaluation images.
        at: whether chexlocalize compares pixels of the "square" or the "original"; None for "original" if `compatible`,
            else for "square".
        sharpen: whether maps are sharpened (`heatmaps.sharpened`) before they are scored, also of a model whose own
            maps are not.
        prune: whether prompts are asked without words that do not localise (`inference.pruning`).
        windows: windows per side whose maps are joined (`inference.windows`); records have no more detail for them.
    """

    validation_split: str = setting(
        "validation", help="split on which chexlocalize, generalised and classification choose their thresholds"
    )
    class_prompt: str = setting(
        CLASS_PROMPT, help="prompt of a class in chexlocalize; {finding} stands for its name", metavar="TEXT"
    )
    prior_split: str = setting("train", help='split whose masks make the priors; "" for the other evaluation images')
    protocol: str = setting(
        "afloc", help="protocol of the scores: afloc, chexlocalize, grounding or generalised", metavar="NAME"
    )
    thresholds: tuple[float, ...] | None = setting(
        None,
        help="thresholds on the map scaled to [-1, 1], ascending, of afloc and grounding; write --thresholds=-1,-0.5 "
        "where the first is negative (default: 0.1,0.2,0.3,0.4,0.5)",
        metavar="T,T,...",
    )
    margin: int | None = setting(
        None,
        NOT_NEGATIVE,
        help="unscored border in pixels of 224, of afloc and grounding (default: 14 for afloc, 0 for grounding)",
        metavar="PIXELS",
    )
    at: Pixels | None = setting(
        None,
        help="pixels that chexlocalize compares: those of the padded square or of the original image (default: square; "
        "original with --compatible)",
    )

    sharpen: bool = setting(False, help="sharpen maps by a step at mean + 2 standard deviations before they are scored")
    prune: bool = setting(False, help="ask prompts without words that do not say what or where, such as small or mild")

    windows: int = setting(
        1,
        Rule(lambda number: 1 <= number <= 9, "1 to 9 windows per side"),
        help="windows per side whose maps are joined by their mean (docs/localize.md)",
        metavar="N",
    )

    @property
    def scoring(self) -> "LocalizationProtocol":
        """The protocol with these thresholds and this margin. Raises UsageError if it does not allow them."""
        from afloc_jax.evaluation.localization.protocols import get_protocol

        return get_protocol(self.protocol, self.scored_thresholds, self.margin, self.compatible, self.at)

    @property
    def reading(self) -> dict[str, Json]:
        """Compatible scores read grey values as the release's localisation does."""
        return {"grey": "cv2"} if self.compatible else {}

    def check(self) -> None:
        """Raises UsageError if the protocol is unknown or does not allow these thresholds, margin and pixels."""
        _ = self.scoring

    @property
    def scored_thresholds(self) -> tuple[float, ...] | None:
        """The thresholds of these settings, else those of the data set, else None for those of the protocol."""
        own = THRESHOLDS_OF_BUILDER.get(self.name) if self.protocol == "afloc" else None
        return own if self.thresholds is None else self.thresholds

    def recorded(self) -> dict[str, Json]:
        """The settings with the thresholds and the pixels that were used. Those of the square, and maps and prompts as
        they are, are not said, because earlier evaluations, which need not be repeated, knew no others."""
        thresholds = self.scored_thresholds
        used: dict[str, Json] = {"thresholds": None if thresholds is None else list(thresholds)}
        if self.scoring.original:
            used["at"] = "original"
        used |= {name: True for name in ("sharpen", "prune") if getattr(self, name)}
        used |= {"windows": self.windows} if self.windows > 1 else {}
        unsaid = ("at", "sharpen", "prune", "windows")
        return {key: value for key, value in super().recorded().items() if key not in unsaid} | used
