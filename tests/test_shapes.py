"""The checker of shapes is on while tests run: wrong shapes that are planted on purpose make it speak."""

import re

import jax
import numpy as np
import pytest
from jaxtyping import Float, Int, TypeCheckError, jaxtyped

from afloc_jax.evaluation.localization.metrics import overlaps
from afloc_jax.heatmaps import HeatmapSettings
from afloc_jax.inference.zero_shot import class_probabilities
from afloc_jax.interpolation import linear_matrix
from afloc_jax.losses.definition import contrast
from afloc_jax.models.normalization import BatchNorm
from afloc_jax.models.text_units import sentences_from_words
from afloc_jax.training.optimizer import OptimizerSettings, build_schedule
from afloc_jax.vectors import norm
from tests import shapes

pytestmark = pytest.mark.skipif(not shapes.enabled(), reason="AFLOC_CHECK_SHAPES=0 switches the checker off")


# A call with a wrong shape in every package, by the name of the function that has to notice it.
PLANTED = {
    "afloc_jax.losses.definition.contrast": lambda: contrast(np.ones((2, 3)), np.ones(3)),
    "afloc_jax.vectors.norm": lambda: norm(np.float32(1)),
    "afloc_jax.interpolation.linear_matrix": lambda: linear_matrix(np.arange(4.0)[None], 4),
    "afloc_jax.heatmaps.HeatmapSettings.map": lambda: HeatmapSettings().map(np.ones((2, 2, 3)), np.ones(4), 8, 8),
    "afloc_jax.models.text_units.sentences_from_words": lambda: sentences_from_words(
        np.ones((1, 3, 2)), np.zeros((2, 3), int)
    ),
    # Flax wraps the methods of modules.
    "afloc_jax.models.normalization.BatchNorm.__call__": lambda: BatchNorm().init(
        jax.random.key(0), np.ones((2, 3, 4))
    ),
    "afloc_jax.inference.zero_shot.class_probabilities": lambda: class_probabilities(np.ones(3)),
    "afloc_jax.evaluation.localization.metrics.overlaps": lambda: overlaps(
        np.ones((2, 2)), np.ones((3, 3), bool), [0.5]
    ),
    "afloc_jax.training.optimizer.build_schedule.<locals>.learning_rate": lambda: build_schedule(
        OptimizerSettings(), 1, 2
    )(np.zeros(3, int)),
}


@pytest.mark.parametrize("function", PLANTED)
def test_a_wrong_shape_in_any_package_is_refused(function):
    with pytest.raises(TypeCheckError, match=re.escape(f"parameters of {function}.")):
        PLANTED[function]()


def test_every_package_that_holds_functions_has_a_planted_wrong_shape():
    only_dataclasses = {"afloc_jax.levels"}
    noticed = {package for package in shapes.PACKAGES if any(name.startswith(f"{package}.") for name in PLANTED)}
    assert noticed == {*shapes.PACKAGES} - only_dataclasses


@jaxtyped(typechecker=shapes.checked)
def product(first: Float[np.ndarray, "B D"], second: Float[np.ndarray, "D K"], plan: str) -> Float[np.ndarray, "B K"]:
    return {"right": first @ second, "turned": (first @ second).T}[plan]


@jaxtyped(typechecker=shapes.checked)
def nested(rows: list[Int[np.ndarray, " n"]], where: Float[np.ndarray, " n"] | None = None) -> int:
    return sum(map(len, rows))


def test_wrong_shapes_of_arguments_and_results_are_refused():
    left, right = np.ones((2, 3)), np.ones((3, 4))
    assert product(left, right, "right").shape == (2, 4)
    with pytest.raises(TypeCheckError, match="parameter 'second'"):
        product(left, right.T, "right")
    with pytest.raises(TypeCheckError, match="return value"):
        product(left, right, "turned")
    assert nested([np.arange(3), np.ones(3, int)], None) == 6
    with pytest.raises(TypeCheckError):
        nested([np.arange(3)], np.ones(4))


def test_types_without_a_shape_are_left_alone():
    class Right(str):
        """A stand-in."""

    assert product(np.ones((1, 1)), np.ones((1, 1)), Right("right")).shape == (1, 1)

    @jaxtyped(typechecker=shapes.checked)
    def plain(number: int) -> str:
        return number

    assert plain("no number") == "no number"
