"""AFLoc: annotation-free pathology localisation in JAX."""

__version__ = "0.1.0"
