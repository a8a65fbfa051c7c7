"""Evaluation: a room per task (localization, classification, retrieval, robustness), and what they share."""
