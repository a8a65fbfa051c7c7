"""Input files: truth files, heat maps of any system, images."""
