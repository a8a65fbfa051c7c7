"""The random choice of findings of a chest."""

from collections.abc import Callable, Mapping

import numpy as np

from data_pipelines.builders.phantom.change import Change
from data_pipelines.builders.phantom.chest import Chest
from data_pipelines.builders.phantom.heart_and_devices import cardiomegaly, device
from data_pipelines.builders.phantom.opacities import consolidation as pneumonia
from data_pipelines.builders.phantom.opacities import ground_glass
from data_pipelines.builders.phantom.parenchyma import atelectasis, consolidation, edema, nodule
from data_pipelines.builders.phantom.pleura import effusion, pneumothorax

Kinds = Mapping[str, Callable[[Chest, np.random.Generator], Change]]
KINDS: Kinds = {
    "pleural effusion": effusion,
    "pneumothorax": pneumothorax,
    "consolidation": consolidation,
    "nodule": nodule,
    "cardiomegaly": cardiomegaly,
    "atelectasis": atelectasis,
    "edema": edema,
    "device": device,
}
# Those of varied phantoms, and how often each comes beside the others.
VARIED_KINDS: Kinds = {**KINDS, "consolidation": pneumonia, "ground glass opacity": ground_glass}
_OFTEN = {"consolidation": 2.5, "ground glass opacity": 3.5}
_NUMBER = (0.12, 0.36, 0.34, 0.18)  # shares of chests with 0, 1, 2, 3 findings
_TRIES = 8  # places tried for a finding before it is left out
_SMALLEST = 40  # smallest mask in pixels
_FAINTEST = 0.085  # smallest mean change of brightness inside a mask
_MOST_SHARED = 0.15  # largest overlap of two masks, as a share of the smaller one


def sample_changes(chest: Chest, rng: np.random.Generator, kinds: Kinds = KINDS) -> list[Change]:
    """0 to 3 visible findings of different categories. An enlarged heart replaces that of `chest`."""
    number = int(rng.choice(len(_NUMBER), p=_NUMBER))
    if kinds is KINDS:  # as they were drawn before there were others
        chosen = rng.permutation(len(kinds))[:number]
    else:
        weights = np.array([_OFTEN.get(label, 1.0) for label in kinds])
        chosen = rng.choice(len(kinds), number, replace=False, p=weights / weights.sum())
    labels = [list(kinds)[i] for i in chosen]
    labels.sort(key=lambda label: label != "cardiomegaly")  # first: it decides how much lung the others can use
    changes: list[Change] = []
    for label in labels:
        for _ in range(_TRIES):
            change = kinds[label](chest, rng)
            if _visible(change, changes):
                changes.append(change)
                if change.heart is not None:
                    chest.heart = change.heart
                break
    return changes


def _visible(change: Change, others: list[Change]) -> bool:
    """Whether a finding is visible: neither too small, nor too faint, nor hidden by another finding."""
    area = int(change.mask.sum())
    if area < _SMALLEST or change.contrast < _FAINTEST:
        return False
    for other in others:
        if other.label != "cardiomegaly":
            shared = int((change.mask & other.mask).sum())
            if shared > _MOST_SHARED * min(area, int(other.mask.sum())):
                return False
    return True
