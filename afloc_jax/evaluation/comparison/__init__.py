"""Comparison of two results on the same samples: paired differences, tests, corrections."""
