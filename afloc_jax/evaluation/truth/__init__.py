"""Input files: places of findings, heat maps of any system, images."""
