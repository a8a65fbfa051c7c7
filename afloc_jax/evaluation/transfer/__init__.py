"""Transfer: what a small head learns on a model's frozen features from a share of the labels."""
