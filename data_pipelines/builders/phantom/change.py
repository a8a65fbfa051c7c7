"""Findings as changes of layers. The mask of a finding is where its change is visible.

Disease of the lung replaces air (`opacity`): it is bright, hides vessels and keeps to the outline of the lung. A
pneumothorax takes vessels away (`cleared`) and darkens. Devices add metal. A large heart replaces the heart.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from data_pipelines.builders.phantom.chest import LEFT, LUNG_CONTRAST, RIGHT, Chest

SIDE_WORD = {RIGHT: "right", LEFT: "left", 0: "bilateral"}
_LEAST_CHANGE = 0.03  # the smallest change of brightness that counts as visible


@dataclass
class Change:
    """One finding: its change of the layers, its mask, and the facts from which its sentences are made."""

    label: str  # category
    kind: str  # subtype within the category
    side: str  # right, left, bilateral or "": the PATIENT's side
    zone: str  # apical, lateral, basal, upper, mid, lower, perihilar, retrocardiac or ""
    size: str  # small, moderate, large, or mild, moderate, severe, or ""
    mask: np.ndarray  # [224, 224] bool
    contrast: float = 1.0  # mean change of brightness inside the mask
    opacity: np.ndarray | None = None  # share of the air replaced
    added: np.ndarray | None = None  # brightness added
    cleared: np.ndarray | None = None  # share of the vessels removed
    heart: np.ndarray | None = None  # silhouette that replaces the heart
    millimetres: int = 0


def opaque(
    chest: Chest,
    label: str,
    opacity: np.ndarray,
    *,
    kind: str,
    side: int,
    zone: str,
    size: str = "",
    level: float = 0.33,
    outline: np.ndarray | None = None,
) -> Change:
    """A finding that replaces air. Its mask is where its brightness exceeds `level` times its maximum.

    Args:
        opacity: [224, 224], the share of air that is replaced.
        outline: a smoother opacity for the mask, if the texture of `opacity` would leave holes in it.
    """
    opacity = np.clip(opacity, 0, 1).astype(np.float32)
    brighter = LUNG_CONTRAST * chest.visible_air() * (opacity if outline is None else outline)
    mask = _without_specks(brighter > max(level * float(brighter.max()), _LEAST_CHANGE))
    contrast = float(brighter[mask].mean()) if mask.any() else 0.0
    return Change(label, kind, SIDE_WORD[side], zone, size, mask, contrast, opacity=opacity)


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """The mask without parts smaller than a tenth of the largest part."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the background
    return (areas >= 0.1 * areas.max())[parts] & mask


def pick(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    """A random key, with probability proportional to its weight."""
    values = np.array(list(weights.values()), float)
    return list(weights)[int(rng.choice(len(values), p=values / values.sum()))]


def pick_size(rng: np.random.Generator, ranges: Mapping[str, tuple[float, float, float]]) -> tuple[str, float]:
    """A random word for a size, and a value. `ranges` maps words to (weight, smallest value, largest value)."""
    word = pick(rng, {word: weight for word, (weight, _, _) in ranges.items()})
    return word, float(rng.uniform(*ranges[word][1:]))


def pick_side(rng: np.random.Generator) -> int:
    return RIGHT if rng.random() < 0.5 else LEFT


def point_in_lung(chest: Chest, rng: np.random.Generator, side: int, margin: float) -> tuple[float, float]:
    """A random point (x, y) of the visible lung in the chest frame, at least `margin` units from its edges."""
    t = rng.uniform(0.06, 1.02)
    y = chest.apex + t * (chest.dome[side] - chest.apex)
    outer = float(chest.wall(y)) - margin
    inner = max(0.27 - 0.1 * t, 0.14) * chest.half_width + margin
    x = float(rng.uniform(inner, max(outer, inner + 1)))
    return side * x, min(y, float(chest.diaphragm(side, np.array(x))) - margin)


def turned(chest: Chest, x: float, y: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of every pixel relative to (x, y), along and across the direction `angle`."""
    u, v = chest.grid_x - np.float32(x), chest.grid_y - np.float32(y)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return u * cosine + v * sine, v * cosine - u * sine
