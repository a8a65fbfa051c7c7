"""Zero-shot probabilities of classes, from embeddings of images and of the phrases of each class.

A class may have several phrases. `aggregation` says how their dot products with an image become one score:

    mean    the mean, which equals the dot product with the mean embedding: AFLoc's rule and the default
    max     the maximum: the rule of GLoRIA's code for zero-shot classification (doi 10.1109/ICCV48922.2021.00391)
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from afloc_jax.errors import UsageError
from data_pipelines.constants import Framing

AGGREGATIONS = ("mean", "max")


def class_scores(
    images: Float[np.ndarray, "I D"],
    phrases: Sequence[Float[np.ndarray, "_ D"]],
    aggregation: str = "mean",
) -> Float[np.ndarray, "I C"]:
    """The score of every image for every class, in float64.

    Args:
        images: global image embeddings.
        phrases: the embeddings of the phrases of each class.
        aggregation: one of `AGGREGATIONS`.

    Raises:
        UsageError: the aggregation is unknown.

    >>> image, phrases = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> class_scores(image, [phrases], "mean"), class_scores(image, [phrases], "max")
    (array([[0.5]]), array([[1.]]))
    """
    if aggregation not in AGGREGATIONS:
        raise UsageError(f"unknown aggregation {aggregation!r}; there are {', '.join(AGGREGATIONS)}")
    over = np.mean if aggregation == "mean" else np.max
    images = np.asarray(images, np.float64)
    return np.stack([over(images @ np.asarray(of_class, np.float64).T, axis=1) for of_class in phrases], axis=1)


def contrast_probabilities(
    positive: Float[np.ndarray, "I C"], negative: Float[np.ndarray, "I C"]
) -> Float[np.ndarray, "I C"]:
    """The probability of each class on its own: the softmax of its positive and its negative score.

    >>> contrast_probabilities(positive=np.array([[2.0, 1.0]]), negative=np.array([[0.0, 1.0]])).round(3)
    array([[0.881, 0.5  ]])
    """
    return np.asarray(_softmax(np.stack([positive, negative], axis=-1))[..., 0])


def class_probabilities(scores: Float[np.ndarray, "I C"]) -> Float[np.ndarray, "I C"]:
    """The probabilities where an image has exactly one class: the softmax of the scores over the classes."""
    return _softmax(scores)


def _softmax(scores: Float[np.ndarray, "*rows C"]) -> Float[np.ndarray, "*rows C"]:
    """Over the last axis. The import of SciPy's would take a tenth of a second."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def framing_of(given: Framing | None, compatible: bool) -> Framing:
    """The framing of images for classification: `given`, else "crop" if `compatible`, else "pad".

    The release pads images to localise. To classify it scales the short side and cuts out the middle.
    """
    return given or ("crop" if compatible else "pad")
