"""CheXlocalize's rules as plain loops over samples and thresholds, no shared code. Samples: (class, mask, map)."""

import numpy as np

MASK_THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def iou(prediction, mask):
    """None where both are empty."""
    union = (prediction | mask).sum()
    return (prediction & mask).sum() / union if union else None


def predicted(heatmap, threshold):
    low, high = heatmap.min(), heatmap.max()
    return (heatmap - low) / (high - low) > threshold if high > low else np.zeros(heatmap.shape, bool)


def confidence(heatmap):
    return np.clip(heatmap, 0, 2).max() / 2


def mean(values):
    values = [value for value in values if value is not None]
    return sum(values) / len(values) if values else None


def operating_point(samples, confidence_thresholds):
    """(mask threshold, confidence threshold) of one class that has a positive: the first of the best."""
    by_mask = [mean(iou(predicted(h, t), m) for _, m, h in samples if m.any()) for t in MASK_THRESHOLDS]
    mask_threshold = MASK_THRESHOLDS[by_mask.index(max(by_mask))]
    by_confidence = [mean(gated_iou(s, mask_threshold, c) for s in samples) for c in confidence_thresholds]
    return mask_threshold, confidence_thresholds[by_confidence.index(max(by_confidence))]


def gated_iou(sample, mask_threshold, confidence_threshold):
    _, mask, heatmap = sample
    accepted = confidence(heatmap) >= confidence_threshold
    return iou(predicted(heatmap, mask_threshold) & accepted, mask)
