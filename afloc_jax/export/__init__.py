"""Exports of a model folder. `write.export_model` writes one, complete or not at all; `formats` lists the formats.

Every export holds export.json (its format and the hash of its weights) and check/: inputs, our outputs for them, and
check.py, which runs the export and prints the largest difference from our outputs.
"""
