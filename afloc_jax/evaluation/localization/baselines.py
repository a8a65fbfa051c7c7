"""Location priors: baseline maps of where findings usually are, which do not depend on the image."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from afloc_jax.evaluation.truth.sample import Truth

ANY_CATEGORY = ""  # key of the mean over all masks, for categories without training masks


def location_prior(
    masks_by_category: Mapping[str, Iterable[Shaped[np.ndarray, "S S"]]],
) -> dict[str, Float[np.ndarray, "S S"]]:
    """The mean training mask of each category: the share of findings that cover each pixel.

    Masks may come from generators; values above 0 are inside. The key `ANY_CATEGORY` has the mean over all masks.
    Categories without a mask are left out. Raises ValueError if there is no mask at all, or if sizes differ.
    """
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for category, masks in masks_by_category.items():
        for mask in masks:
            inside = np.asarray(mask) > 0
            first = next(iter(sums.values()), inside)
            if inside.shape != first.shape:
                raise ValueError(f"masks of {category!r} have shape {inside.shape}, others {first.shape}")
            sums[category] = sums.get(category, 0.0) + inside.astype(np.float64)
            counts[category] = counts.get(category, 0) + 1
    if not counts:
        raise ValueError("a location prior needs at least one training mask")
    priors = {category: (sums[category] / counts[category]).astype(np.float32) for category in sums}
    priors[ANY_CATEGORY] = (np.sum(list(sums.values()), axis=0) / sum(counts.values())).astype(np.float32)
    return priors


def prior_heatmaps(
    priors: Mapping[str, Float[np.ndarray, "S S"]], truths: Sequence[Truth]
) -> Iterator[Float[np.ndarray, "S S"]]:
    """The prior of each sample's category, or that of all findings for a category without training masks."""
    for truth in truths:
        yield priors.get(truth.category, priors[ANY_CATEGORY])


def leave_one_out_prior(truths: Sequence[Truth]) -> Iterator[Float[np.ndarray, "S S"]]:
    """For each sample the mean mask of the samples of all OTHER images, for data without training masks.

    The mean is over the sample's category if other images have it, else over all categories, else the map is empty.
    This prior is stronger than one from another data set, since it comes from the evaluated population.
    """
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    own: dict[tuple[str, str], list[np.ndarray]] = {}
    for truth in truths:
        inside = truth.mask > 0
        for category in (truth.category, ANY_CATEGORY):
            sums[category] = sums.get(category, 0) + inside.astype(np.int64)
            counts[category] = counts.get(category, 0) + 1
            own.setdefault((category, truth.image or truth.id), []).append(inside)
    for truth in truths:
        result = np.zeros(truth.mask.shape, np.float32)
        for category in (truth.category, ANY_CATEGORY):
            same_image = own[category, truth.image or truth.id]
            others = counts[category] - len(same_image)
            if others:
                result = ((sums[category] - np.sum(same_image, axis=0)) / others).astype(np.float32)
                break
        yield result
