"""The localisation scores as one would write them on paper: plain loops over pixels, no shared code."""

import math


def scores(mask, heatmap, thresholds, margin):
    """IoU and Dice per threshold (None: nothing predicted and nothing true), CNR, pointing; mask > 0 is inside."""
    size = len(mask)
    cells = [(r, c) for r in range(margin, size - margin) for c in range(margin, size - margin)]
    values = {cell: float(heatmap[cell[0]][cell[1]]) for cell in cells}
    truth = {cell for cell in cells if mask[cell[0]][cell[1]] > 0}
    low, high = min(values.values()), max(values.values())
    scaled = {cell: 2 * (v - low) / (high - low) - 1 if high > low else -1.0 for cell, v in values.items()}
    iou, dice = [], []
    for threshold in thresholds:
        predicted = {cell for cell in cells if scaled[cell] > threshold}
        both, either = len(predicted & truth), len(predicted | truth)
        iou.append(both / either if either else None)
        dice.append(2 * both / (len(predicted) + len(truth)) if either else None)
    inside = [scaled[cell] for cell in cells if cell in truth]
    outside = [scaled[cell] for cell in cells if cell not in truth]
    cnr = pointing = None
    if inside and outside:
        noise = math.sqrt(_variance(inside) + _variance(outside))
        cnr = (_mean(inside) - _mean(outside)) / noise if noise > 1e-12 else 0.0
    if inside:
        peaks = [cell for cell in cells if values[cell] == high]
        pointing = sum(cell in truth for cell in peaks) / len(peaks)
    return iou, dice, cnr, pointing


def _mean(values):
    return sum(values) / len(values)


def _variance(values):
    return _mean([(value - _mean(values)) ** 2 for value in values]) if min(values) < max(values) else 0.0
