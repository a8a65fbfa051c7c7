"""Robustness to wording: the spread of the scores of a class over several prompts."""
