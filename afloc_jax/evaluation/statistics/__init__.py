"""Bootstrap intervals, the jackknife, and metrics of weighted samples."""

from typing import Literal

IntervalKind = Literal["percentile", "bca"]
Unit = Literal["sample", "patient"]  # what a resample draws: samples, or patients with all their samples
