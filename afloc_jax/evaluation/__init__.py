"""Evaluation: a package per task (localization, classification, retrieval, robustness), and shared code."""
