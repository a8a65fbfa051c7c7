"""The normal chest: random proportions and pose, and layers of lungs, soft tissue, bones and vessels."""

import cv2
import numpy as np

from data_pipelines.builders.phantom import bones
from data_pipelines.builders.phantom.chest import LEFT, RIGHT, USUAL_POSE, Chest, Pose
from data_pipelines.builders.phantom.drawing import (
    SIZE,
    blur,
    curve,
    depth_inside,
    fill,
    smooth_noise,
    soft,
    step,
    strokes,
)


def sample_chest(rng: np.random.Generator, pose: Pose = USUAL_POSE) -> Chest:
    """A normal chest with random proportions and pose, and all its layers drawn."""
    angle = rng.normal(0, pose.turn) * np.pi / 180
    scale = rng.uniform(*pose.scale)
    shift = rng.normal(0, pose.shift, 2) + (SIZE - 1) / 2
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if pose.stretch:
        rotation = rotation * np.exp(rng.normal(0, pose.stretch, 2))  # broader or taller
    inverse = np.linalg.inv(rotation).astype(np.float32)
    columns = np.arange(SIZE, dtype=np.float32)[None] - np.float32(shift[0])
    rows = np.arange(SIZE, dtype=np.float32)[:, None] - np.float32(shift[1])
    portable = rng.random() < 0.25  # lying in bed: shallower breath, the heart looks a little wider
    right = rng.normal((53 if portable else 59) - pose.lift, pose.breath)
    left = right + rng.normal(5, 2.5)
    recess = rng.uniform(22, 31)
    wider = rng.uniform(0, pose.heart) if pose.heart else 0.0
    chest = Chest(
        view="AP" if portable else "PA",
        half_width=rng.uniform(76, 89),
        apex=rng.uniform(-88, -76),
        dome={RIGHT: right, LEFT: left},
        angle={RIGHT: right + recess, LEFT: left + recess - rng.uniform(0, 4)},
        heart_ratio=(rng.uniform(0.43, 0.48) if portable else rng.uniform(0.39, 0.47)) + wider,
        heart_share=rng.uniform(0.64, 0.72),
        heart_round=rng.uniform(0, 1),
        matrix=np.concatenate([rotation, shift[:, None]], axis=1),
        grid_x=inverse[0, 0] * columns + inverse[0, 1] * rows,
        grid_y=inverse[1, 0] * columns + inverse[1, 1] * rows,
    )
    chest.heart = heart_silhouette(chest, chest.heart_ratio)
    _draw_lungs(chest)
    _draw_soft_tissue(chest, rng)
    chest.ribs = bones.ribs(chest, rng)
    chest.solid = chest.solid + bones.spine(chest, rng) + bones.girdle(chest, rng) * chest.body
    _draw_vessels(chest, rng)
    return chest


def heart_silhouette(chest: Chest, ratio: float) -> np.ndarray:
    """Soft silhouette [224, 224] of a heart with this cardiothoracic ratio."""
    width = 2 * chest.half_width * ratio
    left, right = width * chest.heart_share, width * (1 - chest.heart_share)
    floor = chest.dome[LEFT]
    top = floor - 66 - 30 * (ratio - 0.44)
    bulge = 0.1 * chest.heart_round
    outline = [
        [-14, top - 12], [-16.5, top + 6], [-0.8 * right, top + 22], [-right, top + 42], [-0.93 * right, floor - 8],
        [-0.66 * right, floor + 7], [0.3 * left, floor + 15], [0.72 * left, floor + 12], [0.93 * left, floor + 3],
        [left, floor - 9], [(0.87 + bulge) * left, floor - 24], [(0.65 + 1.3 * bulge) * left, top + 30],
        [(0.48 + bulge) * left, top + 12], [21, top - 4], [14, top - 14],
    ]  # fmt: skip
    return soft(fill(chest.to_pixels(curve(np.array(outline), 6, closed=True))), 1.1)


