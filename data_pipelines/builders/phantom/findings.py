"""Which findings a chest has."""

from collections.abc import Callable

import numpy as np

from data_pipelines.builders.phantom.change import Change
from data_pipelines.builders.phantom.chest import Chest
from data_pipelines.builders.phantom.heart_and_devices import cardiomegaly, device
from data_pipelines.builders.phantom.parenchyma import atelectasis, consolidation, edema, nodule
from data_pipelines.builders.phantom.pleura import effusion, pneumothorax

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
_NUMBER = (0.12, 0.36, 0.34, 0.18)  # shares of chests with 0, 1, 2, 3 findings
_TRIES = 8  # places tried for a finding before the chest goes without it
_SMALLEST = 40  # pixels of a mask
_FAINTEST = 0.085  # mean change of brightness inside a mask
_MOST_SHARED = 0.15  # overlap, as a share of the smaller of two masks


def sample_changes(chest: Chest, rng: np.random.Generator) -> list[Change]:
    """0 to 3 findings of different categories, all visible. An enlarged heart is put into `chest`."""
    number = int(rng.choice(len(_NUMBER), p=_NUMBER))
    labels = [list(KINDS)[i] for i in rng.permutation(len(KINDS))[:number]]
    labels.sort(key=lambda label: label != "cardiomegaly")  # first: it decides how much lung the others can use
    changes: list[Change] = []
    for label in labels:
        for _ in range(_TRIES):
            change = KINDS[label](chest, rng)
            if _visible(change, changes):
                changes.append(change)
                if change.heart is not None:
                    chest.heart = change.heart
                break
    return changes


def _visible(change: Change, others: list[Change]) -> bool:
    """Whether a reader could see it: neither too small, nor behind the heart, nor under another finding."""
    area = int(change.mask.sum())
    if area < _SMALLEST or change.contrast < _FAINTEST:
        return False
    for other in others:
        if other.label != "cardiomegaly":
            shared = int((change.mask & other.mask).sum())
            if shared > _MOST_SHARED * min(area, int(other.mask.sum())):
                return False
    return True
