"""Whether what a prompt names is in an image: a calibrated probability, from the evidence of both towers.

The evidence of a prompt in an image is three numbers:

    peak     the largest cosine of a region of the deep map with the query of the heat map
    whole    the cosine of the global image vector with that query
    words    the logarithm of the prompt's number of words: the name of a class alone has lower peaks than a phrase

A phrase that names nothing in a chest has no special rule: no region of an image is near it, so its peak is low.
`afloc calibrate` fits the rest (`evaluation/presence/fit.py`).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from afloc_jax.inference.class_prompts import class_key
from afloc_jax.inference.pairs import Pairs, grid
from afloc_jax.weights.calibration import Calibration, ClassFit
from data_pipelines.negatives import is_affirmed
from data_pipelines.statements import pattern_of


def evidence_of(
    peaks: Float[np.ndarray, " P"],
    images: Float[np.ndarray, "P D"],
    queries: Float[np.ndarray, "P D"],
    texts: Sequence[str],
) -> Float[np.ndarray, "P E"]:
    """The evidence of P pairs, in the order of `weights.calibration.EVIDENCE`.

    Args:
        peaks: the largest cosine of a region with the query.
        images: the global image vector of each pair.
        queries: the query of the heat map of each pair.
        texts: the cleaned prompt of each pair.
    """
    a, b = images.astype(np.float64), queries.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    whole = (a * b).sum(axis=1) / np.where(norms > 0, norms, 1)
    words = np.log([max(1, len(text.split())) for text in texts])
    return np.stack([peaks.astype(np.float64), whole, words], axis=1)


def presence(calibration: Calibration, evidence: Float[np.ndarray, "P E"], texts: Sequence[str]) -> list[float | None]:
    """The probability of presence of P prompts in their images.

    Args:
        calibration: of the model.
        evidence: a row for each pair of a prompt and an image.
        texts: the cleaned prompt of each pair.

    Returns:
        Probabilities; None for a prompt that denies a finding or says that all is normal, because findings alone are
        calibrated.
    """
    fits = {text: class_of(text, calibration) for text in dict.fromkeys(texts)}
    return [
        calibration.probability(float(logit), fits[text]) if is_affirmed(text) else None
        for logit, text in zip(calibration.logits(evidence), texts, strict=True)
    ]


def presence_of_all(
    calibration: Calibration | None, found: Pairs, queries: Float[np.ndarray, "T D"], texts: Sequence[str]
) -> list[list[float | None]]:
    """For each image the presence of each text.

    Args:
        calibration: of the model; None for a model that is not calibrated.
        found: the pairs of all images and all texts, see `pairs.grid`.
        queries: of the texts.
        texts: cleaned prompts.
    """
    images = len(found.images)
    if calibration is None:
        return [[None] * len(texts) for _ in range(images)]
    image_of, text_of = grid(images, len(texts))
    read = [texts[k] for k in text_of]
    present = presence(calibration, evidence_of(found.peaks, found.images[image_of], queries[text_of], read), read)
    return [present[start : start + len(texts)] for start in range(0, len(present), len(texts))]


def class_of(text: str, calibration: Calibration) -> ClassFit | None:
    """The class that a prompt names by its words; None if it names none, or several.

    A name within a longer one does not count, as "opacity" in "airspace opacity".

    >>> known = Calibration(classes=(ClassFit("edema", ("edema",)), ClassFit("effusion", ("effusion", "fluid"))))
    >>> [fit and fit.name for fit in (class_of(text, known) for text in ("mild edema", "edema with fluid", "zebra"))]
    ['edema', None, None]
    """
    lower = class_key(text)
    mentions = [
        (fit, match.span())
        for fit in calibration.classes
        if fit.words
        for match in pattern_of(fit.words).finditer(lower)
    ]
    named = {
        fit.name: fit
        for fit, (begin, end) in mentions
        if not any(b <= begin and end <= e and (b, e) != (begin, end) for _, (b, e) in mentions)
    }
    return next(iter(named.values())) if len(named) == 1 else None
