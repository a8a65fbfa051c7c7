"""What a prepared data set holds, and whether its splits are clean: numbers and a page."""

from data_pipelines.overview.page import write_overview

__all__ = ["write_overview"]
