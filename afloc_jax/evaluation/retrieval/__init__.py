"""Retrieval of images for a report and of reports for an image."""
