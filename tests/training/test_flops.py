"""Counted FLOPs, against counts that know nothing of them: XLA's, and the definition of the loss."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from afloc_jax.losses.definition import local_similarity, report_similarity
from afloc_jax.losses.settings import LossSettings
from afloc_jax.training import gradients
from afloc_jax.training.assembly import assemble
from afloc_jax.training.flops import product_flops, step_flops
from afloc_jax.training.mesh import build_mesh
from afloc_jax.training.peak_rates import PEAK_RATES, peak_rate
from afloc_jax.training.settings import RunConfig
from configs.afloc import get_config
from tests.training.conftest import changed

TWO_TEXTS = {"loss.hard_negatives": 1, "loss.weights.sentence": 1.0}
ONLY_REPORTS = {"loss.weights.word": 0.0, "loss.weights.sentence": 0.0}


def encoders(changes):
    """The FLOPs of one pair in the encoders: ours, and XLA's count of the program of their values and gradient."""
    config = RunConfig.from_config(changed(get_config(), {"training.batch_size": 2} | ONLY_REPORTS | changes))
    run = assemble(config, build_mesh(jax.devices()[:1]))
    encode = gradients.build_encoder(run.model, config, run.mesh)

    def gradient(params, batch_stats, batch):
        key = jax.random.key(0)
        embeddings, pull_back = jax.vjp(lambda params: encode(params, batch_stats, batch, key)[0], params)
        return embeddings, pull_back(embeddings)

    lowered = jax.jit(gradient).lower(
        *(run.variables_like[name] for name in ("params", "batch_stats")), run.batch_like()
    )
    return step_flops(config, config.data.image_size).pair, lowered.cost_analysis()["flops"] / 2


@pytest.mark.parametrize("changes", [{}, {"model.text.freeze": True}, {"model.image.freeze": True}, TWO_TEXTS], ids=str)
def test_the_published_towers_have_the_flops_that_xla_counts(changes):
    """XLA leaves out the products of convolutions with padding, and counts what is no product."""
    ours, theirs = encoders(changes)
    assert ours == pytest.approx(theirs, rel=0.02)


def test_the_published_towers_have_the_flops_of_their_papers():
    """ResNet-50: 4.1 G multiply-adds at 224 pixels. BERT-base: 85 M weights a slot, and attention between 97 slots."""
    config = RunConfig.from_config(changed(get_config(), ONLY_REPORTS))
    resnet = 4.1e9 * (299 / 224) ** 2
    bert = 85e6 * 97 + 12 * 2 * 97**2 * 768
    projections = (38**2 * 512 + 19**2 * 1024) * 768
    assert step_flops(config, 224).pair == pytest.approx(6 * (resnet + bert + projections), rel=0.03)


@pytest.mark.parametrize("pooling", ["attention", "logsumexp"])
def test_the_loss_has_the_products_of_its_definition(pooling):
    """The definition's own products with the attention weights; those of the softmax and of norms count nothing."""
    settings = {"loss.region_pooling": pooling, "training.batch_size": 4, "loss.contrast_group": 2}
    config = RunConfig.from_config(changed(get_config(), settings))
    work = step_flops(config, 224)
    words = 5
    regions, units = jnp.zeros((2, 38 * 38, 768)), jnp.zeros((1, words, 768))

    def loss(regions, units):
        pooled = LossSettings(region_pooling=pooling)
        return local_similarity(regions, units, jnp.array([words]), pooled).sum()

    traced = jax.make_jaxpr(jax.grad(loss, (0, 1)))(regions, units)
    # The cosine of a pooled region with its unit is a product too, of one region instead of all.
    assert work.word * words == pytest.approx(product_flops(traced.jaxpr), rel=0.01)
    assert work.sentence == pytest.approx(work.word / 4)  # 19 x 19 regions


def test_the_report_level_has_the_products_of_its_definition():
    with_reports, without = (
        step_flops(RunConfig.from_config(changed(get_config(), {"loss.weights.report": weight})), 224).pair
        for weight in (1.0, 0.0)
    )
    vectors = jnp.zeros((128, 768))
    traced = jax.make_jaxpr(jax.grad(lambda *both: report_similarity(*both, 10.0).sum(), (0, 1)))(vectors, vectors)
    assert (with_reports - without) * 128 == product_flops(traced.jaxpr)


def test_low_rank_compares_in_the_width_of_the_features():
    full, low = (
        step_flops(RunConfig.from_config(changed(get_config(), {"loss.low_rank": low})), 224) for low in (False, True)
    )
    assert low.word == pytest.approx(full.word * 512 / 768) and low.sentence == full.sentence
    assert low.pair == pytest.approx(full.pair, rel=0.02)


def test_units_that_are_contrasted_alone_leave_cls_out():
    config = changed(get_config(), {"loss.contrast_unit": "unit", "loss.region_pooling": "logsumexp"})
    work = step_flops(RunConfig.from_config(config), 224)
    assert work.total(2, 2 + 7, 2 + 3) == dataclasses.replace(work, first_unit=0).total(2, 7, 3)


def test_loops_count_as_often_as_they_run_and_unused_products_do_not():
    matrix = jnp.zeros((3, 3))

    def function(x):
        unused = x @ matrix
        return jax.lax.scan(lambda carry, _: (carry @ matrix, None), x, length=5)[0] + jnp.zeros(unused.shape)

    traced = jax.make_jaxpr(function)(jnp.zeros((2, 3)))
    assert "dot_general" in str(traced.jaxpr.eqns[0]) and product_flops(traced.jaxpr) == 5 * 2 * 2 * 9


def test_the_gradient_of_a_convolution_with_a_stride_has_twice_its_flops():
    image, kernel = jnp.zeros((1, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

    def convolved(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).sum()

    forward = jax.make_jaxpr(convolved)(image, kernel)
    assert product_flops(forward.jaxpr) == 2 * 16 * 5 * 27
    both = jax.make_jaxpr(jax.grad(convolved, (0, 1)))(image, kernel)
    assert product_flops(both.jaxpr) == 2 * product_flops(forward.jaxpr)  # grad alone does not need the result


def device(kind, **more):
    return SimpleNamespace(device_kind=kind, **more)


def test_only_known_devices_have_a_peak():
    assert peak_rate([device("cpu")]) is None and peak_rate(jax.devices()) is None
    assert peak_rate([device("NVIDIA H100 80GB HBM3 MIG 1g.10gb")]) is None
    assert peak_rate([device("NVIDIA H100 80GB HBM3")] * 8) == 8 * 989.5e12
    assert peak_rate([device("TPU v5 lite", core_on_chip=0)] * 16) == 16 * PEAK_RATES["TPU v5 lite"]
    for name, other in (("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p"), ("TPU v6 lite", "TPU v6e")):
        assert PEAK_RATES[name] == PEAK_RATES[other], "JAX knows them by both names"
    halves = [device("TPU v4", core_on_chip=core) for core in (0, 1)]
    assert peak_rate(halves) == PEAK_RATES["TPU v4"]
