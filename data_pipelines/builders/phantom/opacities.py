"""Opacities of pneumonia in the varied phantoms: hazy or dense, in one lung or both, as radiologists outline them.

Their regions are coarse and often large: a band along the chest wall, a few patches, a third of the lung, or most.
"""

import numpy as np

from data_pipelines.builders.phantom.change import Change, opaque, pick, pick_side, point_in_lung, turned
from data_pipelines.builders.phantom.chest import LEFT, RIGHT, Chest
from data_pipelines.builders.phantom.drawing import SIZE, blur, smooth_noise, step
from data_pipelines.builders.phantom.parenchyma import consolidation as focal

_SHAPES = {"peripheral": 0.35, "patches": 0.3, "zone": 0.2, "diffuse": 0.15}
_BOTH = 0.55  # share of opacities that lie in both lungs


def ground_glass(chest: Chest, rng: np.random.Generator) -> Change:
    """A ground glass opacity: haze through which vessels are seen, in one lung or both."""
    strength = rng.uniform(0.24, 0.6)
    side, region, height = _regions(chest, rng)
    mottled = 1 + rng.uniform(0.1, 0.4) * smooth_noise(rng, int(rng.integers(14, 60))) + 0.15 * smooth_noise(rng, 80)
    change = opaque(
        chest, "ground glass opacity", region * strength * np.clip(mottled, 0.3, 1.7), kind="" if side else "bilateral",
        side=side, zone=chest.zone(height), level=0.35, outline=region * np.float32(strength),
    )  # fmt: skip
    assert change.opacity is not None
    hidden = np.minimum(change.opacity, 0.9)
    change.cleared = -0.7 * hidden / (1 - hidden)  # vessels are seen through it: `opacity` hides 0.3 of its share only
    return change


def consolidation(chest: Chest, rng: np.random.Generator) -> Change:
    """A consolidation: one focus as in the other phantoms, or dense regions in one lung or both."""
    if rng.random() < 0.45:
        return focal(chest, rng)
    strength = rng.uniform(0.6, 0.95)
    side, region, height = _regions(chest, rng)
    opacity = region * strength * (1 + 0.12 * smooth_noise(rng, 30)) * (1 - 0.4 * np.clip(chest.vessels / 0.2, 0, 1))
    kind = "patchy" if side else "bilateral"
    return opaque(
        chest, "consolidation", opacity, kind=kind, side=side, zone=chest.zone(height), level=0.4,
        outline=region * np.float32(strength),
    )  # fmt: skip


def _regions(chest: Chest, rng: np.random.Generator) -> tuple[int, np.ndarray, float]:
    """A side (0 for both), the region [224, 224] in 0..1, and the mean height of its parts in the chest frame."""
    side = 0 if rng.random() < _BOTH else pick_side(rng)
    shape = pick(rng, _SHAPES)
    parts = [_region(chest, rng, each, shape) for each in ((side,) if side else (RIGHT, LEFT))]
    if not side and rng.random() < 0.3:  # the lungs differ
        parts[1] = _region(chest, rng, LEFT, pick(rng, _SHAPES))
    if not side:
        air = chest.visible_air()
        seen = [int((region * air > 0.45 * air.max()).sum()) for region, _ in parts]
        if min(seen) < max(60, 0.2 * max(seen)):  # one is hidden by the heart or very small: it is left out
            side = (RIGHT, LEFT)[int(np.argmax(seen))]
            parts = [parts[int(np.argmax(seen))]]
    region = np.maximum.reduce([region for region, _ in parts])
    return side, region, float(np.mean([height for _, height in parts]))


def _region(chest: Chest, rng: np.random.Generator, side: int, shape: str) -> tuple[np.ndarray, float]:
    ragged = rng.uniform(0.1, 0.3) * smooth_noise(rng, int(rng.integers(8, 24)))
    bottom = chest.angle[side] if shape in ("peripheral", "diffuse") else chest.dome[side]
    length = bottom - chest.apex
    if shape == "patches":
        field = np.full((SIZE, SIZE), -1.0, np.float32)
        heights = []
        for _ in range(int(rng.integers(1, 5))):
            radius = rng.uniform(7, 22)
            cx, cy = point_in_lung(chest, rng, side, 0.3 * radius)
            u, v = turned(chest, cx, cy, rng.uniform(0, np.pi))
            field = np.maximum(field, 1 - np.hypot(u, v / rng.uniform(0.5, 1.0)) / radius)
            heights.append(cy)
        inside = field + ragged
        height = float(np.mean(heights))
    else:
        share = {"peripheral": rng.uniform(0.3, 0.9), "zone": rng.uniform(0.3, 0.5), "diffuse": rng.uniform(0.7, 1.1)}
        half = 0.5 * share[shape] * length
        height = float(bottom - half - rng.beta(1.0, 2.0) * max(length - 2 * half, 0))  # more often low than high
        inside = (half - np.abs(chest.grid_y - height + rng.uniform(-0.5, 0.5) * np.abs(chest.grid_x))) / 14
        if shape == "peripheral":
            depth = rng.uniform(0.25, 0.65) * chest.half_width
            inside = np.minimum(inside, (depth - (chest.wall(chest.grid_y) - np.abs(chest.grid_x))) / 12)
        inside = np.minimum(inside, 1.5) + 2 * ragged
    return blur((step(inside * rng.uniform(3, 8)) * chest.lung[side]).astype(np.float32), 1.5), height
