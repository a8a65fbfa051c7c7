"""From a seed to a chest radiograph with its report and exact masks."""

from dataclasses import dataclass

import cv2
import numpy as np

from data_pipelines.builders.phantom.anatomy import LUNG_CONTRAST, SIZE, Chest, blur, sample_chest
from data_pipelines.builders.phantom.findings import KINDS, Change, lung_air
from data_pipelines.builders.phantom.reporting import prompt, report

SPLITS = {"train": 0, "validation": 1, "test": 2}
CATEGORIES = tuple(KINDS)
_COUNT_WEIGHTS = (0.12, 0.36, 0.34, 0.18)  # chests with 0, 1, 2, 3 findings


@dataclass(frozen=True)
class Finding:
    """One annotated finding: category, the phrase that asks for it, the pixels that show it."""

    label: str
    prompt: str
    mask: np.ndarray  # [224, 224] bool
    side: str  # right, left, bilateral or "": the PATIENT's side
    zone: str
    size: str


@dataclass(frozen=True)
class Phantom:
    image: np.ndarray  # [224, 224] uint8
    sentences: list[str]  # lower case, without periods; the leading `impression_count` form the impression
    impression_count: int
    findings: list[Finding]
    view: str  # PA or AP


def generate(seed: int, split: str, index: int) -> Phantom:
    """The phantom number `index` of a split; the same arguments give the same bits.

    Raises ValueError for an unknown split or a negative number.
    """
    chest, changes, rngs = _draw(seed, split, index)
    sentences, impression_count = report(changes, rngs["report"])
    findings = [Finding(c.label, prompt(c), c.mask, c.side, c.zone, c.size) for c in changes]
    image = render(chest, changes, rngs["exposure"])
    return Phantom(image, sentences, impression_count, findings, "PA")


def _draw(seed: int, split: str, index: int) -> tuple[Chest, list[Change], dict[str, np.random.Generator]]:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got seed {seed} and index {index}")
    root = np.random.default_rng([seed, SPLITS[split], index])
    rngs = dict(zip(("chest", "findings", "report", "exposure"), root.spawn(4), strict=True))
    chest = sample_chest(rngs["chest"])
    return chest, sample_changes(chest, rngs["findings"]), rngs


def sample_changes(chest: Chest, rng: np.random.Generator) -> list[Change]:
    """0 to 3 findings of different categories that do not hide one another."""
    count = int(rng.choice(len(_COUNT_WEIGHTS), p=_COUNT_WEIGHTS))
    labels = [CATEGORIES[i] for i in rng.permutation(len(CATEGORIES))[:count]]
    labels.sort(key=lambda label: label != "cardiomegaly")  # first: it decides how much lung the others can use
    changes: list[Change] = []
    for label in labels:
        for _ in range(6):
            change = KINDS[label](chest, rng)
            if _acceptable(change, changes):
                changes.append(change)
                if change.heart is not None:
                    chest.heart = change.heart
                break
    return changes


def _acceptable(change: Change, others: list[Change]) -> bool:
    area = int(change.mask.sum())
    if area < 40 or change.contrast < 0.085:
        return False  # too little to see: behind the heart, at the edge of the lung
    for other in others:
        if "cardiomegaly" in (other.label, change.label):
            continue
        shared = int((change.mask & other.mask).sum())
        if shared > 0.15 * min(area, int(other.mask.sum())):
            return False
    return True


def render(chest: Chest, changes: list[Change], rng: np.random.Generator) -> np.ndarray:
    """Layers and findings to a uint8 [224, 224] image."""
    clear = np.ones((SIZE, SIZE), np.float32)
    markings = np.ones((SIZE, SIZE), np.float32)
    added = np.zeros((SIZE, SIZE), np.float32)
    for change in changes:
        if change.opacity is not None:
            clear *= 1 - change.opacity
            markings *= 1 - change.opacity
        if change.cleared is not None:
            markings *= 1 - change.cleared
        if change.added is not None:
            added += change.added
    central = np.maximum(chest.heart, chest.mediastinum)
    thickness = central * (0.6 + 0.4 * blur(central, 9.0))
    shade = chest.solid + 0.13 * thickness - LUNG_CONTRAST * lung_air(chest) * clear
    shade += (chest.ribs + chest.vessels * markings) * (1 - 0.6 * central) + added
    return expose(shade, rng)


def expose(shade: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sharpening, quantum noise, film curve, collimation and a side marker."""
    shade = shade + rng.uniform(0.0, 0.45) * (shade - blur(shade, 12.0))
    noise = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    noise = noise + cv2.GaussianBlur(noise, (3, 3), 0.8)
    shade = shade + rng.uniform(0.003, 0.010) * noise
    slope = rng.uniform(3.6, 4.9)  # of the film curve, whose toe and shoulder keep some detail in black and white
    shade = 1 / (1 + np.exp(-slope * (shade - rng.uniform(0.43, 0.53))))
    low, high = 1 / (1 + np.exp(0.5 * slope)), 1 / (1 + np.exp(-0.5 * slope))
    shade = np.clip((shade - low) / (high - low), 0, 1)
    _collimate(shade, rng)
    _mark(shade, rng)
    return np.round(255 * shade).astype(np.uint8)


def _collimate(shade: np.ndarray, rng: np.random.Generator) -> None:
    """Black borders where the beam was closed: on some images, on some sides."""
    if rng.random() < 0.35:
        edges = np.where(rng.random(4) < 0.6, rng.integers(2, 11, 4), 0)
        top, bottom, left, right = (int(edge) for edge in edges)
        frame = np.zeros_like(shade)
        frame[top : SIZE - bottom, left : SIZE - right] = 1
        shade *= frame


def _mark(shade: np.ndarray, rng: np.random.Generator) -> None:
    """A lead letter: L beside the patient's left shoulder or R beside the right."""
    if rng.random() < 0.7:
        left = rng.random() < 0.6
        x = int(rng.integers(196, 210)) if left else int(rng.integers(8, 20))
        y = int(rng.integers(18, 44))
        size = float(rng.uniform(0.3, 0.45))
        letter = np.zeros((SIZE, SIZE), np.uint8)
        cv2.putText(letter, "L" if left else "R", (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, 255, 1, cv2.LINE_AA)
        np.maximum(shade, letter.astype(np.float32) * (0.9 / 255), out=shade)
