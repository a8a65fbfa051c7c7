"""Zero-shot classification: probabilities of classes, metrics with intervals."""
