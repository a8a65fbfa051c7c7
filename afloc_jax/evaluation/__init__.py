"""Evaluation: scores of heat maps with intervals, baselines on the same samples, and the files that hold them."""

from afloc_jax.evaluation.baselines import leave_one_out_prior, location_prior, prior_heatmaps
from afloc_jax.evaluation.localization import ProtocolOptions, Scores, score
from afloc_jax.evaluation.results import write_results
from afloc_jax.evaluation.scoring import score_files
from afloc_jax.evaluation.summary import add_baselines, paired_difference, summarise
from afloc_jax.evaluation.truth import Truth, read_truth

__all__ = [
    "ProtocolOptions",
    "Scores",
    "Truth",
    "add_baselines",
    "leave_one_out_prior",
    "location_prior",
    "paired_difference",
    "prior_heatmaps",
    "read_truth",
    "score",
    "score_files",
    "summarise",
    "write_results",
]
