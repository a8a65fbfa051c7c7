"""The images of a model folder by the class names of Hugging Face: `AutoImageProcessor.from_pretrained(FOLDER)`.

`import afloc_jax` lets transformers know this module, without importing it. No torchvision is needed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from afloc_jax.inference.pixels import ImageInput, to_square
from data_pipelines.constants import Equalization, GreyRule


class AFLocConfig(PreTrainedConfig):
    """What transformers asks for to register a processor. Models of this program are not loaded by transformers."""

    model_type = "afloc"


class AFLocImageProcessor(BaseImageProcessor):
    """Images as the model of a folder reads them: grey, the longest side scaled, padded to a square, in [-1, 1]."""

    model_input_names = ["pixel_values"]  # noqa: RUF012  (as the base class has it)

    def __init__(
        self,
        size: dict[str, int] | None = None,
        image_mean: Sequence[float] = (0.5,),
        image_std: Sequence[float] = (0.5,),
        grey: GreyRule = "luma",
        equalize: Equalization = "none",
        **more: Any,
    ) -> None:
        """The fields of preprocessor_config.json."""
        super().__init__(**more)
        self.size, self.image_mean, self.image_std = dict(size or {"longest_edge": 224}), image_mean, image_std
        self.grey, self.equalize = grey, equalize

    def __call__(  # type: ignore[override]  # of the many settings of the base class only those of the folder count
        self,
        images: str | np.ndarray | Image.Image | Sequence[ImageInput],
        return_tensors: str | None = None,
        **_: Any,
    ) -> BatchFeature:
        """`pixel_values` [B, 1, S, S] float32 of an image or several.

        Args:
            images: files, PIL images or arrays, see `afloc_jax.inference.pixels.pixels_of`.
            return_tensors: "np" or "pt"; None: NumPy arrays in a list.
        """
        given = [images] if isinstance(images, str | np.ndarray | Image.Image) else images
        side, grey, equalize = self.size["longest_edge"], self.grey, self.equalize
        squares = [to_square(image, side, rule=grey, equalize=equalize)[0] for image in given]
        mean, std = np.float32(self.image_mean[0]), np.float32(self.image_std[0])
        values = [((square.astype(np.float32) / 255 - mean) / std)[None] for square in squares]
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    preprocess = __call__  # type: ignore[assignment]


def register() -> None:
    """Lets `AutoImageProcessor` find the processor of model folders."""
    both: dict[str, type] = {"pil": AFLocImageProcessor, "torchvision": AFLocImageProcessor}
    AutoImageProcessor.register(AFLocConfig, image_processor_classes=both, exist_ok=True)
