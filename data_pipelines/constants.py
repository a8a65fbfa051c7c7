"""Constants of the published release for images and prompts, shared by all packages."""

IMAGE_SIZE = 224  # side of the padded square, pixels
CLASS_PROMPT = "Findings suggesting {finding}."  # the prompt of a class that has no phrase of its own
