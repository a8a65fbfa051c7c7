"""Zero-shot probabilities from embeddings: an image beside the phrases of a class (algorithm, section 7)."""

import numpy as np
from jaxtyping import Float
from scipy.special import softmax


def contrast_probabilities(
    images: Float[np.ndarray, "I D"], positive: Float[np.ndarray, "C D"], negative: Float[np.ndarray, "C D"]
) -> Float[np.ndarray, "I C"]:
    """Each class for itself: softmax of the dot products with its positive and its negative embedding, in float64."""
    images = np.asarray(images, np.float64)
    logits = np.stack([images @ np.asarray(side, np.float64).T for side in (positive, negative)], axis=-1)
    return np.asarray(softmax(logits, axis=-1)[..., 0])


def class_probabilities(
    images: Float[np.ndarray, "I D"], positive: Float[np.ndarray, "C D"]
) -> Float[np.ndarray, "I C"]:
    """Exactly one class per image: softmax of the dot products over the classes, in float64."""
    return np.asarray(softmax(np.asarray(images, np.float64) @ np.asarray(positive, np.float64).T, axis=-1))
