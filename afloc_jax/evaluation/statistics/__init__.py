"""Bootstrap intervals, the jackknife, and metrics of weighted samples."""

from typing import Literal

IntervalKind = Literal["auto", "percentile", "bca"]
"""The kind of interval. "auto" is BCa for an AUC, and percentiles for all else."""

Unit = Literal["auto", "sample", "patient", "image"]
"""The unit of resampling: single samples, or all samples of a patient or of an image together.

"auto" is the patient where samples share one, else the image where samples share one, else the sample.
"""
