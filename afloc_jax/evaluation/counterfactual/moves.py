"""How a map moves from a prompt to its counterfactual, and whether it moves to the right place."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from afloc_jax.evaluation.counterfactual.questions import Question, lying_in
from afloc_jax.evaluation.localization.metrics import pointing_game


class Moves(NamedTuple):
    """The moves of a map, see `metrics.METRICS`; NaN where one is not defined."""

    peak_shift: float
    mass_shift: float
    found: float
    stays: float
    right_place: float


def moves(
    before: Float[np.ndarray, "s s"],
    after: Float[np.ndarray, "s s"],
    inside: Bool[np.ndarray, "s s"],
    right: Bool[np.ndarray, "s s"] | None,
    true: bool = False,
) -> Moves:
    """The moves of a map.

    Args:
        before: the un-normalised map of the prompt.
        after: that of the counterfactual.
        inside: the finding that the prompt names.
        right: where the maximum of `after` should lie; None if nowhere.
        true: whether the counterfactual is true of the image. Its map then need not leave the finding: `found` and
            `stays` are NaN.

    >>> before, after = np.eye(2), np.array([[0.0, 1.0], [0.0, 1.0]])
    >>> moves(before, after, inside=np.eye(2) > 0, right=np.array([[False, True], [False, True]]))
    Moves(peak_shift=0.25, mass_shift=0.5, found=1.0, stays=0.5, right_place=1.0)
    """
    return Moves(
        float(np.linalg.norm(peak_of(after) - peak_of(before)) / len(before)),
        float(np.abs(mass_of(after) - mass_of(before)).sum() / 2),
        np.nan if true else pointing_game(before, inside),
        np.nan if true else pointing_game(after, inside),
        np.nan if right is None else pointing_game(after, right),
    )


def right_place(question: Question, masks: Sequence[Shaped[np.ndarray, "S S"]]) -> Bool[np.ndarray, "S S"] | None:
    """Where the map of a counterfactual should have its maximum.

    `masks` are the findings of the prompt's class in the prompt's image. The right place of another side or zone is the
    finding that lies there, else that half of the image; of a negation and an absent finding it is outside the class's
    findings. Another image has none.
    """
    if question.kind == "other_image":
        return None
    if question.half is None:
        return np.asarray(~np.any([mask > 0 for mask in masks], axis=0))
    there = lying_in(masks, question.half)
    return question.half if there is None else there


def peak_of(heatmap: Float[np.ndarray, "s s"]) -> Float[np.ndarray, "2"]:
    """The row and column of the maximum; the mean position of several equal maxima."""
    return np.asarray(np.argwhere(heatmap == heatmap.max()).mean(axis=0))


def mass_of(heatmap: Float[np.ndarray, "s s"]) -> Float[np.ndarray, "s s"]:
    """The share of the map's mass in every pixel: above the minimum, with the sum 1; a constant map is even."""
    above = np.asarray(heatmap, np.float64) - heatmap.min()
    return above / above.sum() if above.any() else np.full(heatmap.shape, 1 / heatmap.size)
