"""How varied phantoms come to their grey values: exposure, processing, field, and what else lies on a film.

Numbers are drawn wider than films differ, so that a network that reads all of these reads real ones too (domain
randomisation, Tobin et al. 2017, https://arxiv.org/abs/1703.06907).
"""

import cv2
import numpy as np

from data_pipelines.builders.phantom.change import Change
from data_pipelines.builders.phantom.chest import LEFT, RIGHT, Chest
from data_pipelines.builders.phantom.drawing import SIZE, blur, curve, disc, smooth_noise, soft, strokes
from data_pipelines.builders.phantom.render import Look, brightness, mark

_LETTERS = np.array(list("ABCDEFGHIJKLMNOPRSTUVWXYZ0123456789:./-"))


def varied_film(chest: Chest, changes: list[Change], rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """The image [224, 224] uint8 of a chest with its findings, and their masks as they lie on it."""
    look = Look(
        lungs=rng.uniform(0.65, 1.35),
        ribs=rng.uniform(0.3, 1.8),
        vessels=rng.uniform(0.5, 2.0),
        heart=rng.uniform(0.5, 2.0),
        abdomen=rng.uniform(-0.1, 0.35),
    )
    shade = scatter(brightness(chest, changes, look), chest.body, rng)
    layers = [shade, chest.body, chest.lung[RIGHT] + chest.lung[LEFT], *(change.mask for change in changes)]
    shade, body, lungs, *masks = warp(layers, rng)
    image = develop(shade, body, rng)
    mark(image, rng, chest.view)
    return compressed(lettered(framed(image, lungs, rng), rng), rng), masks


def scatter(shade: np.ndarray, body: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness with textures of several sizes, uneven exposure, lines and leads that no report names."""
    for cells in (5, 12, 30, 60, 100):
        shade = shade + rng.uniform(0, 0.03) * smooth_noise(rng, cells) * body
    across = np.linspace(-1, 1, SIZE, dtype=np.float32)
    shade = shade + rng.normal(0, 0.05) * across[None] + rng.normal(0, 0.06) * across[:, None]
    for _ in range(int(rng.integers(0, 5)) if rng.random() < 0.5 else 0):
        canvas = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
        points = rng.uniform(0, SIZE, (4, 2))
        strokes(curve(points, 8)[None], canvas, 255, rng.uniform(0.5, 2.0))
        shade = shade + rng.uniform(0.05, 0.4) * soft(canvas, 0.5)
    for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.4 else 0):  # electrodes
        canvas = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
        disc(rng.uniform(10, SIZE - 10, 2), rng.uniform(1.5, 5), canvas, 255)
        shade = shade + rng.uniform(0.1, 0.4) * soft(canvas)
    return shade


def warp(layers: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """The layers [224, 224] (float32 or bool), all bent alike by a smooth random field of some pixels."""
    amount = rng.uniform(0, 4.5)
    columns, rows = np.meshgrid(np.arange(SIZE, dtype=np.float32), np.arange(SIZE, dtype=np.float32))
    columns += np.float32(amount) * smooth_noise(rng, 3)
    rows += np.float32(amount) * smooth_noise(rng, 3)
    bent = []
    for layer in layers:
        moved = cv2.remap(
            layer.astype(np.float32), columns, rows, cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT if layer.dtype == bool else cv2.BORDER_REPLICATE,
        )  # fmt: skip
        bent.append(moved > 0.5 if layer.dtype == bool else moved)
    return bent


def develop(shade: np.ndarray, body: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image [224, 224] uint8 of a brightness: sharpness, noise, film curve, processing, range of grey."""
    shade = blur(shade, rng.uniform(0.3, 1.3)) if rng.random() < 0.5 else shade
    shade = shade + rng.uniform(0, 1.0) * (shade - blur(shade, rng.uniform(7, 18)))
    noise = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    noise = noise + cv2.GaussianBlur(noise, (3, 3), 0.8)
    shade = shade + np.exp(rng.uniform(np.log(0.001), np.log(0.02))) * noise
    low, high = np.quantile(shade[body > 0.3], (0.03, 0.97)) if (body > 0.3).any() else (0.0, 1.0)
    unit = (shade - low) / max(high - low, 0.1)  # the trunk's range, about 0 to 1
    slope = rng.uniform(2.0, 7.0)
    unit = 1 / (1 + np.exp(-slope * (unit - rng.uniform(0.3, 0.65))))
    ends = np.quantile(unit, (0.001, 0.999))
    unit = np.clip((unit - ends[0]) / max(ends[1] - ends[0], 1e-3), 0, 1) ** rng.uniform(0.7, 1.4)
    image = np.round(255 * unit).astype(np.uint8)
    if rng.random() < 0.3:
        image = cv2.createCLAHE(float(rng.uniform(1, 4)), (int(rng.integers(2, 9)),) * 2).apply(image)
    black, white = rng.uniform(0, 40), rng.uniform(185, 255)
    return np.round(black + (white - black) * (image.astype(np.float32) / 255)).astype(np.uint8)


def framed(image: np.ndarray, lungs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image with the bars of a film that is not square, or of a collimator. They do not reach the lungs.

    Args:
        lungs: [224, 224], the silhouette of both lungs.
    """
    image = image.copy()
    rows, columns = (np.flatnonzero((lungs > 0.5).any(axis)) for axis in (1, 0))
    room = np.array([rows[0], SIZE - 1 - rows[-1], columns[0], SIZE - 1 - columns[-1]]) if rows.size else np.zeros(4)
    share = np.zeros(4)
    if rng.random() < 0.5:
        share[:2] = rng.uniform(0, 0.8, 2)
    elif rng.random() < 0.4:
        share[2:] = rng.uniform(0, 0.8, 2)
    else:
        share = np.where(rng.random(4) < 0.3, rng.uniform(0, 0.5, 4), 0)
    top, bottom, left, right = (share * np.maximum(room - 2, 0)).astype(int).tolist()
    shade = int(rng.choice(np.array([0, 0, 0, rng.integers(0, 60), rng.integers(200, 256)])))
    image[:top], image[SIZE - bottom :] = shade, shade
    image[:, :left], image[:, SIZE - right :] = shade, shade
    return image


def lettered(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image with names, dates, scales and letters of figures near its corners, some of them on a plate."""
    image = image.copy()
    for _ in range(int(rng.integers(0, 4))):
        text = "".join(rng.choice(_LETTERS, int(rng.integers(1, 12))))
        x = int(rng.integers(0, 40)) if rng.random() < 0.5 else int(rng.integers(150, 215))
        y = int(rng.integers(8, 30)) if rng.random() < 0.5 else int(rng.integers(190, 222))
        size, bright = float(rng.uniform(0.2, 0.6)), int(rng.integers(150, 256))
        if rng.random() < 0.2:
            image[max(0, y - 14) : y + 4, max(0, x - 3) : x + int(len(text) * 18 * size) + 3] = 255 - bright
        cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, bright, 1, cv2.LINE_AA)
    return image


def compressed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image, half of them after JPEG."""
    if rng.random() < 0.5:
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 96))])
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))
    return image