def lung_outline(chest: Chest, side: int) -> np.ndarray:
    """The outline of a lung [N, 2] in the chest frame: apex, wall, costophrenic angle, diaphragm, mediastinum."""
    bottom = chest.angle[side]
    y = np.concatenate([chest.apex + np.array([0, 1.0, 2.5, 5.0]), np.linspace(chest.apex + 9, bottom, 22)])
    wall = np.stack([chest.wall(y) - 0.8, y], axis=1)
    x = np.linspace(0.975, 0.12, 24) * chest.half_width
    dome = np.stack([x, chest.diaphragm(side, x)], axis=1)
    dome = dome[dome[:, 0] < chest.wall(dome[:, 1])]
    w, height = chest.half_width, bottom - chest.apex
    medial = [[0.11 * w, chest.apex + 0.6 * height], [0.12 * w, chest.apex + 0.3 * height]]
    medial += [[0.16 * w, chest.apex + 0.13 * height], [0.23 * w, chest.apex + 0.035 * height], [0.29 * w, chest.apex]]
    return np.concatenate([wall, dome, medial]) * (side, 1)


def _draw_lungs(chest: Chest) -> None:
    air = np.zeros((SIZE, SIZE), np.float32)
    for side in (RIGHT, LEFT):
        canvas = fill(chest.to_pixels(lung_outline(chest, side)))
        chest.lung[side] = soft(canvas, 0.8)
        thickness = 1 - 0.72 * np.exp(depth_inside(canvas) / (-7 * chest.scale))  # lungs are rounded, not boxes
        air = np.maximum(air, chest.lung[side] * thickness)
    chest.air = air * (0.86 + 0.14 * np.clip(1 - np.abs(chest.lung_height(chest.grid_y) - 0.45) * 1.6, -1, 1))


def _draw_soft_tissue(chest: Chest, rng: np.random.Generator) -> None:
    x, y = chest.grid_x, chest.grid_y
    chest.body = _body(chest, rng)
    abdomen = step((y - chest.dome[RIGHT] - 12) / 9)
    solid = (0.6 + 0.14 * abdomen) * chest.body * (1 + 0.035 * smooth_noise(rng, 4))
    right_border = [[-15, -130], [-13, -84], [-14, -60], [-17, -40], [-20, -15], [-16, 20], [-14, 120]]
    left_border = [[14, 120], [15, 20], [22, -14], [24, -24], [20, -34], [24, -42], [24, -52]]  # up to the aortic arch
    left_border += [[17, -60], [13, -84], [15, -130]]
    outline = np.array(right_border + left_border) * (rng.uniform(0.85, 1.1), 1)
    chest.mediastinum = soft(fill(chest.to_pixels(curve(outline, 4))), 1.3)
    airway = [[-5, -130], [-4.4, chest.apex + 24], [-3.6, -38], [-9, -29], [-15, -22], [-13, -19], [-5, -26], [0, -31]]
    airway += [[7, -25], [18, -16], [19, -20], [10, -29], [4.3, -38], [4.6, chest.apex + 24], [5, -130]]
    trachea = soft(fill(chest.to_pixels(np.array(airway) + (rng.normal(0, 1.2), 0))), 1.7)
    solid = solid - rng.uniform(0.12, 0.18) * trachea
    if rng.random() < 0.45:
        solid = solid + _breasts(chest, rng)
    if rng.random() < 0.5:  # gas in the stomach, under the left half of the diaphragm
        cx, cy = rng.uniform(0.3, 0.55) * chest.half_width, chest.dome[LEFT] + rng.uniform(13, 21)
        r = ((x - cx) / rng.uniform(9, 17)) ** 2 + ((y - cy) / rng.uniform(5, 9)) ** 2
        solid = solid - rng.uniform(0.1, 0.22) * step((1 - r) * 4)
    chest.solid = solid.astype(np.float32)


