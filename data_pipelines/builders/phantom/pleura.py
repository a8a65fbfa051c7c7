"""Findings of the pleura: fluid and air between lung and chest wall."""

import numpy as np

from data_pipelines.builders.phantom.change import SIDE_WORD, Change, opaque, pick, pick_side, pick_size
from data_pipelines.builders.phantom.chest import LEFT, LUNG_CONTRAST, RIGHT, Chest
from data_pipelines.builders.phantom.drawing import SIZE, blur, depth_inside, fill, step

_EFFUSION = "pleural effusion"
_VISIBLE = 0.25  # share of the maximum above which fluid belongs to the mask, as its edges are sharp


def effusion(chest: Chest, rng: np.random.Generator) -> Change:
    """A pleural effusion: free at the base of one or both lungs, loculated, in a fissure, or under the lung."""
    kind = pick(rng, {"free": 0.54, "bilateral": 0.08, "loculated": 0.19, "fissural": 0.09, "subpulmonic": 0.1})
    if kind == "loculated":
        return _loculated(chest, rng)
    if kind == "fissural":
        return _fissural(chest, rng)
    if kind == "subpulmonic":
        return _subpulmonic(chest, rng)
    size, height = pick_size(rng, {"small": (0.45, 18, 27), "moderate": (0.35, 36, 56), "large": (0.2, 66, 100)})
    side = 0 if kind == "bilateral" else pick_side(rng)
    opacity = np.zeros((SIZE, SIZE), np.float32)
    for each in (side,) if side else (RIGHT, LEFT):
        level = chest.angle[each] - height * rng.uniform(0.9, 1.1)
        off_wall = np.maximum(chest.wall(chest.grid_y) - np.abs(chest.grid_x), 0)
        meniscus = rng.uniform(10, 18) * np.exp(-off_wall / rng.uniform(7, 12))  # fluid climbs at the wall
        opacity += chest.lung[each] * step((chest.grid_y - level - 9 + meniscus) / 1.6) * rng.uniform(0.88, 0.98)
    return opaque(chest, _EFFUSION, opacity, kind=kind, side=side, zone="basal", size=size, level=_VISIBLE)


def _loculated(chest: Chest, rng: np.random.Generator) -> Change:
    """A lens of loculated fluid on the lateral wall."""
    side = pick_side(rng)
    size, half = pick_size(rng, {"small": (0.4, 15, 19), "moderate": (0.37, 20, 28), "large": (0.23, 29, 38)})
    center = chest.apex + rng.uniform(0.25, 0.85) * (chest.dome[side] - chest.apex)
    depth = half * rng.uniform(0.48, 0.64) * np.sqrt(np.clip(1 - ((chest.grid_y - center) / half) ** 2, 0, 1))
    lens = step((depth - (chest.wall(chest.grid_y) - np.abs(chest.grid_x))) / 1.2)
    opacity = 0.92 * blur(chest.lung[side] * lens * (np.abs(chest.grid_y - center) < half), 1.0)
    zone = chest.zone(center)
    return opaque(chest, _EFFUSION, opacity, kind="loculated", side=side, zone=zone, size=size, level=_VISIBLE)


def _fissural(chest: Chest, rng: np.random.Generator) -> Change:
    """A spindle of fluid in the minor fissure, which only the right lung has."""
    size, length = pick_size(rng, {"small": (0.4, 11, 14), "moderate": (0.37, 15, 19), "large": (0.23, 20, 25)})
    cx, cy = -rng.uniform(0.45, 0.68) * chest.half_width, rng.uniform(-12, 6)
    tilt, thickness = rng.normal(0.05, 0.12), length * rng.uniform(0.36, 0.5)
    u, v = chest.grid_x - cx, chest.grid_y - cy
    r = np.hypot((u - tilt * v) / length, (v + tilt * u) / thickness)
    opacity = blur((0.85 * np.sqrt(np.clip(1.15 - r, 0, 1)) * chest.lung[RIGHT]).astype(np.float32), 0.8)
    return opaque(chest, _EFFUSION, opacity, kind="fissural", side=RIGHT, zone="mid", size=size)


