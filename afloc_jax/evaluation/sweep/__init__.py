"""The results of a sweep: its table, sweep.csv, and its page, sweep.html."""
