"""Localisation: heat maps against masks and boxes, by protocol, beside baselines."""
