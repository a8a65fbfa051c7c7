"""Words for a chest: sentences that say what is there, what is not, and what is normal."""

import numpy as np

from data_pipelines.builders.phantom.findings import Change


def _choose(rng: np.random.Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]


def prompt(change: Change) -> str:
    """The phrase that asks for a finding: size, side, name, zone; the same for the same attributes."""
    side, zone, size = change.side, change.zone, change.size
    lung = f"{side} {zone} lung"
    if change.label == "pleural effusion":
        if change.kind == "bilateral":
            return f"{size} bilateral pleural effusions"
        detail = {"free": "", "loculated": "loculated ", "fissural": "fissural ", "subpulmonic": "subpulmonic "}[change.kind]
        place = f" in the {side} {zone} hemithorax" if change.kind == "loculated" else ""
        return f"{size} {'' if place else side + ' '}{detail}pleural effusion{place}"
    if change.label == "pneumothorax":
        return " ".join(filter(None, [size, side, zone, "pneumothorax"]))
    if change.label == "consolidation":
        if zone == "retrocardiac":
            return "left retrocardiac consolidation"
        return f"consolidation in the {lung}"
    if change.label == "nodule":
        return f"{size + ' ' if size else ''}nodule in the {lung}"
    if change.label == "cardiomegaly":
        return f"{size} cardiomegaly"
    if change.label == "atelectasis":
        return f"band atelectasis in the {lung}"
    if change.label == "edema":
        if side == "bilateral":
            return f"{size} bilateral {zone} edema"
        return f"{size} edema in the {lung}"
    return f"{side} chest {change.kind}"


def describe(change: Change, rng: np.random.Generator) -> str:
    """One of many sentences for a finding."""
    side, zone, size, kind = change.side, change.zone, change.size, change.kind
    lung = _choose(rng, f"{side} {zone} lung", f"{side} {zone} zone")
    sized = f"{size} " if size else ""
    if change.label == "pleural effusion":
        fluid = _choose(rng, "pleural effusion", "effusion", "pleural fluid collection")
        if kind == "free":
            tail = _choose(rng, "", " with blunting of the costophrenic angle", " with a meniscus", " at the base")
            return _choose(
                rng,
                f"{sized}{side} {fluid}{tail}",
                f"there is a {sized}{side} {fluid}{tail}",
                f"{sized}{fluid} on the {side}{tail}",
                f"blunting of the {side} costophrenic angle by a {sized}{fluid}",
            )
        if kind == "bilateral":
            return _choose(rng, f"{sized}bilateral pleural effusions", f"there are {sized}bilateral effusions", f"{sized}effusions on both sides")
        if kind == "loculated":
            return _choose(
                rng,
                f"{sized}loculated {fluid} along the lateral wall of the {side} {zone} hemithorax",
                f"{sized}loculated {fluid} in the {side} {zone} hemithorax",
            )
        if kind == "fissural":
            return _choose(rng, f"{sized}{fluid} in the {side} minor fissure", f"{sized}fissural {fluid} in the {side} mid zone")
        return _choose(rng, f"{sized}{side} subpulmonic {fluid}", f"{sized}subpulmonic {fluid} above the {side} diaphragm")
    if change.label == "pneumothorax":
        place = f"{zone} " if zone else ""
        return _choose(
            rng,
            f"{sized}{side} {place}pneumothorax",
            f"there is a {sized}{place}pneumothorax on the {side}",
            f"{sized}{side} {place}pneumothorax with a visible pleural line",
            f"{side} {place}pleural line without lung markings beyond it in keeping with a {sized}pneumothorax",
        )
    if change.label == "consolidation":
        what = _choose(rng, "consolidation", "airspace opacity", "airspace consolidation", "opacity suspicious for pneumonia")
        if kind == "retrocardiac":
            return _choose(rng, f"left retrocardiac {what}", f"{what} behind the heart on the left")
        tail = " with air bronchograms" if rng.random() < 0.3 else ""
        adjective = {"lobar": "dense ", "patchy": "patchy "}[kind] if rng.random() < 0.6 else ""
        return _choose(rng, f"{sized}{adjective}{what} in the {lung}{tail}", f"there is {adjective}{what} in the {lung}{tail}")
    if change.label == "nodule":
        what = "nodule" if kind == "smooth" else f"{kind} nodule"
        what = _choose(rng, what, what, f"rounded {what}", "nodular opacity", "rounded density")
        tail = f" measuring {change.millimetres} mm" if rng.random() < 0.45 else ""
        return _choose(rng, f"{sized}{what} in the {lung}{tail}", f"there is a {sized}{what} in the {lung}{tail}", f"{sized}{what}{tail} projects over the {lung}")
    if change.label == "cardiomegaly":
        return _choose(
            rng, f"{size} cardiomegaly", f"there is {size} cardiomegaly", f"{size} enlargement of the heart",
            "the heart is enlarged", "enlarged cardiac silhouette", f"{size} enlargement of the cardiac silhouette",
        )  # fmt: skip
    if change.label == "atelectasis":
        what = _choose(rng, "band atelectasis", "plate atelectasis", "linear atelectasis", "band like atelectasis", "linear opacity consistent with atelectasis")
        return _choose(rng, f"{what} in the {lung}", f"there is {what} in the {lung}", f"{kind} band of atelectasis in the {lung}")
    if change.label == "edema":
        what = _choose(rng, "edema", "pulmonary edema", "interstitial edema")
        if side == "bilateral":
            where = {"perihilar": "perihilar", "basal": "basal", "upper": "upper zone"}[zone]
            return _choose(rng, f"{size} bilateral {where} {what}", f"{size} {what} with bilateral {where} haze", f"bilateral {where} interstitial opacities in keeping with {size} {what}")
        return _choose(rng, f"{size} {what} in the {lung}", f"{size} asymmetric {what} in the {lung}", f"interstitial opacities in the {lung} in keeping with {size} {what}")
    if kind == "pacemaker":
        return _choose(rng, f"{side} chest pacemaker with leads in place", f"pacemaker over the {side} chest", f"{side} sided pacemaker generator")
    return _choose(rng, f"{side} chest port with catheter tip in the superior vena cava", f"port over the {side} chest", f"{side} sided port catheter in place")


