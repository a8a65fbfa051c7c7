"""The formula against the published release's numbers and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import PUBLISHED_CASES, assert_all_close, contrast_gradients, published_case, random_case

from afloc_jax.losses import definition, tiled
from afloc_jax.losses.definition import contrast
from afloc_jax.losses.settings import LossSettings

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize(
    ("implementation", "case"),
    [*((definition, case) for case in PUBLISHED_CASES), (tiled, "local_odd"), (tiled, "local_temps")],
)
def test_local_loss_and_gradients_are_the_published_ones(losses, implementation, case):
    regions, units, counts, settings = published_case(losses, case)

    def similarity(regions, units):
        return implementation.local_similarity(regions, units, counts, settings)

    parts, (d_regions, d_units) = contrast_gradients(similarity, regions, units)
    assert_all_close(parts, (losses[f"{case}/loss0"], losses[f"{case}/loss1"]), atol=1e-10, rtol=0)
    d_regions = d_regions.transpose(0, 2, 1).reshape(losses[f"{case}/gC"].shape)
    d_units = d_units.transpose(0, 2, 1)
    assert_all_close((d_regions, d_units), (losses[f"{case}/gC"], losses[f"{case}/gW"]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("case", PUBLISHED_CASES)
def test_attention_map_is_the_published_one(losses, case):
    regions, units, counts, settings = published_case(losses, case)
    attention = definition.region_attention(regions, units, counts, settings.attention_temperature)
    published = losses[f"{case}/att0"]
    np.testing.assert_allclose(attention[0, 0, :, : len(published)].T.reshape(published.shape), published, atol=1e-10)
    np.testing.assert_allclose(attention.sum(axis=2), 1, atol=1e-12)


@pytest.mark.parametrize("case", ["global", "global_temp"])
def test_report_loss_and_gradients_are_the_published_ones(losses, case):
    temperature = float(losses[f"{case}/temp3"])

    def similarity(images, reports):
        return definition.report_similarity(images, reports, temperature)

    inputs = jnp.asarray(losses[f"{case}/img"]), jnp.asarray(losses[f"{case}/txt"])
    np.testing.assert_allclose(similarity(*inputs), losses[f"{case}/scores"], atol=1e-10)
    parts, gradients = contrast_gradients(similarity, *inputs)
    assert_all_close(parts, (losses[f"{case}/loss0"], losses[f"{case}/loss1"]), atol=1e-10, rtol=0)
    assert_all_close(gradients, (losses[f"{case}/gimg"], losses[f"{case}/gtxt"]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("pooling", ["attention", "logsumexp"])
def test_local_loss_is_that_of_a_plain_pytorch_loop(pooling):
    torch = pytest.importorskip("torch")
    from reference.torch_losses import cross_entropies, local_similarities

    regions, units, counts = random_case(4, 10, 7, 5, [7, 1, 4, 6])
    settings = LossSettings(3.0, 4.0, 6.0, pooling, 8.0)
    parts, gradients = contrast_gradients(
        lambda regions, units: definition.local_similarity(regions, units, counts, settings), regions, units
    )
    leaves = [torch.tensor(np.asarray(array), requires_grad=True) for array in (regions, units)]
    expected = cross_entropies(local_similarities(*leaves, counts.tolist(), (3.0, 4.0, 6.0), pooling, 8.0))
    sum(expected).backward()
    assert_all_close(parts, [part.item() for part in expected], rtol=1e-12)
    assert_all_close(gradients, [leaf.grad.numpy() for leaf in leaves], atol=1e-11)


def test_the_loop_over_channel_first_maps_gives_the_same_loss_and_gradients():
    torch = pytest.importorskip("torch")
    from reference.torch_losses import channel_first_similarities, cross_entropies

    regions, units, counts = random_case(4, 9, 7, 5, [7, 1, 4, 6])
    temperatures = (3.0, 4.0, 6.0)
    parts, gradients = contrast_gradients(
        lambda regions, units: definition.local_similarity(regions, units, counts, LossSettings(*temperatures)),
        regions,
        units,
    )
    leaves = [torch.tensor(np.asarray(array), requires_grad=True) for array in (regions, units)]
    maps, words = leaves[0].transpose(1, 2).reshape(4, 5, 3, 3), leaves[1].transpose(1, 2)
    expected = cross_entropies(channel_first_similarities(maps, words, counts.tolist(), temperatures))
    sum(expected).backward()
    assert_all_close(parts, [part.item() for part in expected], rtol=1e-12)
    assert_all_close(gradients, [leaf.grad.numpy() for leaf in leaves], atol=1e-11)


def test_weighted_contrast_is_pytorchs_weighted_cross_entropy():
    torch = pytest.importorskip("torch")
    from reference.torch_losses import cross_entropies

    rng = np.random.default_rng(0)
    similarity, weights = 5 * rng.standard_normal((6, 6)), rng.uniform(0, 2, 6)
    expected = [part.item() for part in cross_entropies(torch.tensor(similarity), torch.tensor(weights))]
    assert_all_close(contrast(jnp.asarray(similarity), jnp.asarray(weights)), expected, rtol=1e-12)


def test_a_left_out_pair_changes_nothing_and_gets_no_gradient():
    similarity = jnp.asarray(np.random.default_rng(0).standard_normal((5, 5)))
    included = jnp.array([True, False, True, True, False])
    kept = np.flatnonzero(included)
    assert_all_close(contrast(similarity, None, included), contrast(similarity[np.ix_(kept, kept)]), rtol=1e-14)
    gradient = jax.grad(lambda s: sum(contrast(s, None, included)))(similarity)
    assert np.isfinite(gradient).all()
    assert not gradient[1].any() and not gradient[:, 4].any()
    assert_all_close(contrast(similarity, None, jnp.zeros(5, bool)), (0, 0))
