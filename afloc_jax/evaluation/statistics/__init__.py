"""Bootstrap intervals, the jackknife, and metrics of weighted samples."""

from typing import Literal

IntervalKind = Literal["percentile", "bca"]
Unit = Literal["sample", "patient"]  # the unit of resampling: samples, or patients with all their samples
