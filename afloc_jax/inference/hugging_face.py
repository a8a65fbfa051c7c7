"""The images of a model folder by the class names of Hugging Face: `AutoImageProcessor.from_pretrained(FOLDER)`.

`import afloc_jax` lets transformers know this module, without importing it. No torchvision is needed.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from afloc_jax.inference.squares import to_square
from data_pipelines.constants import Equalization, GreyRule
from data_pipelines.images import decode_image

ImageOrFile = str | np.ndarray | Image.Image


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
        self, images: ImageOrFile | Sequence[ImageOrFile], return_tensors: str | None = None, **_: Any
    ) -> BatchFeature:
        """`pixel_values` [B, 1, S, S] float32 of an image or several.

        Args:
            images: files, grey uint8 arrays [H, W], or PIL images.
            return_tensors: "np" or "pt"; None: NumPy arrays in a list.
        """
        given = [images] if isinstance(images, str | np.ndarray | Image.Image) else images
        squares = [self._square(image) for image in given]
        mean, std = np.float32(self.image_mean[0]), np.float32(self.image_std[0])
        values = [((square.astype(np.float32) / 255 - mean) / std)[None] for square in squares]
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    preprocess = __call__  # type: ignore[assignment]

    def _square(self, image: ImageOrFile) -> np.ndarray:
        if isinstance(image, Image.Image):
            file = io.BytesIO()  # without loss, so that the grey values are those of a file
            ImageOps.exif_transpose(image).save(file, "PNG")
            image = decode_image(file.getvalue(), "image.png", self.grey)
        return to_square(image, self.size["longest_edge"], rule=self.grey, equalize=self.equalize)[0]


def register() -> None:
    """Lets `AutoImageProcessor` find the processor of model folders."""
    both: dict[str, type] = {"pil": AFLocImageProcessor, "torchvision": AFLocImageProcessor}
    AutoImageProcessor.register(AFLocConfig, image_processor_classes=both, exist_ok=True)