_ABSENT = {
    "pleural effusion": ("no pleural effusion", "there is no effusion", "costophrenic angles are clear", "no pleural fluid"),
    "pneumothorax": ("no pneumothorax", "there is no pneumothorax", "no evidence of pneumothorax"),
    "consolidation": ("no consolidation", "no focal consolidation", "no airspace opacity", "no evidence of pneumonia"),
    "nodule": ("no nodule", "no suspicious nodule", "no nodule or mass"),
    "cardiomegaly": ("heart size is normal", "the heart is normal in size", "no cardiomegaly", "normal cardiac silhouette"),
    "atelectasis": ("no atelectasis", "there is no atelectasis"),
    "edema": ("no pulmonary edema", "no edema", "pulmonary vascularity is normal"),
    "device": ("no pacemaker or port", "no implanted device"),
}
_COMMON = (
    "the trachea is midline", "bony structures are intact", "no acute bony abnormality", "ribs and clavicles are intact",
    "mediastinal contours are normal", "the aorta is unremarkable", "no rib fracture",
)  # fmt: skip


def report(changes: list[Change], rng: np.random.Generator) -> tuple[list[str], int]:
    """Sentences and how many of them (the leading ones) are the impression."""
    present = {change.label for change in changes}
    body = [describe(change, rng) for change in changes]
    absent = [label for label in _ABSENT if label not in present]
    count = int(rng.integers(1, 4)) if changes else int(rng.integers(3, 6))
    body += [_choose(rng, *_ABSENT[label]) for label in rng.permutation(absent)[:count]]
    if rng.random() < 0.5:
        body.append(_choose(rng, *_COMMON))
    if not present - {"device"} and rng.random() < 0.6:
        body.append(_choose(rng, "the lungs are clear", "both lungs are clear", "lungs are well expanded and clear"))
    body = [body[i] for i in rng.permutation(len(body))]
    impression: list[str] = []
    if rng.random() < 0.6:
        if changes:
            chosen = rng.permutation(len(changes))[: int(rng.integers(1, 3))]
            impression = [_hedge(prompt(changes[i]), rng) for i in chosen]
        else:
            impression = [_choose(rng, "no acute cardiopulmonary abnormality", "normal chest radiograph", "no acute finding")]
    return impression + body, len(impression)


def _hedge(phrase: str, rng: np.random.Generator) -> str:
    before = _choose(rng, "", "", "", "", "probable ", "likely ")
    after = _choose(rng, "", "", "", "", " unchanged from prior", " new since the prior study", " similar to the previous examination")
    return f"{before}{phrase}{after}"
