"""Rendering of layers and findings to an image: attenuation, then the detector."""

from dataclasses import dataclass

import cv2
import numpy as np

from data_pipelines.builders.phantom.change import Change
from data_pipelines.builders.phantom.chest import LUNG_CONTRAST, RIGHT, Chest
from data_pipelines.builders.phantom.drawing import SIZE, blur, step

_HEART_CONTRAST = 0.13  # brightness that a full thickness of heart adds
_BEHIND_HEART = 0.6  # share of the contrast of ribs and vessels that is lost behind heart and mediastinum


@dataclass(frozen=True)
class Look:
    """Factors of the brightness of parts of a chest."""

    lungs: float = 1.0
    ribs: float = 1.0
    vessels: float = 1.0
    heart: float = 1.0
    abdomen: float = 0.0  # brightness added below the diaphragm


USUAL_LOOK = Look()


def render(chest: Chest, changes: list[Change], rng: np.random.Generator) -> np.ndarray:
    """The image [224, 224] uint8 of a chest with its findings. `chest.heart` may be enlarged already."""
    return expose(brightness(chest, changes), rng, chest.view)


def brightness(chest: Chest, changes: list[Change], look: Look = USUAL_LOOK) -> np.ndarray:
    """The brightness [224, 224] of a chest with its findings, in the units of its layers, before the detector."""
    air = np.ones((SIZE, SIZE), np.float32)
    markings = np.ones((SIZE, SIZE), np.float32)
    added = np.zeros((SIZE, SIZE), np.float32)
    for change in changes:
        if change.opacity is not None:
            air *= 1 - change.opacity
            markings *= 1 - change.opacity
        if change.cleared is not None:
            markings *= 1 - change.cleared
        if change.added is not None:
            added += change.added
    central = chest.central
    shade = chest.solid + look.heart * _HEART_CONTRAST * central * (0.6 + 0.4 * blur(central, 9.0))
    shade = shade - look.lungs * LUNG_CONTRAST * chest.visible_air() * air
    lines = look.ribs * chest.ribs + look.vessels * chest.vessels * markings
    shade = shade + lines * (1 - _BEHIND_HEART * central) + added
    if look.abdomen:
        shade = shade + look.abdomen * step((chest.grid_y - chest.dome[RIGHT] - 8) / 8) * chest.body
    return shade


def expose(shade: np.ndarray, rng: np.random.Generator, view: str = "PA") -> np.ndarray:
    """The image [224, 224] uint8 of a brightness: edge enhancement, quantum noise, film curve, collimation, markers."""
    shade = shade + rng.uniform(0.0, 0.45) * (shade - blur(shade, 12.0))
    noise = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    noise = noise + cv2.GaussianBlur(noise, (3, 3), 0.8)
    shade = shade + rng.uniform(0.003, 0.010) * noise
    slope = rng.uniform(3.6, 4.9)  # slope of the film curve, whose toe and shoulder keep some detail in black and white
    shade = 1 / (1 + np.exp(-slope * (shade - rng.uniform(0.43, 0.53))))
    low, high = 1 / (1 + np.exp(0.5 * slope)), 1 / (1 + np.exp(-0.5 * slope))
    image = np.round(255 * np.clip((shade - low) / (high - low), 0, 1)).astype(np.uint8)
    _collimate(image, rng)
    mark(image, rng, view)
    return image


def _collimate(image: np.ndarray, rng: np.random.Generator) -> None:
    """Adds black borders of the collimator, on some sides of some images."""
    if rng.random() < 0.35:
        top, bottom, left, right = np.where(rng.random(4) < 0.6, rng.integers(2, 11, 4), 0).tolist()
        image[:top] = 0
        image[SIZE - bottom :] = 0
        image[:, :left] = 0
        image[:, SIZE - right :] = 0


def mark(image: np.ndarray, rng: np.random.Generator, view: str) -> None:
    """Draws a side marker, L or R beside the patient's shoulder of that side, and on many AP views "AP"."""
    if rng.random() < 0.7:
        left = rng.random() < 0.6
        x = int(rng.integers(194, 208)) if left else int(rng.integers(8, 20))
        y = int(rng.integers(18, 44))
        size, bright = float(rng.uniform(0.3, 0.45)), int(rng.integers(190, 250))
        _write(image, "L" if left else "R", x, y, size, bright)
        if view == "AP" and rng.random() < 0.7:
            _write(image, "AP", x - (6 if left else 0), y + 12, 0.36, bright)


def _write(image: np.ndarray, text: str, x: int, y: int, size: float, bright: int) -> None:
    letters = np.zeros_like(image)
    cv2.putText(letters, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, bright, 1, cv2.LINE_AA)
    np.maximum(image, letters, out=image)
