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
from afloc_jax.weights.processors import square_rule
from data_pipelines.constants import Equalization, GreyRule


class AFLocConfig(PreTrainedConfig):
    """What transformers asks for to register a processor. Models of this program are not loaded by transformers."""

    model_type = "afloc"


class AFLocImageProcessor(BaseImageProcessor):
    """Images as the model of a folder reads them: grey, as a square (mostly padded), in [-1, 1]."""

    model_input_names = ["pixel_values"]  # noqa: RUF012  (as the base class has it)

    def __init__(
        self,
        size: dict[str, int] | None = None,
        image_mean: Sequence[float] = (0.5,),
        image_std: Sequence[float] = (0.5,),
        grey: GreyRule = "luma",
        equalize: Equalization = "none",
        resample: str | int = "area",
        do_center_crop: bool = False,
        crop_size: dict[str, int] | None = None,
        **more: Any,
    ) -> None:
        """The fields of preprocessor_config.json."""
        super().__init__(**more)
        self.size, self.image_mean, self.image_std = dict(size or {"longest_edge": 224}), image_mean, image_std
        self.resample, self.do_center_crop, self.crop_size = resample, do_center_crop, crop_size
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
        rule = square_rule({name: getattr(self, name) for name in ("size", "resample", "do_center_crop", "crop_size")})
        how: Any = {"rule": self.grey, "equalize": self.equalize, "frame": rule.frame}
        squares = [to_square(image, rule.image_size, **how)[0] for image in given]
        mean, std = np.float32(self.image_mean[0]), np.float32(self.image_std[0])
        values = [((square.astype(np.float32) / 255 - mean) / std)[None] for square in squares]
        return BatchFeature({"pixel_values": values}, tensor_type=return_tensors)

    preprocess = __call__  # type: ignore[assignment]


def register() -> None:
    """Lets `AutoImageProcessor` find the processor of model folders."""
    both: dict[str, type] = {"pil": AFLocImageProcessor, "torchvision": AFLocImageProcessor}
    AutoImageProcessor.register(AFLocConfig, image_processor_classes=both, exist_ok=True)
