"""What the published release fixes of images and prompts, for all rooms."""

IMAGE_SIZE = 224  # side of the padded square, pixels
CLASS_PROMPT = "Findings suggesting {finding}."  # the prompt of a class that has no phrase of its own
