"""Zero-shot probabilities from embeddings: an image beside the phrases of a class (algorithm, section 7).

Several phrases stand for a class. Two rules make one score of their dot products with the image:

    mean    the mean, which is the dot product with the mean embedding: AFLoc's rule, and the default
    max     the largest: GLoRIA's rule (doi 10.1109/ICCV48922.2021.00391, its code for zero-shot classification)
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from afloc_jax.errors import UsageError
from data_pipelines.images import Framing

AGGREGATIONS = ("mean", "max")


def class_scores(
    images: Float[np.ndarray, "I D"],
    phrases: Sequence[Float[np.ndarray, "_ D"]],
    aggregation: str = "mean",
) -> Float[np.ndarray, "I C"]:
    """One score of every image for every class, in float64.

    Args:
        images: global image embeddings.
        phrases: for each class, the embeddings of its phrases.
        aggregation: one of `AGGREGATIONS`.

    Raises:
        UsageError: an unknown aggregation.
    """
    if aggregation not in AGGREGATIONS:
        raise UsageError(f"unknown aggregation {aggregation!r}; there are {', '.join(AGGREGATIONS)}")
    over = np.mean if aggregation == "mean" else np.max
    images = np.asarray(images, np.float64)
    return np.stack([over(images @ np.asarray(of_class, np.float64).T, axis=1) for of_class in phrases], axis=1)


def contrast_probabilities(
    positive: Float[np.ndarray, "I C"], negative: Float[np.ndarray, "I C"]
) -> Float[np.ndarray, "I C"]:
    """The probability of each class by itself: softmax of its positive and its negative score."""
    return np.asarray(softmax(np.stack([positive, negative], axis=-1), axis=-1)[..., 0])


def class_probabilities(scores: Float[np.ndarray, "I C"]) -> Float[np.ndarray, "I C"]:
    """The probabilities where an image has exactly one class: softmax of the scores over the classes."""
    return np.asarray(softmax(scores, axis=-1))


def framing_of(given: Framing | None, compatible: bool) -> Framing:
    """The framing of images for classification; by default padded, or cropped as in the release if `compatible`.

    The release scales the short side and cuts out the middle to classify, while it pads to localise.
    """
    return given or ("crop" if compatible else "pad")
