"""Presence: how well the calibrated probability of a prompt agrees with what images show, and the fit behind it."""
