"""The overview of a prepared data set: numbers on its contents and on leaks between splits, and a page."""

from data_pipelines.overview.page import write_overview

__all__ = ["write_overview"]
