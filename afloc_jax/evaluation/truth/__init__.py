"""Files that come in: where findings are, heat maps of any system, images."""
