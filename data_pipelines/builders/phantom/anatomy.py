"""The healthy chest: random proportions, drawn as layers of attenuation.

Coordinates: the chest frame has its origin in the middle of the thorax, x grows to the right of the image (the
patient's LEFT), y grows downwards, one unit is one pixel of an unscaled 224 x 224 image (1.65 mm). A rotation,
scale and shift take it to pixels. Layers are float32 [224, 224] in units of displayed brightness (0 black, 1 white).
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

SIZE = 224
MM_PER_UNIT = 1.65  # chest frame; a thorax of 165 units is 270 mm wide inside
LUNG_CONTRAST = 0.52  # brightness that a full thickness of air takes away
RIGHT, LEFT = -1, 1  # side of the PATIENT, as the sign of x: the patient's right is on the left of the image


@dataclass
class Chest:
    """Proportions of one chest (chest frame) and its layers (pixels)."""

    half_width: float  # inner half width of the rib cage at the base
    apex: float  # y of the lung apices
    dome: dict[int, float]  # y of the top of each diaphragm dome, by side
    angle: dict[int, float]  # y of each costophrenic angle
    heart_ratio: float  # cardiothoracic ratio, heart width / thorax width
    heart_share: float  # share of the heart's width that lies on the patient's left
    matrix: np.ndarray  # [2, 3] chest frame -> pixels
    grid_x: np.ndarray  # [224, 224] chest-frame x of every pixel
    grid_y: np.ndarray
    lung: dict[int, np.ndarray] = field(default_factory=dict)  # soft silhouettes 0..1 by side
    air: np.ndarray = field(default_factory=lambda: np.zeros(0))  # thickness of air 0..1, heart not yet in front
    solid: np.ndarray = field(default_factory=lambda: np.zeros(0))  # soft tissue, spine, shoulder girdle
    ribs: np.ndarray = field(default_factory=lambda: np.zeros(0))
    vessels: np.ndarray = field(default_factory=lambda: np.zeros(0))  # vessels and lung texture, disappear without lung
    heart: np.ndarray = field(default_factory=lambda: np.zeros(0))  # silhouette of heart and great vessels
    trachea: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mediastinum: np.ndarray = field(default_factory=lambda: np.zeros(0))
    body: np.ndarray = field(default_factory=lambda: np.zeros(0))  # thickness of the trunk

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """[N, 2] chest frame -> [N, 2] pixels."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    @property
    def scale(self) -> float:
        return float(np.hypot(self.matrix[0, 0], self.matrix[1, 0]))

    def wall(self, y: np.ndarray | float) -> np.ndarray:
        """Distance of the inner chest wall from the midline at height y."""
        return self.half_width * np.interp(y, self.apex + _WALL_Y * (self.angle[RIGHT] - self.apex), _WALL_X)

    def diaphragm(self, side: int, x: np.ndarray) -> np.ndarray:
        """Height y of the diaphragm at |x| on one side."""
        u = np.abs(x) / self.half_width - 0.46
        lateral, medial = self.angle[side] - self.dome[side], 13.0
        return self.dome[side] + np.where(u > 0, lateral * (np.maximum(u, 0) / 0.53) ** 2.1, medial * (u / 0.4) ** 2)


# the wall as fractions of the lung's height and of the half width: apex, shoulder of the cupola, flank
_WALL_Y = np.array([0.0, 0.012, 0.05, 0.1, 0.17, 0.26, 0.38, 0.52, 0.68, 0.84, 1.0])
_WALL_X = np.array([0.34, 0.44, 0.54, 0.625, 0.71, 0.79, 0.865, 0.925, 0.97, 0.995, 0.99])


def curve(points: np.ndarray, per_segment: int = 8, closed: bool = False) -> np.ndarray:
    """Catmull-Rom curve through [N, 2] points, [M, 2]."""
    points = np.asarray(points, float)
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0, 1, per_segment, endpoint=False)[None, :, None]
    a, b, c, d = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    result = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - 3 * c + d - a) * t**3)
    result = result.reshape(-1, 2)
    return result if closed else np.concatenate([result, points[-1:]])


