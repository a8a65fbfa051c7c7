"""Matrices of interpolation against PyTorch."""

import numpy as np
import pytest
import torch

from afloc_jax.interpolation import aligned_corners, cubic, strided_cells, tiles


@pytest.mark.parametrize(("size", "target"), [(19, 224), (224, 299), (5, 3), (1, 4), (4, 1)])
@pytest.mark.parametrize(("matrix", "aligned"), [(aligned_corners, True), (tiles, False)])
def test_matrices_equal_torch_interpolate(matrix, aligned, size, target):
    signal = np.random.default_rng(0).standard_normal((3, size))
    expected = torch.nn.functional.interpolate(
        torch.tensor(signal)[:, None], target, mode="linear", align_corners=aligned
    )
    np.testing.assert_allclose(signal @ matrix(size, target).T, expected[:, 0], atol=1e-12)


def test_strided_cells_lie_where_strided_convolutions_centre_them():
    """A ramp sampled at every fourth pixel comes back as the ramp, up to the last cell, where it stays."""
    ramp = np.arange(28.0)
    np.testing.assert_allclose(strided_cells(7, 4, 28, 28) @ ramp[::4], np.minimum(ramp, 24))
    half = strided_cells(7, 4, 56, 28) @ ramp[::4]
    np.testing.assert_allclose(half, np.clip((np.arange(56) + 0.5) / 2 - 0.5, 0, 24))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("size", "target"), [(37, 16), (16, 37), (5, 5), (14, 15), (1, 4), (4, 1)])
def test_cubic_matrices_equal_torch_interpolate(size, target, antialias):
    image = np.random.default_rng(0).standard_normal((2, size, size))
    expected = torch.nn.functional.interpolate(
        torch.tensor(image)[:, None], (target, target), mode="bicubic", align_corners=False, antialias=antialias
    )
    matrix = cubic(size, target, antialias=antialias)
    np.testing.assert_allclose(matrix @ image @ matrix.T, expected[:, 0], atol=1e-6)
