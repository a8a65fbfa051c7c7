"""Procedural chest radiographs with reports and exact masks, drawn from a seed without any download."""

from data_pipelines.builders.phantom.generate import CATEGORIES, SPLITS, DrawnFinding, Phantom, generate

__all__ = ["CATEGORIES", "SPLITS", "DrawnFinding", "Phantom", "generate"]
