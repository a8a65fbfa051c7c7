"""Findings of the lung tissue."""

import numpy as np

from data_pipelines.builders.phantom.change import Change, opaque, pick, pick_side, pick_size, point_in_lung, turned
from data_pipelines.builders.phantom.chest import LEFT, MM_PER_UNIT, RIGHT, Chest
from data_pipelines.builders.phantom.drawing import blur, smooth_noise, step


def consolidation(chest: Chest, rng: np.random.Generator) -> Change:
    """A consolidation: an irregular opacity, one that ends at a fissure, or one behind the heart."""
    side = pick_side(rng)
    kind = pick(rng, {"patchy": 0.55, "lobar": 0.3, "retrocardiac": 0.15 if side == LEFT else 0})
    if kind == "retrocardiac":
        size, radius = "", rng.uniform(14, 20)
        cx, cy = rng.uniform(0.22, 0.36) * chest.half_width, chest.dome[LEFT] - rng.uniform(14, 30)
    else:
        size, radius = pick_size(rng, {"small": (0.4, 12, 16), "moderate": (0.4, 17, 23), "large": (0.2, 24, 31)})
        cx, cy = point_in_lung(chest, rng, side, 0.45 * radius)
    u, v = turned(chest, cx, cy, rng.uniform(0, np.pi))
    ragged = 0.16 * smooth_noise(rng, 12) + 0.1 * smooth_noise(rng, 26)
    opacity = step((1 - np.hypot(u, v / rng.uniform(0.62, 1.0)) / radius + ragged) * 5.0)
    zone = "retrocardiac" if kind == "retrocardiac" else chest.zone(cy)
    if kind == "lobar":  # ends sharply at a fissure, below it or above it
        down = zone == "upper" or (zone == "mid" and rng.random() < 0.5)
        edge = cy + (0.35 if down else -0.35) * radius
        edge = edge + 0.12 * rng.choice([-1, 1]) * (np.abs(chest.grid_x) - abs(cx))
        opacity = opacity * step((edge - chest.grid_y if down else chest.grid_y - edge) / 0.9)
    opacity = opacity * rng.uniform(0.72, 0.95) * (1 + 0.08 * smooth_noise(rng, 30)) * chest.lung[side]
    opacity = opacity * (1 - 0.45 * np.clip(chest.vessels / 0.2, 0, 1))  # air bronchograms run beside the vessels
    outline = blur(opacity, 2.0)
    return opaque(
        chest, "consolidation", opacity, kind=kind, side=side, zone=zone, size=size, level=0.4, outline=outline
    )


def nodule(chest: Chest, rng: np.random.Generator) -> Change:
    """A nodule: smooth, spiculated or calcified."""
    side = pick_side(rng)
    size, radius = pick_size(rng, {"small": (0.35, 4, 5.6), "": (0.4, 5.6, 8), "large": (0.25, 8, 11)})
    cx, cy = point_in_lung(chest, rng, side, radius + 2)
    kind = pick(rng, {"smooth": 0.6, "spiculated": 0.25, "calcified": 0.15})
    u, v = turned(chest, cx, cy, rng.uniform(0, np.pi))
    r = np.hypot(u, v / rng.uniform(0.85, 1.0)) / radius
    if kind == "spiculated":
        around = np.arctan2(v, u)
        spikes = np.sin(around * rng.integers(9, 14) + rng.uniform(0, 6)) * np.sin(around * 3 + rng.uniform(0, 6))
        r = r * (1 + 0.13 * spikes + 0.06 * smooth_noise(rng, 60))
    ball = np.clip(1.08 - r**2, 0, 1) ** 0.375
    opacity = blur(ball.astype(np.float32), 0.7) * chest.lung[side] * rng.uniform(0.62, 0.85)
    change = opaque(chest, "nodule", opacity, kind=kind, side=side, zone=chest.zone(cy), size=size)
    if kind == "calcified":
        change.added = np.float32(0.2) * opacity
    change.millimetres = 2 * round(radius * MM_PER_UNIT)
    return change


def atelectasis(chest: Chest, rng: np.random.Generator) -> Change:
    """A band atelectasis: a thin band at any place and angle."""
    side = pick_side(rng)
    length, thick = rng.uniform(26, 62), rng.uniform(3.0, 7.0)
    cx, cy = point_in_lung(chest, rng, side, 7.0)
    kind = pick(rng, {"horizontal": 0.42, "oblique": 0.46, "steep": 0.12})
    if kind == "horizontal":
        angle = rng.normal(0, 0.1)
    elif kind == "oblique":
        angle = rng.uniform(0.3, 0.9) * rng.choice([-1, 1])
    else:
        angle = rng.uniform(0.95, 1.3) * rng.choice([-1, 1])
    u, v = turned(chest, cx, cy, angle)
    v = v - rng.uniform(-0.006, 0.006) * u**2 / (length / 40)
    width = (thick / 2) * (1 + 0.25 * np.sin(u / rng.uniform(6, 12) + rng.uniform(0, 6)))
    band = step((width - np.abs(v)) * 2.2) * step((length / 2 - np.abs(u)) / 2.0)
    opacity = band * chest.lung[side] * rng.uniform(0.5, 0.75)
    size = "short" if length < 36 else "long" if length > 52 else ""
    return opaque(chest, "atelectasis", opacity, kind=kind, side=side, zone=chest.zone(cy), size=size, level=0.4)


def edema(chest: Chest, rng: np.random.Generator) -> Change:
    """Interstitial edema: a haze with a fine net of thickened septa."""
    kind = pick(rng, {"perihilar": 0.36, "basal": 0.2, "upper": 0.16, "unilateral": 0.28})
    size, strength = pick_size(
        rng, {"mild": (0.35, 0.44, 0.5), "moderate": (0.4, 0.51, 0.59), "severe": (0.25, 0.6, 0.7)}
    )
    height = chest.dome[RIGHT] - chest.apex
    center = {"perihilar": 0.5, "basal": 0.92, "upper": 0.22, "unilateral": rng.uniform(0.25, 0.85)}[kind]
    across = {"perihilar": 0.36, "basal": 0.5, "upper": 0.42, "unilateral": rng.uniform(0.35, 0.65)}[kind]
    cx, cy = across * chest.half_width, chest.apex + (center + rng.normal(0, 0.03)) * height
    rx, ry = rng.uniform(0.26, 0.34) * chest.half_width, rng.uniform(0.2, 0.27) * height
    away = np.hypot((np.abs(chest.grid_x) - cx) / rx, (chest.grid_y - cy) / ry)
    haze = step((1 - away + 0.13 * smooth_noise(rng, 9)) * 3.5)
    side = pick_side(rng) if kind == "unilateral" else 0
    haze = haze * np.float32(strength) * (chest.lung[side] if side else chest.lung[RIGHT] + chest.lung[LEFT])
    net = 0.5 * np.abs(smooth_noise(rng, 70)) + 0.4 * np.abs(smooth_noise(rng, 100)) + 0.3 * smooth_noise(rng, 26)
    zone = chest.zone(cy) if side else kind
    opacity = np.clip(haze * (1.2 - 0.38 * net), 0, 0.95)
    return opaque(chest, "edema", opacity, kind=kind, side=side, zone=zone, size=size, level=0.45, outline=haze)
