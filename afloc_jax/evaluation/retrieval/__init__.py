"""Retrieval: images for a report and reports for an image."""
