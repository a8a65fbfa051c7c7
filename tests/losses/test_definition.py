"""The formula against numbers of the published release."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.losses.contrast import contrast
from afloc_jax.losses.definition import local_similarity, region_attention, report_similarity
from afloc_jax.losses.settings import LocalSettings


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def losses(goldens):
    return dict(np.load(goldens / "losses.npz"))


def local_case(losses, case):
    regions = losses[f"{case}/C"]
    regions = regions.reshape(*regions.shape[:2], -1).transpose(0, 2, 1)
    units = losses[f"{case}/W"].transpose(0, 2, 1)
    settings = LocalSettings(*losses[f"{case}/temps"].tolist())
    return jnp.asarray(regions), jnp.asarray(units), jnp.asarray(losses[f"{case}/lens"]), settings


@pytest.mark.parametrize("case", ["local_small", "local_odd", "local_temps"])
def test_local_loss_is_the_published_one(losses, case):
    regions, units, counts, settings = local_case(losses, case)

    def parts(regions, units):
        return contrast(local_similarity(regions, units, counts, settings))

    published = [losses[f"{case}/loss0"], losses[f"{case}/loss1"]]
    np.testing.assert_allclose(parts(regions, units), published, atol=1e-10, rtol=0)
    d_regions, d_units = jax.grad(lambda *x: sum(parts(*x)), argnums=(0, 1))(regions, units)
    shape = losses[f"{case}/gC"].shape
    np.testing.assert_allclose(d_regions.transpose(0, 2, 1).reshape(shape), losses[f"{case}/gC"], atol=1e-9, rtol=0)
    np.testing.assert_allclose(d_units.transpose(0, 2, 1), losses[f"{case}/gW"], atol=1e-9, rtol=0)


@pytest.mark.parametrize("case", ["local_small", "local_odd", "local_temps"])
def test_attention_map_is_the_published_one(losses, case):
    regions, units, counts, settings = local_case(losses, case)
    attention = region_attention(regions, units, counts, settings.attention_temperature)[0, 0]
    published = losses[f"{case}/att0"]
    np.testing.assert_allclose(attention[:, : len(published)].T.reshape(published.shape), published, atol=1e-10)


@pytest.mark.parametrize("case", ["global", "global_temp"])
def test_report_loss_is_the_published_one(losses, case):
    temperature = float(losses[f"{case}/temp3"])
    inputs = jnp.asarray(losses[f"{case}/img"]), jnp.asarray(losses[f"{case}/txt"])

    def parts(images, reports):
        return contrast(report_similarity(images, reports, temperature))

    np.testing.assert_allclose(report_similarity(*inputs, temperature), losses[f"{case}/scores"], atol=1e-10)
    np.testing.assert_allclose(parts(*inputs), [losses[f"{case}/loss0"], losses[f"{case}/loss1"]], atol=1e-10)
    gradients = jax.grad(lambda *x: sum(parts(*x)), argnums=(0, 1))(*inputs)
    for gradient, name in zip(gradients, ("gimg", "gtxt"), strict=True):
        np.testing.assert_allclose(gradient, losses[f"{case}/{name}"], atol=1e-9)