def _subpulmonic(chest: Chest, rng: np.random.Generator) -> Change:
    """Fluid between lung and diaphragm: the diaphragm appears high, with its top further out."""
    side = pick_side(rng)
    size, rise = pick_size(rng, {"small": (0.4, 10, 13), "moderate": (0.37, 14, 19), "large": (0.23, 20, 27)})
    x = np.abs(chest.grid_x)
    summit = np.exp(-((x / chest.half_width - 0.68) ** 2) / 0.06)
    surface = chest.diaphragm(side, x) - rise * (0.35 + 0.65 * summit)
    opacity = 0.95 * chest.lung[side] * step(chest.grid_y - surface)
    return opaque(chest, _EFFUSION, opacity, kind="subpulmonic", side=side, zone="basal", size=size, level=_VISIBLE)


def pneumothorax(chest: Chest, rng: np.random.Generator) -> Change:
    """A pneumothorax: dark air without vessels, outside the thin line of the visceral pleura."""
    side = pick_side(rng)
    kind = pick(rng, {"apical": 0.42, "lateral": 0.26, "basal": 0.2, "complete": 0.12})
    sizes = {"small": (0.6, 8, 11), "moderate": (0.4, 13, 19)} if kind != "complete" else {"large": (1, 26, 36)}
    size, wide = pick_size(rng, sizes)
    depth = _distance_from_wall(chest, side)
    gap = _gap(chest, rng, kind, size, wide)
    gap = np.where(gap < 1.5, -6, gap + 0.8 * np.sin(chest.grid_y / rng.uniform(9, 14)))
    free = blur(step((gap - depth) * 1.6), 0.6) * chest.lung[side]
    line = np.exp(-(((depth - gap - 0.6) / 0.9) ** 2)) * chest.lung[side] * (gap > 2.5) * (1 - chest.mediastinum)
    darker = free * (rng.uniform(0.07, 0.11) + 0.5 * LUNG_CONTRAST * np.clip(0.8 - chest.air, 0, 1))
    added = (rng.uniform(0.14, 0.19) * line - darker).astype(np.float32)
    zone = "" if kind == "complete" else kind
    mask = (free > 0.5) | (line > 0.5)
    return Change("pneumothorax", kind, SIDE_WORD[side], zone, size, mask, added=added, cleared=free)


def _distance_from_wall(chest: Chest, side: int) -> np.ndarray:
    """The distance from the chest wall (apex and flank only) in units of the chest frame."""
    y = np.linspace(chest.apex, chest.angle[side], 20)
    wall = np.stack([chest.wall(y), y], axis=1)
    before = [[-60, chest.apex + 6], [0.12 * chest.half_width, chest.apex]]
    after = [[0.9 * chest.half_width, 160], [-60, 160]]
    space = np.concatenate([before, wall, after]) * (side, 1)
    return depth_inside(fill(chest.to_pixels(space))) / np.float32(chest.scale)


def _gap(chest: Chest, rng: np.random.Generator, kind: str, size: str, wide: float) -> np.ndarray:
    """The distance between wall and lung at the height of every pixel."""
    t = np.clip(chest.lung_height(chest.grid_y), 0, 1.25)
    if kind == "apical":
        reach = rng.uniform(0.3, 0.45) if size == "small" else rng.uniform(0.5, 0.7)
        return (wide + 7) * np.sqrt(np.clip(1 - (t / reach) ** 2, 0, 1))
    if kind == "lateral":
        middle, half = rng.uniform(0.45, 0.7), rng.uniform(0.25, 0.38)
        return 1.05 * wide * np.clip(1 - ((t - middle) / half) ** 2, 0, 1) ** 0.7
    if kind == "basal":
        return 1.15 * wide * np.clip((t - rng.uniform(0.5, 0.7)) / 0.45, 0, 1) ** 0.7
    return wide * (0.85 + 0.3 * np.sin(3.0 * t + rng.uniform(0, 3)))
