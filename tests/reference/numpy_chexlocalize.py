"""CheXlocalize's rules as plain loops over samples and thresholds, no shared code. Samples: (class, mask, map)."""

from fractions import Fraction

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


# The official procedure, in original pixels. truth, maps: {image: {class: array}}, either of which may lack entries.


def in_original_pixels(square, height, width):
    """The map of the padded square without its padding, bilinear with half-pixel centres."""
    side = len(square)
    inner = [side if n == max(height, width) else int(n * side / max(height, width)) for n in (height, width)]
    top, left = ((side - n) // 2 for n in inner)
    part = square[top : top + inner[0], left : left + inner[1]].astype(np.float64)
    rows, columns = (linear(old, new) for old, new in zip(inner, (height, width), strict=True))
    return (rows @ part @ columns.T).astype(np.float32)


def linear(old, new):
    """The weights [new, old] of linear interpolation; beyond the outer centres the outer value holds."""
    weights = np.zeros((new, old))
    for k in range(new):
        place = min(max((k + 0.5) * old / new - 0.5, 0), old - 1)
        low = int(place)
        weights[k, low] += 1 - (place - low)
        weights[k, min(low + 1, old - 1)] += place - low
    return weights


def scaled_to_one(heatmap):
    heatmap = heatmap.astype(np.float32) - heatmap.astype(np.float32).min()
    return heatmap / heatmap.max() if heatmap.max() > 0 else heatmap


def otsu(levels):
    """The first level with the largest variance between the pixels up to it and those above, by whole numbers."""
    counts = [int(n) for n in np.bincount(levels.ravel(), minlength=256)]
    pixels, total = sum(counts), sum(level * n for level, n in enumerate(counts))
    best, best_variance, below, sum_below = 0, Fraction(0), 0, 0
    for level, n in enumerate(counts):
        below, sum_below = below + n, sum_below + level * n
        if 0 < below < pixels:
            variance = Fraction((pixels * sum_below - below * total) ** 2, below * (pixels - below))
            if variance > best_variance:
                best, best_variance = level, variance
    return best


def otsu_mask(heatmap):
    levels = (np.float32(255) * scaled_to_one(heatmap)).astype(np.uint8)
    return levels > otsu(levels)


def official_mask(heatmap, threshold):
    return scaled_to_one(heatmap) > np.float32(threshold)


def true_positive_iou(prediction, mask):
    return iou(prediction, mask) if prediction.any() and mask.any() else None


def first_best(values):
    values = [-1 if value is None else value for value in values]
    return values.index(max(values))


def official_point(name, truth, maps):
    """The thresholds of one class: masks by true positives, confidences by Otsu's masks of all images with a map."""
    pairs = [(truth.get(image, {}).get(name), of_image[name]) for image, of_image in maps.items() if name in of_image]
    pairs = [(np.zeros(m.shape, bool) if mask is None else mask, m) for mask, m in pairs]
    masks, cuts = [k / 10 for k in range(2, 9)], [k / 10 for k in range(9)]
    by_mask = [mean(true_positive_iou(official_mask(m, t), mask) for mask, m in pairs) for t in masks]
    by_cut = [mean(iou(otsu_mask(m) & (confidence(m) > c), mask) for mask, m in pairs) for c in cuts]
    return masks[first_best(by_mask)], cuts[first_best(None if value is None else round(value, 3) for value in by_cut)]


def official_scores(name, truth, maps, point):
    """The mean IoU over all images of either table, over true positives, and the hit rate of one class."""
    ious, of_true_positives, hits = [], [], []
    for image in sorted({*truth, *maps}):
        heatmap, mask = maps.get(image, {}).get(name), truth.get(image, {}).get(name)
        shape = np.shape(heatmap if mask is None else mask)
        mask = np.zeros(shape, bool) if mask is None else mask
        found = np.zeros(shape, bool)
        if heatmap is not None and confidence(heatmap) >= point[1]:
            found = official_mask(heatmap, point[0])
        ious.append(iou(found, mask))
        of_true_positives.append(true_positive_iou(found, mask))
        if mask.any() and heatmap is not None:
            hits.append(mask.flat[heatmap.argmax()])
    return mean(ious), mean(of_true_positives), mean(hits)
