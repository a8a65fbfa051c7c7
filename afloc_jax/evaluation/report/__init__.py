"""The report of a run: one self-contained HTML page."""

from afloc_jax.evaluation.report.page import write_report

__all__ = ["write_report"]
