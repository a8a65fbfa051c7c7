"""Shared parts of the report page: charts, numbers, templates."""
