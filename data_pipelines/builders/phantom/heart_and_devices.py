"""Cardiomegaly and implanted devices."""

import numpy as np

from data_pipelines.builders.phantom.anatomy import heart_silhouette
from data_pipelines.builders.phantom.change import SIDE_WORD, Change, pick, pick_side, pick_size
from data_pipelines.builders.phantom.chest import LEFT, Chest
from data_pipelines.builders.phantom.drawing import SIZE, curve, disc, fill, soft, strokes


def cardiomegaly(chest: Chest, rng: np.random.Generator) -> Change:
    """A heart wider than half of the thorax. The mask is the whole heart, as radiologists draw it."""
    size, ratio = pick_size(
        rng, {"mild": (0.4, 0.56, 0.59), "moderate": (0.35, 0.6, 0.64), "severe": (0.25, 0.65, 0.72)}
    )
    heart = heart_silhouette(chest, ratio)
    return Change("cardiomegaly", "enlarged", "", "", size, heart > 0.5, heart=heart)


def device(chest: Chest, rng: np.random.Generator) -> Change:
    """A pacemaker with one or two leads, or an infusion port with its catheter."""
    kind = pick(rng, {"pacemaker": 0.5, "port": 0.5})
    side = pick_side(rng)
    canvas = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
    center = np.array([side * rng.uniform(0.42, 0.86) * chest.half_width, chest.apex + rng.uniform(22, 62)])
    if kind == "pacemaker":
        start = _generator(chest, rng, center, side, canvas)
        atrium = np.array([-16 + rng.normal(0, 2), chest.dome[LEFT] - rng.uniform(30, 40)])
        ventricle = np.array([rng.uniform(14, 26), chest.dome[LEFT] - rng.uniform(4, 12)])
        tips = [atrium, ventricle][: rng.integers(1, 3)]
    else:
        radius = rng.uniform(6, 7.5)
        for share, shade in ((1.0, 230), (0.72, 120), (0.4, 200)):
            disc(chest.to_pixels(center), radius * share * chest.scale, canvas, shade)
        start = center + (-side * 0.6 * radius, -0.8 * radius)
        tips = [np.array([-14.0, rng.uniform(-34, -14)])]  # in the superior vena cava
    cava = np.array([-13.0, chest.apex + 34])
    for tip in tips:
        under_clavicle = np.array([side * rng.uniform(0.28, 0.4) * chest.half_width, chest.apex + rng.uniform(16, 26)])
        path = [start, (start + under_clavicle) / 2 + (side * 4, -4), under_clavicle, cava]
        path += [(cava + tip) / 2 + (rng.normal(0, 2), 0), tip]
        strokes(chest.to_pixels(curve(np.array(path), 6))[None], canvas, 160, 1.1 * chest.scale)
    metal = soft(canvas, 0.45)
    return Change("device", kind, SIDE_WORD[side], "", "", metal > 0.35, added=np.float32(0.42) * metal)


def _generator(chest: Chest, rng: np.random.Generator, center: np.ndarray, side: int, canvas: np.ndarray) -> np.ndarray:
    """Draws the generator with its battery; returns the point where the leads begin."""
    width, height, tilt = rng.uniform(10, 13), rng.uniform(8, 10), rng.normal(0, 0.35)
    theta = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    cosine, sine = np.cos(theta), np.sin(theta)
    can = np.stack([np.sign(cosine) * np.abs(cosine) ** 0.6, np.sign(sine) * np.abs(sine) ** 0.7], axis=1)
    can = can * (width, height)
    turn = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
    fill(chest.to_pixels(can @ turn + center), canvas, 190)
    fill(chest.to_pixels((0.55 * can + (0, 0.2 * height)) @ turn + center), canvas, 255)
    return center + (-side * 0.5 * width, -0.9 * height)
