"""Reports of phantoms: sentences on present findings, absent findings and normal anatomy.

Templates are filled with the facts of a finding: {size}, {side}, {zone}, {kind}, {mm}, {lung} (one of two ways to name
side and zone) and {name} (a synonym of the category). Empty facts are left out. Some reports also name a finding
without any of its facts.
"""

from collections.abc import Iterable

import numpy as np

from data_pipelines.builders.phantom.change import Change
from data_pipelines.builders.phantom.findings import KINDS

_PROMPTS = {
    "pleural effusion": "{size} {side} pleural effusion",
    "pleural effusion/bilateral": "{size} bilateral pleural effusions",
    "pleural effusion/loculated": "{size} loculated pleural effusion in the {side} {zone} hemithorax",
    "pleural effusion/fissural": "{size} {side} fissural pleural effusion",
    "pleural effusion/subpulmonic": "{size} {side} subpulmonic pleural effusion",
    "pneumothorax": "{size} {side} {zone} pneumothorax",
    "consolidation": "{size} consolidation in the {side} {zone} lung",
    "consolidation/retrocardiac": "{side} retrocardiac consolidation",
    "nodule": "{size} nodule in the {side} {zone} lung",
    "cardiomegaly": "{size} cardiomegaly",
    "atelectasis": "band atelectasis in the {side} {zone} lung",
    "edema": "{size} bilateral {zone} edema",
    "edema/unilateral": "{size} edema in the {side} {zone} lung",
    "device": "{side} chest {kind}",
    "consolidation/bilateral": "bilateral {zone} lung consolidation",
    "ground glass opacity": "ground glass opacity in the {side} {zone} lung",
    "ground glass opacity/bilateral": "bilateral {zone} lung ground glass opacity",
}
_NAMES = {
    "pleural effusion": ("pleural effusion", "effusion", "pleural fluid"),
    "pneumothorax": ("pneumothorax",),
    "consolidation": (
        "consolidation",
        "airspace opacity",
        "airspace consolidation",
        "opacity suspicious for pneumonia",
    ),
    "nodule": ("nodule", "nodule", "nodular opacity", "rounded density"),
    "cardiomegaly": ("cardiomegaly", "enlargement of the heart", "enlargement of the cardiac silhouette"),
    "atelectasis": ("band atelectasis", "plate atelectasis", "linear atelectasis", "linear opacity due to atelectasis"),
    "edema": ("edema", "pulmonary edema", "interstitial edema"),
    "device": ("{kind}",),
    "ground glass opacity": ("ground glass opacity", "ground glass opacities", "ground glass opacification"),
}
_SENTENCES = {
    "pleural effusion": (
        "{size} {side} {name}",
        "there is a {size} {side} {name} at the base",
        "{size} {name} on the {side} with a meniscus",
        "{size} {side} {name} with blunting of the costophrenic angle",
        "blunting of the {side} costophrenic angle by a {size} {name}",
    ),
    "pleural effusion/bilateral": (
        "{size} bilateral pleural effusions",
        "there are {size} effusions on both sides",
        "blunting of both costophrenic angles by {size} effusions",
    ),
    "pleural effusion/loculated": (
        "{size} loculated {name} in the {side} {zone} hemithorax",
        "there is a {size} loculated {name} along the lateral wall of the {side} {zone} hemithorax",
        "{size} lenticular collection of loculated {name} in the {side} {zone} hemithorax",
    ),
    "pleural effusion/fissural": (
        "{size} {name} in the {side} minor fissure",
        "{size} fissural {name} in the {lung}",
        "{size} {side} fissural {name}",
    ),
    "pleural effusion/subpulmonic": (
        "{size} {side} subpulmonic {name}",
        "{size} subpulmonic {name} above the {side} diaphragm",
        "apparent elevation of the {side} diaphragm by a {size} subpulmonic {name}",
    ),
    "pneumothorax": (
        "{size} {side} {zone} {name}",
        "there is a {size} {zone} {name} on the {side}",
        "{size} {side} {zone} {name} with a visible pleural line",
        "{side} {zone} pleural line without lung markings beyond it due to a {size} {name}",
    ),
    "consolidation": (
        "{size} {name} in the {lung}",
        "there is {size} {name} in the {lung}",
        "{kind} {name} in the {lung}",
        "{size} {kind} {name} with air bronchograms in the {lung}",
    ),
    "consolidation/retrocardiac": (
        "{side} retrocardiac {name}",
        "{name} behind the heart on the {side}",
        "there is {side} retrocardiac {name}",
    ),
    "nodule": (
        "{size} {kind} {name} in the {lung}",
        "there is a {size} {name} in the {lung}",
        "{size} {name} measuring {mm} mm in the {lung}",
        "{kind} {name} of {mm} mm projects over the {lung}",
    ),
    "cardiomegaly": ("{size} {name}", "there is {size} {name}", "the heart is enlarged", "enlarged cardiac silhouette"),
    "atelectasis": (
        "{name} in the {lung}",
        "there is {name} in the {lung}",
        "{kind} band of atelectasis in the {lung}",
        "{size} {kind} {name} in the {lung}",
    ),
    "edema": (
        "{size} bilateral {zone} {name}",
        "{size} {name} with bilateral {zone} haze",
        "bilateral {zone} interstitial opacities due to {size} {name}",
        "bilateral {zone} haze and septal lines due to {size} {name}",
    ),
    "edema/unilateral": (
        "{size} {name} in the {lung}",
        "{size} asymmetric {name} in the {lung}",
        "interstitial opacities in the {lung} due to {size} {name}",
        "haze and septal lines in the {lung} due to {size} {name}",
    ),
    "device/pacemaker": (
        "{side} chest pacemaker with leads in place",
        "pacemaker over the {side} chest",
        "{side} sided pacemaker generator",
    ),
    "device/port": (
        "{side} chest port with catheter tip in the superior vena cava",
        "port over the {side} chest",
        "{side} sided infusion port in place",
    ),
    "consolidation/bilateral": (
        "bilateral {zone} lung {name}",
        "{name} in both lungs",
        "bilateral {name} with air bronchograms in the {zone} zones",
    ),
    "ground glass opacity": (
        "{name} in the {lung}",
        "{name} seen in the {lung}",
        "hazy {name} in the {lung}",
    ),
    "ground glass opacity/bilateral": (
        "bilateral {zone} lung {name}",
        "bilateral {name}",
        "{name} in both lungs in the {zone} zones",
    ),
}
ALONE = ("{name} is present", "{name} is seen", "evidence of {name}", "presence of {name}")
# Reports of varied phantoms have more wordings, because their models are to be asked as those of radiographs are.
VARIED_ALONE = (
    *ALONE,
    "findings suggesting {name}",
    "findings suggestive of {name}",
    "findings consistent with {name}",
    "{name}",
    "there is {name}",
    "x ray shows {name}",
)
_ABSENT = {
    "pleural effusion": (
        "no pleural effusion",
        "there is no effusion",
        "costophrenic angles are clear",
        "no pleural fluid",
    ),
    "pneumothorax": ("no pneumothorax", "there is no pneumothorax", "no evidence of pneumothorax"),
    "consolidation": ("no consolidation", "no focal consolidation", "no airspace opacity", "no evidence of pneumonia"),
    "nodule": ("no nodule", "no suspicious nodule", "there is no nodule or mass"),
    "cardiomegaly": (
        "heart size is normal",
        "the heart is normal in size",
        "no cardiomegaly",
        "normal cardiac silhouette",
    ),
    "atelectasis": ("no atelectasis", "there is no atelectasis"),
    "edema": ("no pulmonary edema", "no edema", "pulmonary vascularity is normal"),
    "device": ("no pacemaker or port", "no implanted device"),
    "ground glass opacity": ("no ground glass opacity", "no ground glass opacities"),
}
_NORMAL = (
    "the trachea is midline",
    "bony structures are intact",
    "no acute bony abnormality",
    "ribs and clavicles are intact",
    "the aorta is unremarkable",
    "no rib fracture",
)
_CLEAR = ("the lungs are clear", "both lungs are clear", "lungs are well expanded and clear")
_NOTHING = ("no acute cardiopulmonary abnormality", "normal chest radiograph", "no acute finding")
_BEFORE = ("", "", "", "", "probable", "likely")
_AFTER = ("", "", "", "", "unchanged from prior", "new since the prior study", "similar to the previous examination")


