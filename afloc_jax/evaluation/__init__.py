"""Evaluation: a package per task (localization, classification, retrieval, robustness, counterfactual), shared code."""
