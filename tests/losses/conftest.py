import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True, scope="module")  # "package" would last for the session
def quick_compilation():
    """These tests compile much and run little."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def float64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def losses(goldens):
    """Losses and gradients of the published release."""
    return dict(np.load(goldens / "losses.npz"))
