"""Exports of a model folder: `write.export_model` writes one, whole or not at all; `formats` lists what there is.

Every export holds export.json (what it is and which weights it came from) and check/: inputs, our outputs, and
check.py, which prints the largest difference between those and what the export gives where it is run.
"""
