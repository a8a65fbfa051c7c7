"""Localisation: heat maps scored against masks and boxes by a protocol, and compared with baselines."""
