"""Constants of the published release for images and prompts, shared by all packages."""

from typing import Literal

IMAGE_SIZE = 224  # side of the padded square, pixels
CLASS_PROMPT = "Findings suggesting {finding}."  # the prompt of a class that has no phrase of its own
Framing = Literal["pad", "crop"]  # how an image fills the square: all of it, padded with zeros, or its middle
Pixels = Literal["square", "original"]  # those that scores compare: of the padded square, of the original image
