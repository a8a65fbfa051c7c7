"""Robustness to wording: the same class asked in several ways."""
