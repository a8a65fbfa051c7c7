import jax
import numpy as np
import pytest


@pytest.fixture
def float64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def losses(goldens):
    """Losses and gradients of the published release."""
    return dict(np.load(goldens / "losses.npz"))
