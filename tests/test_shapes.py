"""The checker of shapes is on while tests run: wrong shapes that are planted on purpose make it speak."""

import numpy as np
import pytest
from jaxtyping import Float, Int, TypeCheckError, jaxtyped

from afloc_jax import interpolation
from tests import shapes

pytestmark = pytest.mark.skipif(not shapes.enabled(), reason="AFLOC_CHECK_SHAPES=0 switches the checker off")


def test_the_packages_are_checked():
    ramp = np.arange(4.0)
    assert interpolation.linear_matrix(ramp, 4).shape == (4, 4)
    with pytest.raises(TypeCheckError, match=r"afloc_jax\.interpolation\.linear_matrix"):
        interpolation.linear_matrix(ramp[None], 4)


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
