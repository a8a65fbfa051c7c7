"""Procedural chest radiographs with reports and exact masks: made from a seed, nothing to download."""

from data_pipelines.builders.phantom.generate import CATEGORIES, SPLITS, DrawnFinding, Phantom, generate

__all__ = ["CATEGORIES", "SPLITS", "DrawnFinding", "Phantom", "generate"]
