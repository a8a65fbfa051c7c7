"""Robustness to wording: the scores of a class with several prompts."""