def _body(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """The thickness of the trunk, 0..1, thinner towards the skin."""
    w, wall = chest.half_width, rng.uniform(9, 36)
    shoulder = chest.apex + rng.uniform(-14, 2)
    outline = [[w + wall + 2, 150], [w + wall, 60], [w + wall - 2, 10], [w + wall + 6, shoulder + 58]]
    outline += [[w + 52, shoulder + 62], [w + 60, shoulder + 26], [w + 26, shoulder - 2], [w - 24, shoulder - 14]]
    outline += [[30, shoulder - 26], [25, shoulder - 44], [26, -190]]
    left = curve(np.array(outline), 6)
    points = chest.to_pixels(np.concatenate([left, (left * (-1, 1))[::-1]]))
    canvas = fill((points + 80) / 2)  # at half size with a rim of 40, so that the image's edge is not drawn as skin
    inner = slice(40, 40 + SIZE // 2)
    thickness = (0.25 + 0.75 * (1 - np.exp(depth_inside(canvas) / -7.0))) * (canvas.astype(np.float32) / 255)
    return blur(cv2.resize(thickness[inner, inner], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR), 1.2)


def _breasts(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    x, y = chest.grid_x, chest.grid_y
    cx, cy = 0.58 * chest.half_width, chest.dome[RIGHT] - rng.uniform(10, 22)
    rx, ry = rng.uniform(32, 42), rng.uniform(26, 40)
    r = np.sqrt(((np.abs(x) - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    shade = np.sqrt(np.clip(1 - r, 0, 1)) * step((y - cy + 0.35 * ry) / (0.3 * ry))
    return rng.uniform(0.05, 0.12) * blur(shade, 1.2)


def _draw_vessels(chest: Chest, rng: np.random.Generator) -> None:
    """Draws arteries and veins, which branch out from each hilum."""
    canvas = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
    roots = np.array([-1.35, -1.0, -0.55, 0.0, 0.5, 0.85, 1.2])  # headings: up is negative
    side = np.repeat([RIGHT, LEFT], len(roots))
    start = np.stack([side * 0.25 * chest.half_width, -22.0 - 3.0 * (side == LEFT)], axis=1)
    start = start + rng.normal(0, 1, start.shape) * (3.0, 6.0)
    heading = np.tile(roots, 2) + rng.normal(0, 0.18, len(side))
    width, length = 1.95, 19.0
    for shade in (255, 215, 170, 125, 95):
        count = len(side)
        steps = heading[:, None] + rng.normal(0, 0.4, count)[:, None] * np.linspace(0, 1, 4)
        move = np.stack([side[:, None] * np.cos(steps), np.sin(steps)], axis=2)
        move *= (length / 4) * rng.uniform(0.75, 1.2, count)[:, None, None]
        lines = np.concatenate([start[:, None], start[:, None] + np.cumsum(move, axis=1)], axis=1)
        strokes(chest.to_pixels(lines), canvas, shade, width * chest.scale)
        turn = np.concatenate([rng.uniform(0.05, 0.65, count), -rng.uniform(0.05, 0.65, count)])
        start, side = np.tile(lines[:, -1], (2, 1)), np.tile(side, 2)
        heading = np.tile(steps[:, -1], 2) + turn
        width, length = width * 0.74, length * 0.84
    lungs = chest.lung[RIGHT] + chest.lung[LEFT]
    hilum = np.hypot(np.abs(chest.grid_x) - 0.25 * chest.half_width, (chest.grid_y + 21) * 0.6) / rng.uniform(6, 9)
    texture = (
        0.012 * smooth_noise(rng, 75) + 0.012 * smooth_noise(rng, 28) + rng.uniform(0.1, 0.17) * np.exp(-(hilum**2))
    )
    chest.vessels = (rng.uniform(0.13, 0.2) * soft(canvas, 0.75) + texture) * lungs
