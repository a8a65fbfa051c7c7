"""Counterfactuals: what a model answers to prompts that are not true of the image, or on another image."""
