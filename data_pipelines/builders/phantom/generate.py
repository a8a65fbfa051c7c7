"""The generator of phantoms: a chest radiograph with its report and exact masks, from a seed."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.builders.phantom.anatomy import sample_chest
from data_pipelines.builders.phantom.change import Change
from data_pipelines.builders.phantom.chest import USUAL_POSE, VARIED_POSE, Chest
from data_pipelines.builders.phantom.film import varied_film
from data_pipelines.builders.phantom.findings import KINDS, VARIED_KINDS, Kinds, sample_changes
from data_pipelines.builders.phantom.render import render
from data_pipelines.builders.phantom.reporting import ALONE, VARIED_ALONE, prompt, report

SPLITS = {"train": 0, "validation": 1, "test": 2}  # part of the seed of every phantom
CATEGORIES = tuple(KINDS)


@dataclass(frozen=True)
class DrawnFinding:
    """One drawn finding: its category, its prompt, its mask."""

    label: str
    prompt: str
    mask: np.ndarray  # [224, 224] bool
    side: str  # right, left, bilateral or "": the PATIENT's side
    zone: str  # apical, lateral, basal, upper, mid, lower, perihilar, retrocardiac or ""
    size: str  # small, moderate, large, or mild, moderate, severe, or ""


@dataclass(frozen=True)
class Phantom:
    """One phantom: the radiograph, its report and its findings."""

    image: np.ndarray  # [224, 224] uint8
    sentences: list[str]  # lower case, without periods; the leading `impression_count` form the impression
    impression_count: int
    findings: list[DrawnFinding]
    view: str  # PA or AP


def generate(seed: int, split: str, index: int, named: float = 0.0, varied: bool = False) -> Phantom:
    """Phantom number `index` of a split. The same arguments give exactly the same phantom.

    `named` is the share of findings that the report also names alone, without side, zone and size. A `varied` phantom
    is another chest: places, textures, exposure and processing differ widely, and opacities of pneumonia are frequent.
    Raises ValueError for an unknown split or a negative number.
    """
    chest, changes, rngs = draw(seed, split, index, varied)
    wordings = VARIED_ALONE if varied else ALONE
    sentences, impression_count = report(changes, rngs["report"], named, kinds_of(varied), wordings)
    masks = [change.mask for change in changes]
    if varied:
        image, masks = varied_film(chest, changes, rngs["exposure"])
    else:
        image = render(chest, changes, rngs["exposure"])
    findings = [
        DrawnFinding(c.label, prompt(c), mask, c.side, c.zone, c.size) for c, mask in zip(changes, masks, strict=True)
    ]
    return Phantom(image, sentences, impression_count, findings, chest.view)


def kinds_of(varied: bool) -> Kinds:
    """The kinds of finding of varied phantoms, or of the others."""
    return VARIED_KINDS if varied else KINDS


def draw(
    seed: int, split: str, index: int, varied: bool = False
) -> tuple[Chest, list[Change], dict[str, np.random.Generator]]:
    """The chest and the findings before rendering, and the random generators for the next steps."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got seed {seed} and index {index}")
    names = ("chest", "findings", "report", "exposure")
    rngs = dict(zip(names, np.random.default_rng([seed, SPLITS[split], index]).spawn(len(names)), strict=True))
    chest = sample_chest(rngs["chest"], VARIED_POSE if varied else USUAL_POSE)
    return chest, sample_changes(chest, rngs["findings"], kinds_of(varied)), rngs
