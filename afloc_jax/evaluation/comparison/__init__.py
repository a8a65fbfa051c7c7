"""Two results on the same samples: paired differences, tests, corrections."""
