"""Frozen features of labelled records, computed once for all heads and subsets."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from afloc_jax.errors import UserError
from afloc_jax.evaluation.labelled import framed
from afloc_jax.evaluation.sharing import gathered, is_own
from afloc_jax.inference.model import Model
from data_pipelines.constants import Framing
from data_pipelines.reading import Records


def squares_of(
    source: Records, rows: Int[np.ndarray, " n"], framing: Framing, most: int
) -> Iterator[UInt8[np.ndarray, "B S S"]]:
    """The squares of records, at most `most` at once."""
    for start in range(0, len(rows), most):
        yield np.stack([framed(source[int(row)], framing) for row in rows[start : start + most]])


def whole_features(
    model: Model, source: Records, rows: Int[np.ndarray, " n"], framing: Framing, name: str = "images"
) -> Float[np.ndarray, "n F"]:
    """The global features [n, F] float32 of records, as the backbone gives them before their projection.

    Raises UserError for features that are not finite.
    """
    parts: list[np.ndarray | None] = []
    batches = range(0, len(rows), model.batch_size)
    for number, start in enumerate(tqdm(batches, desc=name, unit="batch", disable=None)):
        if not is_own(number):
            parts.append(None)
            continue
        squares = next(squares_of(source, rows[start : start + model.batch_size], framing, model.batch_size))
        parts.append(model.backbone_features(squares)["whole"])
    return checked(np.concatenate(gathered(parts)))


def checked(features: Float[np.ndarray, "n *s"]) -> Float[np.ndarray, "n *s"]:
    """The features. Raises UserError where one is not finite."""
    if not np.isfinite(features).all():
        raise UserError("a feature is NaN or infinity: the weights are damaged or the training diverged")
    return features