def prompt(change: Change) -> str:
    """The prompt of a finding. The same facts always give the same prompt."""
    return _fill(_lookup(_PROMPTS, change), change, name="", lung="")


def describe(change: Change, rng: np.random.Generator) -> str:
    """A random sentence that states a finding."""
    name = _choose(rng, _NAMES[change.label])
    lung = _choose(rng, (f"{change.side} {change.zone} lung", f"{change.side} {change.zone} zone"))
    return _fill(_choose(rng, _lookup(_SENTENCES, change)), change, name=name, lung=lung)


def name_alone(change: Change, rng: np.random.Generator, wordings: tuple[str, ...] = ALONE) -> str:
    """A random sentence that names a finding without side, zone or size."""
    name = _fill(_choose(rng, (change.label, *_NAMES[change.label])), change)
    return _choose(rng, wordings).format(name=name)


def report(
    changes: list[Change],
    rng: np.random.Generator,
    named: float = 0.0,
    labels: Iterable[str] = KINDS,
    wordings: tuple[str, ...] = ALONE,
) -> tuple[list[str], int]:
    """The sentences of a report, and the number of leading sentences that are the impression.

    Each finding is also named alone with probability `named`. The other sentences do not depend on it. Those of
    `labels` that are not there may be denied. `wordings` are those of names alone.
    """
    present = {change.label for change in changes}
    body = [describe(change, rng) for change in changes]
    absent = [label for label in labels if label not in present]
    denied = int(rng.integers(1, 4)) if changes else int(rng.integers(3, 6))
    body += [_choose(rng, _ABSENT[label]) for label in rng.permutation(absent)[:denied]]
    if rng.random() < 0.5:
        body.append(_choose(rng, _NORMAL))
    if present <= {"device", "cardiomegaly"} and rng.random() < 0.6:
        body.append(_choose(rng, _CLEAR))
    body = [body[i] for i in rng.permutation(len(body))]
    impression: list[str] = []
    if rng.random() < 0.6:
        chosen = rng.permutation(len(changes))[: int(rng.integers(1, 3))]
        impression = [_hedge(prompt(changes[i]), rng) for i in chosen] or [_choose(rng, _NOTHING)]
    for change in changes:
        if rng.random() < named:
            body.insert(int(rng.integers(len(body) + 1)), name_alone(change, rng, wordings))
    return impression + body, len(impression)


def _hedge(phrase: str, rng: np.random.Generator) -> str:
    return _single_spaced(f"{_choose(rng, _BEFORE)} {phrase} {_choose(rng, _AFTER)}")


def _lookup(table: dict, change: Change):
    return table.get(f"{change.label}/{change.kind}") or table[change.label]


def _fill(template: str, change: Change, **words: str) -> str:
    facts = {"size": change.size, "side": change.side, "zone": change.zone, "mm": change.millimetres}
    return _single_spaced(template.format(**words, **facts, kind=change.kind))


def _single_spaced(text: str) -> str:
    return " ".join(text.split())


def _choose(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
