"""Constants of the published release for images and prompts, shared by all packages."""

from typing import Literal

IMAGE_SIZE = 224  # side of the padded square, pixels
CLASS_PROMPT = "Findings suggesting {finding}."  # the prompt of a class that has no phrase of its own
Framing = Literal["pad", "crop"]  # how an image fills the square: all of it, padded with zeros, or its middle
# How files become grey: Pillow's luma, with deep pixels scaled from their own range; or as cv2.imread(path, 0).
GreyRule = Literal["luma", "cv2"]
# Histogram equalisation: of pixels that are not 0, an option of the release; or OpenCV's, as in MIMIC-CXR-JPG.
Equalization = Literal["none", "release", "cv2"]
Pixels = Literal["square", "original"]  # those that scores compare: of the padded square, of the original image
