"""The kit of the page: charts, numbers, templates."""
