"""The options of a protocol: thresholds, the unscored border, and whether the release's defects are reproduced."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from data_pipelines.constants import IMAGE_SIZE, Pixels


@dataclass(frozen=True)
class ProtocolOptions:
    """The options of a protocol.

    Attributes:
        thresholds: ascending, on the map scaled to [-1, 1]; a pixel is predicted where the map is above (>).
        margin: the unscored border in pixels of a 224 x 224 map, scaled to the size of the map; 0 scores all of it.
        compatible: whether to reproduce the release with its defects (see `scores`).
        protocol: the name of the protocol, for tables.
        at: the pixels that are compared: those of the padded "square", or those of the "original" image.
    """

    thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    margin: int = 14
    compatible: bool = False
    protocol: str = "afloc"
    at: Pixels = "square"

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.thresholds, self.thresholds[1:], strict=False))
        if not (self.thresholds and ascending and self.thresholds[0] >= -1 and self.thresholds[-1] <= 1):
            raise ValueError(f"thresholds are {self.thresholds}; they must ascend within [-1, 1], at least one of them")
        if not 0 <= self.margin < IMAGE_SIZE // 2:
            raise ValueError(f"margin is {self.margin}; it must be in [0, {IMAGE_SIZE // 2}) pixels")

    def scored_region(self, array: Shaped[np.ndarray, "S S"]) -> Shaped[np.ndarray, "s s"]:
        """The central part of a square that is scored."""
        size = array.shape[0]
        margin = round(self.margin * size / IMAGE_SIZE)
        return array[margin : size - margin, margin : size - margin]