def fill(polygon: np.ndarray, canvas: np.ndarray | None = None, value: int = 255, factor: int = 1) -> np.ndarray:
    """Anti-aliased polygon, [N, 2] pixels, into a uint8 canvas of `factor` x 224."""
    if canvas is None:
        canvas = np.zeros((SIZE * factor, SIZE * factor), np.uint8)
    points = np.round(((polygon + 0.5) * factor - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [points], value, cv2.LINE_AA if factor == 1 else cv2.LINE_8, 4)
    return canvas


def soft(mask: np.ndarray, sigma: float = 0.0) -> np.ndarray:
    """uint8 canvas (224 or 448) -> float32 0..1 of 224 x 224, blurred."""
    if mask.shape[0] != SIZE:
        mask = cv2.resize(mask, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    result = mask.astype(np.float32) * np.float32(1 / 255)
    return blur(result, sigma) if sigma else result


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    if sigma > 6:  # wide blurs at a quarter of the size
        small = cv2.resize(image, (SIZE // 4, SIZE // 4), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma / 4, borderType=cv2.BORDER_REPLICATE)
        return cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def step(x: np.ndarray) -> np.ndarray:
    """Soft step from 0 to 1."""
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))


def smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth random field [224, 224], about unit variance, `cells` independent values along a side."""
    coarse = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    step = SIZE / cells
    big = cv2.resize(coarse, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    offset = int(step)
    return big[offset : offset + SIZE, offset : offset + SIZE]


def sample_chest(rng: np.random.Generator) -> Chest:
    """Random proportions and pose, then every layer of the healthy chest."""
    angle = rng.normal(0, 2.2) * np.pi / 180
    scale = rng.uniform(0.95, 1.15)
    shift = rng.normal(0, 1, 2) * (5.0, 5.0) + (SIZE / 2 - 0.5, SIZE / 2 - 0.5)
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.concatenate([rotation, shift[:, None]], axis=1)
    inverse = np.linalg.inv(rotation).astype(np.float32)
    rows, columns = np.arange(SIZE, dtype=np.float32)[:, None], np.arange(SIZE, dtype=np.float32)[None]
    columns, rows = columns - np.float32(shift[0]), rows - np.float32(shift[1])
    base = rng.normal(58, 6)  # deep or shallow breath
    recess = rng.uniform(22, 31)
    right, left = base, base + rng.normal(5, 2.5)
    chest = Chest(
        half_width=rng.uniform(76, 89),
        apex=rng.uniform(-88, -76),
        dome={RIGHT: right, LEFT: left},
        angle={RIGHT: right + recess, LEFT: left + recess - rng.uniform(0, 4)},
        heart_ratio=rng.uniform(0.39, 0.485),
        heart_share=rng.uniform(0.64, 0.72),
        matrix=matrix,
        grid_x=inverse[0, 0] * columns + inverse[0, 1] * rows,
        grid_y=inverse[1, 0] * columns + inverse[1, 1] * rows,
    )
    chest.heart = heart_silhouette(chest, chest.heart_ratio)
    _draw_lungs(chest, rng)
    _draw_solid(chest, rng)
    _draw_vessels(chest, rng)
    return chest


def lung_outline(chest: Chest, side: int) -> np.ndarray:
    """[N, 2] chest frame: apex, wall, costophrenic angle, dome, mediastinum."""
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


def heart_silhouette(chest: Chest, ratio: float) -> np.ndarray:
    """Soft silhouette [224, 224] of heart and great vessels for a cardiothoracic ratio."""
    width = 2 * chest.half_width * ratio
    left, right = width * chest.heart_share, width * (1 - chest.heart_share)
    floor = chest.dome[LEFT]
    top = floor - 66 - 30 * (ratio - 0.44)
    heart = [
        [-14, top - 12], [-16.5, top + 6], [-0.8 * right, top + 22], [-right, top + 42], [-0.93 * right, floor - 8],
        [-0.66 * right, floor + 7], [0.3 * left, floor + 15], [0.72 * left, floor + 12], [0.93 * left, floor + 3],
        [left, floor - 9], [0.9 * left, floor - 24], [0.7 * left, top + 30], [0.52 * left, top + 12],
        [21, top - 4], [14, top - 14],
    ]  # fmt: skip
    canvas = fill(chest.to_pixels(curve(np.array(heart), 6, closed=True)))
    return soft(canvas, 1.1)


def _draw_lungs(chest: Chest, rng: np.random.Generator) -> None:
    air = np.zeros((SIZE, SIZE), np.float32)
    for side in (RIGHT, LEFT):
        canvas = fill(chest.to_pixels(lung_outline(chest, side)))
        silhouette = soft(canvas, 0.8)
        distance = cv2.distanceTransform((canvas > 127).astype(np.uint8), cv2.DIST_L2, 3)
        chest.lung[side] = silhouette
        air = np.maximum(air, silhouette * (1 - 0.72 * np.exp(-distance / (7 * chest.scale))))
    height = (chest.grid_y - chest.apex) / (chest.dome[RIGHT] - chest.apex)
    depth = 0.86 + 0.14 * np.clip(1 - np.abs(height - 0.45) * 1.6, -1, 1)
    chest.air = air * depth
    hollow = [[-5, -130], [-4.4, chest.apex + 24], [-3.6, -38], [-9, -29], [-15, -22], [-13, -19], [-5, -26], [0, -31]]
    hollow += [[7, -25], [18, -16], [19, -20], [10, -29], [4.3, -38], [4.6, chest.apex + 24], [5, -130]]
    chest.trachea = soft(fill(chest.to_pixels(np.array(hollow) + (rng.normal(0, 1.2), 0))), 1.7)


def _draw_solid(chest: Chest, rng: np.random.Generator) -> None:
    w, x, y = chest.half_width, chest.grid_x, chest.grid_y
    body = _body(chest, rng)
    solid = 0.6 * body
    solid += 0.14 * body * step((y - chest.dome[RIGHT] - 12) / 9)  # abdomen is thicker
    solid *= 1 + 0.035 * smooth_noise(rng, 4)
    middle = np.array([[-15, -130], [-13, -84], [-14, -60], [-17, -40], [-20, -15], [-16, 20], [-14, 120]])
    other = np.array([[14, 120], [15, 20], [22, -14], [24, -24], [20, -34], [24, -42], [24, -52], [17, -60], [13, -84], [15, -130]])
    wide = rng.uniform(0.85, 1.1)
    mediastinum = soft(fill(chest.to_pixels(curve(np.concatenate([middle, other]) * (wide, 1), 4))), 1.3)
    chest.mediastinum = mediastinum
    solid += -rng.uniform(0.12, 0.18) * chest.trachea
    solid += _spine(chest, rng)
    chest.ribs = _ribs(chest, rng) * (1 - 0.65 * step((y - chest.dome[RIGHT] - 4) / 5))
    solid += _girdle(chest, rng) * body
    if rng.random() < 0.45:
        solid += _breasts(chest, rng)
    if rng.random() < 0.5:  # gas in the stomach, under the left dome
        cx, cy = rng.uniform(0.3, 0.55) * w, chest.dome[LEFT] + rng.uniform(12, 20)
        r = ((x - cx) / rng.uniform(9, 17)) ** 2 + ((y - cy) / rng.uniform(5, 9)) ** 2
        solid -= rng.uniform(0.12, 0.25) * step((1 - r) * 5)
    chest.solid = solid.astype(np.float32)
    chest.body = body


def _body(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Thickness of the trunk 0..1."""
    w, wall = chest.half_width, rng.uniform(9, 36)
    shoulder = chest.apex + rng.uniform(-14, 2)
    outline = [[w + wall + 2, 150], [w + wall, 60], [w + wall - 2, 10], [w + wall + 6, shoulder + 58]]
    outline += [[w + 52, shoulder + 62], [w + 60, shoulder + 26], [w + 26, shoulder - 2], [w - 24, shoulder - 14]]
    outline += [[30, shoulder - 26], [25, shoulder - 44], [26, -190]]
    right = np.array(outline) * (-1, 1)
    points = np.concatenate([curve(np.array(outline), 6), curve(right[::-1], 6)])
    canvas = np.zeros((SIZE // 2 + 40, SIZE // 2 + 40), np.uint8)  # half size, with a rim so that edges are no border
    half = np.round((chest.to_pixels(points) / 2 + 20) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [half], 255, cv2.LINE_AA, 4)
    distance = cv2.distanceTransform((canvas > 127).astype(np.uint8), cv2.DIST_L2, 3)[20:-20, 20:-20]
    thickness = cv2.resize(1 - np.exp(-distance / 7.0), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    edge = cv2.resize(canvas[20:-20, 20:-20], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return blur((0.25 + 0.75 * thickness) * (edge.astype(np.float32) / 255), 1.2)


def _spine(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Vertebral bodies with darker discs, pedicles and spinous processes."""
    first = max(0, int(chest.matrix[0, 2]) - 40)
    strip = slice(first, first + 80)  # nothing of it lies further from the midline
    x, y = chest.grid_x[:, strip], chest.grid_y[:, strip]
    x = x - rng.normal(0, 2.0) * np.sin(y / 60 + rng.uniform(0, 6)) - rng.normal(0, 0.6)
    period = 12.5 + 0.012 * y
    phase = y / period + rng.random()
    column = step((9.5 + y * 0.018 - np.abs(x)) * 1.1)
    disc = 0.5 + 0.5 * np.cos(2 * np.pi * phase)
    pedicle = np.exp(-(((np.abs(x) - 5.2) / 1.6) ** 2) - ((((phase + 0.35) % 1) - 0.5) * period / 2.0) ** 2)
    process = np.exp(-((x / 1.3) ** 2)) * (disc < 0.4)
    layer = np.zeros((SIZE, SIZE), np.float32)
    layer[:, strip] = rng.uniform(0.045, 0.075) * column * (1 - 0.45 * disc**3) + 0.03 * pedicle + 0.015 * process
    return layer


def _bands(centers: np.ndarray, thickness: np.ndarray | float) -> np.ndarray:
    """Polygons [..., 2 N, 2] of ribbons around centre lines [..., N, 2]."""
    tangent = np.empty_like(centers)
    tangent[..., 1:-1, :] = centers[..., 2:, :] - centers[..., :-2, :]
    tangent[..., 0, :], tangent[..., -1, :] = tangent[..., 1, :], tangent[..., -2, :]
    length = np.hypot(tangent[..., 0], tangent[..., 1]) + 1e-6
    offset = np.stack([-tangent[..., 1], tangent[..., 0]], axis=-1) * (np.asarray(thickness) / (2 * length))[..., None]
    return np.concatenate([centers + offset, (centers - offset)[..., ::-1, :]], axis=-2)


def _ribs(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Each rib runs from the spine backwards and outwards, turns at the flank and comes down to the front."""
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
    for theta, ribs, width, weight in (
        (np.linspace(0.06, 0.52, 18) * np.pi, count, thick, 1.0),
        (np.linspace(0.5, rng.uniform(0.74, 0.8), 12) * np.pi, front_count, 1.12 * thick, 0.72),
    ):
        x = reach[:ribs, None] * np.sin(theta) ** 0.9 + np.where(index == 0, 5.0, 2.0)[:ribs, None]
        y = y0[:ribs, None] + drop[:ribs, None] * (1 - np.cos(theta)) / 2 - 4.0 * np.sin(np.minimum(2 * theta, np.pi))
        lines = np.stack([np.stack([side * x, y + wobble[i, :ribs, None]], -1) for i, side in enumerate((RIGHT, LEFT))])
        lines = chest.to_pixels(lines)
        canvas = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
        for size, shade in ((width * chest.scale, 255), (width * chest.scale - 1.9, 150)):  # cortex, then marrow
            for polygon in _bands(lines, size).reshape(2 * ribs, -1, 2):
                fill(polygon, canvas, shade, factor=2)
        layer += weight * strength * soft(canvas, 0.6)
    return layer


def _girdle(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Clavicles, scapulae and humeral heads."""
    w = chest.half_width
    canvas = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
    blades = np.zeros((SIZE, SIZE), np.uint8)
    tilt = rng.uniform(2, 22)
    for side in (RIGHT, LEFT):
        y = chest.apex + rng.uniform(17, 22)
        line = [[8, y + 4], [0.2 * w, y - 1], [0.5 * w, y - 0.45 * tilt - 3], [0.85 * w, y - 0.9 * tilt - 7], [1.2 * w, y - tilt - 5], [1.3 * w, y - tilt - 3]]
        line = chest.to_pixels(curve(np.array(line), 5) * (side, 1))
        width = np.interp(np.linspace(0, 1, len(line)), [0, 0.1, 0.45, 0.85, 1], [9.0, 7.0, 5.8, 7.5, 5.0]) * chest.scale
        fill(_bands(line, width), canvas, 255, factor=2)
        fill(_bands(line, width - 2.2), canvas, 165, factor=2)
        sx, sy = (0.88 + rng.uniform(-0.05, 0.1)) * w, chest.apex + rng.uniform(18, 26)
        blade = [[sx, sy], [sx - 5, sy + 26], [sx + 1, sy + 58], [sx + 6, sy + 66], [sx + 12, sy + 56], [sx + 24, sy + 20], [sx + 26, sy + 2]]
        blade = chest.to_pixels(curve(np.array(blade), 4, closed=True) * (side, 1))
        fill(blade, blades, 130)
        cv2.polylines(blades, [np.round(blade * 16).astype(np.int32)], True, 255, 1, cv2.LINE_AA, 4)
        head = chest.to_pixels(np.array([[(sx + 38) * side, sy + 2]]))[0]
        cv2.circle(blades, tuple(np.round(head * 16).astype(int).tolist()), int(13 * chest.scale * 16), 255, -1, cv2.LINE_AA, 4)
        arm = np.array([[sx + 29, sy + 6], [sx + 47, sy + 4], [sx + 58, sy + 120], [sx + 46, sy + 120]]) * (side, 1)
        fill(chest.to_pixels(arm), blades, 220)
    return rng.uniform(0.11, 0.16) * soft(canvas, 0.6) + rng.uniform(0.05, 0.09) * soft(blades, 0.9)


def _breasts(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    x, y = chest.grid_x, chest.grid_y
    cx, cy = 0.58 * chest.half_width, chest.dome[RIGHT] - rng.uniform(10, 22)
    rx, ry = rng.uniform(32, 42), rng.uniform(26, 40)
    r = np.sqrt(((np.abs(x) - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    shade = np.clip(1 - r, 0, 1) ** 0.5 * step((y - cy + 0.35 * ry) / (0.3 * ry))
    return (rng.uniform(0.05, 0.12) * blur(shade.astype(np.float32), 1.2)).astype(np.float32)


def _draw_vessels(chest: Chest, rng: np.random.Generator) -> None:
    """Arteries and veins fan out from each hilum; every generation is drawn in one call."""
    canvas = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
    roots = 7
    side = np.repeat([RIGHT, LEFT], roots)
    start = np.stack([side * 0.25 * chest.half_width, -22.0 - 3.0 * (side == LEFT)], axis=1)
    start = start + rng.normal(0, 1, start.shape) * (3.0, 6.0)
    heading = np.tile([-1.35, -1.0, -0.55, 0.0, 0.5, 0.85, 1.2], 2) + rng.normal(0, 0.18, 2 * roots)
    width, length = 3.9, 19.0
    for shade in (255, 215, 170, 125, 95):
        count = len(side)
        steps = heading[:, None] + rng.normal(0, 0.4, count)[:, None] * np.linspace(0, 1, 4)
        move = np.stack([side[:, None] * np.cos(steps), np.sin(steps)], axis=2)
        move *= (length / 4) * rng.uniform(0.75, 1.2, count)[:, None, None]
        lines = np.concatenate([start[:, None], start[:, None] + np.cumsum(move, axis=1)], axis=1)
        pixels = np.round(chest.to_pixels(lines.reshape(-1, 2)) * 32).astype(np.int32)  # 2 x canvas, 4 fractional bits
        thickness = max(1, round(width * chest.scale))
        cv2.polylines(canvas, list(pixels.reshape(count, 5, 2)), False, shade, thickness, cv2.LINE_8, 4)
        turn = np.concatenate([rng.uniform(0.05, 0.65, count), -rng.uniform(0.05, 0.65, count)])
        start, side = np.tile(lines[:, -1], (2, 1)), np.tile(side, 2)
        heading = np.tile(steps[:, -1], 2) + turn
        width, length = width * 0.74, length * 0.84
    lungs = chest.lung[RIGHT] + chest.lung[LEFT]
    texture = 0.012 * smooth_noise(rng, 75) + 0.012 * smooth_noise(rng, 28)
    hilum = np.hypot(np.abs(chest.grid_x) - 0.25 * chest.half_width, (chest.grid_y + 21) * 0.6) / rng.uniform(6, 9)
    hila = rng.uniform(0.1, 0.17) * np.exp(-(hilum**2))
    chest.vessels = (rng.uniform(0.13, 0.2) * soft(canvas, 0.75) + texture + hila) * lungs
