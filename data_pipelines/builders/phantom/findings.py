"""What can be wrong with a chest: each kind of finding is a random change of the layers, and its mask is that change.

Lung disease replaces air (`opacity`), so it is bright, hides vessels and respects the lung's outline; a pneumothorax
takes vessels away (`clear`) and darkens; devices add metal. A mask holds the pixels that a finding changes visibly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from data_pipelines.builders.phantom.anatomy import (
    LEFT,
    LUNG_CONTRAST,
    MM_PER_UNIT,
    RIGHT,
    SIZE,
    Chest,
    blur,
    curve,
    fill,
    heart_silhouette,
    smooth_noise,
    soft,
    step,
)

SIDE_WORD = {RIGHT: "right", LEFT: "left", 0: "bilateral"}
HIDDEN_BY_HEART = 0.72  # share of the air's contrast that heart and mediastinum in front of it leave out


@dataclass
class Change:
    """One finding: what it does to the layers, where, and the words that describe it."""

    label: str  # category
    kind: str  # subtype within the category
    side: str  # right, left, bilateral or "" (patient's side)
    zone: str  # apical, upper, mid, lower, basal, perihilar, retrocardiac, ... or ""
    size: str  # small, moderate, large (or mild, severe) or ""
    mask: np.ndarray  # [224, 224] bool
    opacity: np.ndarray | None = None  # share of the air replaced
    added: np.ndarray | None = None  # brightness added
    cleared: np.ndarray | None = None  # share of vessels removed
    heart: np.ndarray | None = None  # silhouette that replaces the heart
    millimetres: int = 0
    contrast: float = 1.0  # mean change of brightness inside the mask


def lung_air(chest: Chest, heart: np.ndarray | None = None) -> np.ndarray:
    """Air as far as it shows: heart and mediastinum lie in front of some of it."""
    central = np.maximum(chest.heart if heart is None else heart, chest.mediastinum)
    return chest.air * (1 - HIDDEN_BY_HEART * central)


def _opaque(chest: Chest, opacity: np.ndarray, label: str, kind: str, side: int, zone: str, size: str, level=0.33) -> Change:
    """A finding that replaces air; its mask is where it brightens by a third of its peak."""
    opacity = opacity.astype(np.float32)
    change = LUNG_CONTRAST * lung_air(chest) * opacity
    mask = _visible(change, level)
    contrast = float(change[mask].mean()) if mask.any() else 0.0
    return Change(label, kind, SIDE_WORD[side], zone, size, mask, opacity=opacity, contrast=contrast)


def _visible(change: np.ndarray, level: float) -> np.ndarray:
    return change > max(level * float(change.max()), 0.03)


def _pick(rng: np.random.Generator, options: dict, /):
    keys = list(options)
    weights = np.array([options[key] for key in keys], float)
    return keys[int(rng.choice(len(keys), p=weights / weights.sum()))]


def _side(rng: np.random.Generator) -> int:
    return RIGHT if rng.random() < 0.5 else LEFT


def lung_height(chest: Chest, y):
    """0 at the apex, 1 at the top of the diaphragm."""
    return (y - chest.apex) / (0.5 * (chest.dome[RIGHT] + chest.dome[LEFT]) - chest.apex)


def zone_of(chest: Chest, y: float) -> str:
    t = lung_height(chest, y)
    return "upper" if t < 0.37 else "mid" if t < 0.68 else "lower"


def _point_in_lung(chest: Chest, rng: np.random.Generator, side: int, margin: float, low=0.06, high=1.02) -> tuple[float, float]:
    """A point of the visible lung, `margin` units away from its edges."""
    t = rng.uniform(low, high)
    y = chest.apex + t * (chest.dome[side] - chest.apex)
    outer = float(chest.wall(y)) - margin
    inner = max(0.27 - 0.1 * t, 0.14) * chest.half_width + margin
    x = rng.uniform(inner, max(outer, inner + 1))
    return side * x, min(y, float(chest.diaphragm(side, np.array(x))) - margin)


def effusion(chest: Chest, rng: np.random.Generator) -> Change:
    kind = _pick(rng, {"free": 0.58, "bilateral": 0.08, "loculated": 0.16, "fissural": 0.09, "subpulmonic": 0.09})
    x, y = np.abs(chest.grid_x), chest.grid_y
    size = _pick(rng, {"small": 0.45, "moderate": 0.35, "large": 0.2})
    if kind in ("free", "bilateral"):
        sides = (RIGHT, LEFT) if kind == "bilateral" else (_side(rng),)
        opacity = np.zeros((SIZE, SIZE), np.float32)
        for side in sides:
            height = {"small": rng.uniform(17, 26), "moderate": rng.uniform(36, 56), "large": rng.uniform(66, 100)}[size]
            level = chest.angle[side] - height
            wall = chest.wall(y)
            meniscus = rng.uniform(10, 18) * np.exp(-np.maximum(wall - x, 0) / rng.uniform(7, 12))
            opacity += chest.lung[side] * step((y - level - 9 + meniscus) / 1.6) * rng.uniform(0.88, 0.98)
        side = 0 if kind == "bilateral" else sides[0]
        return _opaque(chest, opacity, "pleural effusion", kind, side, "basal", size, 0.25)
    if kind == "loculated":
        side = _side(rng)
        t = rng.uniform(0.25, 0.85)
        center = chest.apex + t * (chest.dome[side] - chest.apex)
        half = {"small": rng.uniform(14, 19), "moderate": rng.uniform(20, 28), "large": rng.uniform(29, 38)}[size]
        depth = half * rng.uniform(0.45, 0.62)
        inner = depth * np.sqrt(np.clip(1 - ((y - center) / half) ** 2, 0, 1))
        opacity = chest.lung[side] * step((inner - (chest.wall(y) - x)) / 1.2) * (np.abs(y - center) < half)
        return _opaque(chest, 0.92 * blur(opacity, 1.0), "pleural effusion", kind, side, zone_of(chest, center), size, 0.25)
    if kind == "fissural":
        cx, cy = rng.uniform(0.45, 0.68) * chest.half_width, rng.uniform(-12, 6)
        rx = {"small": rng.uniform(11, 14), "moderate": rng.uniform(15, 19), "large": rng.uniform(20, 25)}[size]
        ry, tilt = rx * rng.uniform(0.36, 0.5), rng.normal(0.05, 0.12)
        u, v = x - cx + tilt * (y - cy), y - cy - tilt * (x - cx)
        r = np.sqrt((u / rx) ** 2 + (v / ry) ** 2)
        opacity = 0.85 * np.sqrt(np.clip(1.15 - r, 0, 1)) * chest.lung[RIGHT]
        return _opaque(chest, blur(opacity, 0.8), "pleural effusion", kind, RIGHT, "mid", size)
    side = _side(rng)
    rise = {"small": rng.uniform(9, 12), "moderate": rng.uniform(13, 18), "large": rng.uniform(19, 26)}[size]
    lateral = np.exp(-(((x / chest.half_width) - 0.68) ** 2) / 0.06)
    floor = chest.diaphragm(side, x) - rise * (0.35 + 0.65 * lateral)
    return _opaque(chest, 0.95 * chest.lung[side] * step((y - floor) / 1.0), "pleural effusion", kind, side, "basal", size, 0.25)


def pneumothorax(chest: Chest, rng: np.random.Generator) -> Change:
    side = _side(rng)
    kind = _pick(rng, {"apical": 0.42, "lateral": 0.26, "basal": 0.2, "complete": 0.12})
    size = {"complete": "large"}.get(kind) or _pick(rng, {"small": 0.6, "moderate": 0.4})
    bottom = chest.angle[side]
    y = np.linspace(chest.apex, bottom, 20)
    wall = np.stack([chest.wall(y), y], axis=1)
    space = np.concatenate([[[-60, chest.apex + 6], [0.12 * chest.half_width, chest.apex]], wall, [[0.9 * chest.half_width, 160], [-60, 160]]])
    inside = fill(chest.to_pixels(space * (side, 1)), factor=1)
    depth = cv2.distanceTransform((inside > 127).astype(np.uint8), cv2.DIST_L2, 5) / chest.scale
    t = np.clip(lung_height(chest, chest.grid_y), 0, 1.25)
    wide = {"small": rng.uniform(8, 11), "moderate": rng.uniform(13, 19), "large": rng.uniform(26, 36)}[size]
    if kind == "apical":
        reach = rng.uniform(0.3, 0.45) if size == "small" else rng.uniform(0.5, 0.7)
        gap = (wide + 7) * np.sqrt(np.clip(1 - (t / reach) ** 2, 0, 1))
    elif kind == "lateral":
        middle, half = rng.uniform(0.45, 0.7), rng.uniform(0.25, 0.38)
        gap = 1.05 * wide * np.clip(1 - ((t - middle) / half) ** 2, 0, 1) ** 0.7
    elif kind == "basal":
        gap = 1.15 * wide * np.clip((t - rng.uniform(0.5, 0.7)) / 0.45, 0, 1) ** 0.7
    else:
        gap = wide * (0.85 + 0.3 * np.sin(3.0 * t + rng.uniform(0, 3)))
    gap = np.where(gap < 1.5, -6, gap + 0.8 * np.sin(chest.grid_y / rng.uniform(9, 14)))
    free = blur(step((gap - depth) * 1.6).astype(np.float32), 0.6) * chest.lung[side]
    line = np.exp(-(((depth - gap - 0.6) / 0.9) ** 2)) * chest.lung[side] * (gap > 2.5) * (1 - chest.mediastinum)
    darker = free * (rng.uniform(0.07, 0.11) + 0.5 * LUNG_CONTRAST * np.clip(0.8 - chest.air, 0, 1))
    mask = (free > 0.5) | (line > 0.5)
    added = rng.uniform(0.14, 0.19) * line - darker
    zone = {"complete": ""}.get(kind, kind)
    return Change("pneumothorax", kind, SIDE_WORD[side], zone, size, mask, added=added.astype(np.float32), cleared=free)


def consolidation(chest: Chest, rng: np.random.Generator) -> Change:
    side = _side(rng)
    kind = _pick(rng, {"patchy": 0.55, "lobar": 0.3, "retrocardiac": 0.15 if side == LEFT else 0})
    size = _pick(rng, {"small": 0.4, "moderate": 0.4, "large": 0.2})
    radius = {"small": rng.uniform(12, 16), "moderate": rng.uniform(17, 23), "large": rng.uniform(24, 31)}[size]
    if kind == "retrocardiac":
        size, radius = "", rng.uniform(14, 20)
        cx, cy = rng.uniform(0.22, 0.36) * chest.half_width, chest.dome[LEFT] - rng.uniform(14, 30)
    else:
        cx, cy = _point_in_lung(chest, rng, side, 0.45 * radius)
    u, v = chest.grid_x - cx, chest.grid_y - cy
    turn, flat = rng.uniform(0, np.pi), rng.uniform(0.62, 1.0)
    u, v = (u * np.cos(turn) + v * np.sin(turn)), (v * np.cos(turn) - u * np.sin(turn)) / flat
    ragged = 0.16 * smooth_noise(rng, 12) + 0.1 * smooth_noise(rng, 26)
    opacity = step((1 - np.sqrt(u**2 + v**2) / radius + ragged) * 5.0)
    zone = zone_of(chest, cy)
    if kind == "lobar":  # ends sharply at a fissure
        upper = zone == "upper" or (zone == "mid" and rng.random() < 0.5)
        edge = cy + (0.35 if upper else -0.35) * radius + 0.12 * (np.abs(chest.grid_x) - abs(cx)) * rng.choice([-1, 1])
        opacity = opacity * step((edge - chest.grid_y if upper else chest.grid_y - edge) / 0.9)
    if kind == "retrocardiac":
        zone = "retrocardiac"
    opacity *= (rng.uniform(0.72, 0.95)) * (1 + 0.08 * smooth_noise(rng, 30)) * chest.lung[side]
    vessels = np.clip(chest.vessels / 0.2, 0, 1)
    opacity = np.clip(opacity, 0, 1) * (1 - 0.45 * vessels)  # air bronchograms
    change = LUNG_CONTRAST * lung_air(chest) * blur(opacity.astype(np.float32), 2.0)
    mask = _visible(change, 0.4)
    contrast = float(change[mask].mean()) if mask.any() else 0.0
    opacity = opacity.astype(np.float32)
    return Change("consolidation", kind, SIDE_WORD[side], zone, size, mask, opacity=opacity, contrast=contrast)


def nodule(chest: Chest, rng: np.random.Generator) -> Change:
    side = _side(rng)
    size = _pick(rng, {"small": 0.35, "": 0.4, "large": 0.25})
    radius = {"small": rng.uniform(4, 5.6), "": rng.uniform(5.6, 8), "large": rng.uniform(8, 11.5)}[size]
    cx, cy = _point_in_lung(chest, rng, side, radius + 2)
    kind = _pick(rng, {"smooth": 0.6, "spiculated": 0.25, "calcified": 0.15})
    u, v = chest.grid_x - cx, chest.grid_y - cy
    r = np.hypot(u, v / rng.uniform(0.85, 1.15)) / radius
    if kind == "spiculated":
        r = r + 0.13 * np.sin(np.arctan2(v, u) * rng.integers(6, 10) + rng.uniform(0, 6)) * np.clip(r, 0, 1.3)
    profile = np.sqrt(np.clip(1.08 - r**2, 0, 1)) ** 0.75
    opacity = blur(profile.astype(np.float32), 0.7) * chest.lung[side]
    change = _opaque(chest, opacity * rng.uniform(0.62, 0.85), "nodule", kind, side, zone_of(chest, cy), size)
    if kind == "calcified":
        change.added = (0.16 * opacity).astype(np.float32)
    change.millimetres = int(2 * round(radius * MM_PER_UNIT))
    return change


def cardiomegaly(chest: Chest, rng: np.random.Generator) -> Change:
    size = _pick(rng, {"mild": 0.4, "moderate": 0.35, "severe": 0.25})
    ratio = {"mild": rng.uniform(0.56, 0.59), "moderate": rng.uniform(0.6, 0.64), "severe": rng.uniform(0.65, 0.72)}[size]
    heart = heart_silhouette(chest, ratio)
    return Change("cardiomegaly", "enlarged", "", "", size, heart > 0.5, heart=heart)


def atelectasis(chest: Chest, rng: np.random.Generator) -> Change:
    side = _side(rng)
    length, thick = rng.uniform(26, 62), rng.uniform(3.0, 7.0)
    cx, cy = _point_in_lung(chest, rng, side, 7.0)
    kind = _pick(rng, {"horizontal": 0.4, "oblique": 0.45, "steep": 0.15})
    turn = {"horizontal": rng.normal(0, 0.1), "oblique": rng.uniform(0.3, 0.9) * rng.choice([-1, 1]), "steep": rng.uniform(1.1, 1.9)}[kind]
    u, v = chest.grid_x - cx, chest.grid_y - cy
    u, v = u * np.cos(turn) + v * np.sin(turn), v * np.cos(turn) - u * np.sin(turn)
    v = v - rng.uniform(-0.006, 0.006) * u**2 / (length / 40)
    width = (thick / 2) * (1 + 0.25 * np.sin(u / rng.uniform(6, 12) + rng.uniform(0, 6)))
    profile = step((width - np.abs(v)) * 2.2) * step((length / 2 - np.abs(u)) / 2.0)
    opacity = profile * chest.lung[side] * rng.uniform(0.5, 0.75)
    size = "small" if length < 36 else "large" if length > 52 else ""
    return _opaque(chest, opacity, "atelectasis", kind, side, zone_of(chest, cy), size, 0.4)


def edema(chest: Chest, rng: np.random.Generator) -> Change:
    kind = _pick(rng, {"perihilar": 0.36, "basal": 0.2, "upper": 0.16, "unilateral": 0.28})
    size = _pick(rng, {"mild": 0.35, "moderate": 0.4, "severe": 0.25})
    strength = {"mild": rng.uniform(0.3, 0.36), "moderate": rng.uniform(0.4, 0.5), "severe": rng.uniform(0.54, 0.65)}[size]
    x, y, w = np.abs(chest.grid_x), chest.grid_y, chest.half_width
    height = chest.dome[RIGHT] - chest.apex
    center = {"perihilar": 0.5, "basal": 0.92, "upper": 0.22, "unilateral": rng.uniform(0.25, 0.85)}[kind]
    cx = {"perihilar": 0.36, "basal": 0.5, "upper": 0.42, "unilateral": rng.uniform(0.35, 0.65)}[kind] * w
    cy = chest.apex + (center + rng.normal(0, 0.03)) * height
    rx, ry = rng.uniform(0.26, 0.34) * w, rng.uniform(0.2, 0.27) * height
    r = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    haze = step((1 - r) * 3.5)
    lungs = chest.lung[RIGHT] + chest.lung[LEFT]
    side = 0
    if kind == "unilateral":
        side = _side(rng)
        lungs = chest.lung[side]
    haze = (haze * lungs * strength).astype(np.float32)
    zone = {"unilateral": zone_of(chest, cy)}.get(kind, kind)
    lines = np.abs(smooth_noise(rng, 60)) * 0.5 + np.abs(smooth_noise(rng, 90)) * 0.4 + 0.15 * smooth_noise(rng, 20)
    change = LUNG_CONTRAST * lung_air(chest) * haze
    opacity = np.clip(haze * (1.3 - 0.7 * lines), 0, 0.95)  # septal lines: a net of thickened walls
    opacity = opacity.astype(np.float32)
    return Change("edema", kind, SIDE_WORD[side], zone, size, _visible(change, 0.45), opacity=opacity)


def device(chest: Chest, rng: np.random.Generator) -> Change:
    kind = _pick(rng, {"pacemaker": 0.5, "port": 0.5})
    side = _side(rng)
    canvas = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
    cx, cy = side * rng.uniform(0.42, 0.86) * chest.half_width, chest.apex + rng.uniform(22, 62)
    atrium = np.array([-16 + rng.normal(0, 2), chest.dome[LEFT] - rng.uniform(30, 40)])
    cava = np.array([-13.0, chest.apex + 34])
    if kind == "pacemaker":
        w, h, corner = rng.uniform(10, 13), rng.uniform(8, 10), rng.normal(0, 0.35)
        theta = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        can = np.stack([w * np.sign(np.cos(theta)) * np.abs(np.cos(theta)) ** 0.6, h * np.sign(np.sin(theta)) * np.abs(np.sin(theta)) ** 0.7], axis=1)
        spin = np.array([[np.cos(corner), -np.sin(corner)], [np.sin(corner), np.cos(corner)]])
        fill(chest.to_pixels(can @ spin.T + (cx, cy)), canvas, 190, factor=2)
        fill(chest.to_pixels((can * 0.55 + (0, 0.2 * h)) @ spin.T + (cx, cy)), canvas, 255, factor=2)
        tips = [atrium, np.array([rng.uniform(14, 26), chest.dome[LEFT] - rng.uniform(4, 12)])][: rng.integers(1, 3)]
        start = np.array([cx - side * 0.5 * w, cy - 0.9 * h])
    else:
        radius = rng.uniform(6, 7.5)
        center = chest.to_pixels(np.array([[cx, cy]]))[0] * 2
        for r, shade in ((radius, 230), (radius * 0.72, 120), (radius * 0.4, 200)):
            cv2.circle(canvas, tuple(np.round(center).astype(int).tolist()), round(r * 2 * chest.scale), shade, -1)
        tips = [np.array([-14.0, rng.uniform(-34, -14)])]
        start = np.array([cx - side * 0.6 * radius, cy - 0.8 * radius])
    for tip in tips:
        over = np.array([side * rng.uniform(0.28, 0.4) * chest.half_width, chest.apex + rng.uniform(16, 26)])
        path = [start, (start + over) / 2 + (side * 4, -4), over, cava, (cava + tip) / 2 + (rng.normal(0, 2), 0), tip]
        line = np.round(chest.to_pixels(curve(np.array(path), 6)) * 32 + 8).astype(np.int32)
        cv2.polylines(canvas, [line], False, 160, max(2, round(2.2 * chest.scale)), cv2.LINE_8, 4)
    metal = soft(canvas, 0.45)
    return Change("device", kind, SIDE_WORD[side], "", "", metal > 0.35, added=(0.42 * metal).astype(np.float32))


KINDS: dict[str, Callable[[Chest, np.random.Generator], Change]] = {
    "pleural effusion": effusion,
    "pneumothorax": pneumothorax,
    "consolidation": consolidation,
    "nodule": nodule,
    "cardiomegaly": cardiomegaly,
    "atelectasis": atelectasis,
    "edema": edema,
    "device": device,
}
