"""Bootstrap intervals, the jackknife, and metrics of weighted samples."""
