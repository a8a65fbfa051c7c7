"""Bones of the chest. Each function returns a layer [224, 224] of added brightness."""

import cv2
import numpy as np

from data_pipelines.builders.phantom.chest import LEFT, RIGHT, Chest
from data_pipelines.builders.phantom.drawing import SIZE, bands, curve, disc, fill, soft, step


def spine(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Vertebral bodies with darker discs, pedicles and spinous processes."""
    first = max(0, int(chest.matrix[0, 2]) - 40)
    strip = slice(first, first + 80)  # the spine is no wider
    x, y = chest.grid_x[:, strip], chest.grid_y[:, strip]
    x = x - rng.normal(0, 2.0) * np.sin(y / 60 + rng.uniform(0, 6)) - rng.normal(0, 0.6)
    period = 12.5 + 0.012 * y
    phase = y / period + rng.random()
    column = step((9.5 + y * 0.018 - np.abs(x)) * 1.1)
    gap = 0.5 + 0.5 * np.cos(2 * np.pi * phase)
    pedicle = np.exp(-(((np.abs(x) - 5.2) / 1.6) ** 2) - ((((phase + 0.35) % 1) - 0.5) * period / 2.0) ** 2)
    process = np.exp(-((x / 1.3) ** 2)) * (gap < 0.4)
    layer = np.zeros((SIZE, SIZE), np.float32)
    layer[:, strip] = rng.uniform(0.045, 0.075) * column * (1 - 0.45 * gap**3) + 0.03 * pedicle + 0.015 * process
    return layer * (1 - 0.4 * step((chest.grid_y - chest.dome[RIGHT]) / 8))


def ribs(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """The ribs. Each runs from the spine to the flank at the back, and turns down to the front there."""
    count, front_count = 11, 8
    spacing, slope = rng.uniform(15.5, 17.5), rng.uniform(0.85, 1.15)
    thick = rng.uniform(5.2, 6.6)
    index = np.arange(count)
    drop = slope * (16 + 34 * np.minimum(index / 5, 1)) + 0.8 * index
    y0 = chest.apex + rng.uniform(-1, 3) + spacing * index
    reach = (chest.wall(y0 + drop / 2) + 2.0) * np.where(index == 0, 0.8, 1.0)
    wobble = rng.normal(0, 0.7, (2, count))
    strength = rng.uniform(0.1, 0.17)
    layer = np.zeros((SIZE, SIZE), np.float32)
    for theta, number, width, weight in (
        (np.linspace(0.06, 0.52, 18) * np.pi, count, thick, 1.0),
        (np.linspace(0.5, rng.uniform(0.74, 0.8), 12) * np.pi, front_count, 1.12 * thick, 0.72),
    ):
        x = reach[:number, None] * np.sin(theta) ** 0.9 + np.where(index == 0, 5.0, 2.0)[:number, None]
        y = y0[:number, None] + drop[:number, None] * (1 - np.cos(theta)) / 2
        y = y - 4.0 * np.sin(np.minimum(2 * theta, np.pi))
        both = [np.stack([side * x, y + wobble[i, :number, None]], -1) for i, side in enumerate((RIGHT, LEFT))]
        lines = chest.to_pixels(np.stack(both))
        canvas = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
        for size, shade in ((width * chest.scale, 255), (width * chest.scale - 1.9, 150)):  # cortex, then marrow
            for polygon in bands(lines, size).reshape(2 * number, -1, 2):
                fill(polygon, canvas, shade)
        layer += weight * strength * soft(canvas, 0.6)
    return layer * (1 - 0.65 * step((chest.grid_y - chest.dome[RIGHT] - 4) / 5))


def girdle(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Clavicles, scapulae and humeral heads."""
    w = chest.half_width
    clavicles = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
    blades = np.zeros((SIZE, SIZE), np.uint8)
    tilt = rng.uniform(2, 22)
    for side in (RIGHT, LEFT):
        y = chest.apex + rng.uniform(17, 22)
        x = np.array([8, 0.2 * w, 0.5 * w, 0.85 * w, 1.2 * w, 1.3 * w])
        rise = np.array([-4, 1, 0.45 * tilt + 3, 0.9 * tilt + 7, tilt + 5, tilt + 3])
        line = chest.to_pixels(curve(np.stack([side * x, y - rise], axis=1), 5))
        along = np.linspace(0, 1, len(line))
        width = np.interp(along, [0, 0.1, 0.45, 0.85, 1], [9.0, 7.0, 5.8, 7.5, 5.0]) * chest.scale
        fill(bands(line, width), clavicles, 255)
        fill(bands(line, width - 2.2), clavicles, 165)
        top = np.array([(0.88 + rng.uniform(-0.05, 0.1)) * w, chest.apex + rng.uniform(18, 26)])
        blade = np.array([[0, 0], [-5, 26], [1, 58], [6, 66], [12, 56], [24, 20], [26, 2]])
        outline = chest.to_pixels(curve((top + blade) * (side, 1), 4, closed=True))
        fill(outline, blades, 130)
        cv2.polylines(blades, [np.round(outline * 16).astype(np.int32)], True, 255, 1, cv2.LINE_AA, 4)
        disc(chest.to_pixels((top + (38, 2)) * (side, 1)), 13 * chest.scale, blades, 255)
        arm = top + np.array([[29, 6], [47, 4], [58, 120], [46, 120]])
        fill(chest.to_pixels(arm * (side, 1)), blades, 220)
    return rng.uniform(0.11, 0.16) * soft(clavicles, 0.6) + rng.uniform(0.05, 0.09) * soft(blades, 0.9)
