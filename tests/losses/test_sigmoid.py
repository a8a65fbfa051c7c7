"""The sigmoid objective: plain loops and PyTorch for the definition, then tiles and rings against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_all_close, random_case, random_levels
from ring_cases import BATCH, SENTENCES, WORDS, with_factors
from test_hard_negatives import NUMBER
from test_hard_negatives import case as made_case

from afloc_jax.errors import UsageError
from afloc_jax.losses import LossSettings, Scale, contrastive_losses, sigmoid
from afloc_jax.losses.definition import local_similarity, mean_relevance, sigmoid_contrast
from afloc_jax.training.mesh import batch_sharding, build_mesh

LEVELS = ("report", "sentence", "word")


def scales():
    """One for each level, near where they start."""
    return {level: Scale(jnp.log(8.0 + place), jnp.asarray(-3.0 - place)) for place, level in enumerate(LEVELS)}


def losses_and_gradients(implementation, image, text, mesh=None, sample_weights=None, **changes):
    """`(ContrastiveLosses, gradients by maps, units and scales)`; `text.made` has sentences of its own."""
    settings = LossSettings(objective="sigmoid", implementation=implementation, **changes)
    made = None if text.made is None else text.made.sentences

    def loss(image, units, made, scales):
        words, sentences, report = units
        texts = text.replace(words=words, sentences=sentences, report=report)
        if made is not None:
            texts = texts.replace(made=text.made.replace(sentences=made))
        losses = contrastive_losses(image, texts, settings, sample_weights, mesh, scales)
        return losses.total, losses

    units = text.words, text.sentences, text.report
    if mesh is not None:
        image, text, units, made = jax.device_put((image, text, units, made), batch_sharding(mesh))
    by = (0, 1, 3) if made is None else (0, 1, 2, 3)
    step = jax.jit(jax.value_and_grad(loss, by, has_aux=True))
    (_, losses), gradients = step(image, units, made, scales())
    return losses, gradients


def assert_is_the_definition(implementation, image, text, mesh, sample_weights=None, **changes):
    found = losses_and_gradients(implementation, image, text, mesh, sample_weights, **changes)
    expected = losses_and_gradients("definition", image, text, None, sample_weights, **changes)
    assert_all_close(found[0], expected[0], rtol=1e-12)
    assert_all_close(found[1], expected[1], rtol=0, atol=1e-10)
    return found


@pytest.mark.usefixtures("float64")
def test_value_and_gradients_are_those_of_the_published_formula_in_pytorch():
    """Algorithm 1 of SigLIP: t' starts at log 10 and b at -10."""
    import torch

    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((7, 5)) for _ in range(2))
    image, text = (torch.tensor(side, requires_grad=True) for side in (images, texts))
    log_t, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (np.log(10), -10.0))
    cosines = torch.nn.functional.normalize(image) @ torch.nn.functional.normalize(text).T
    labels = 2 * torch.eye(7) - torch.ones(7, 7)
    expected = -torch.nn.functional.logsigmoid(labels * (cosines * log_t.exp() + bias)).sum() / 7
    expected.backward()

    batch, others = random_levels(7, [2] * 7, [2] * 7, width=5, dtype=np.float64)
    settings = LossSettings(objective="sigmoid", weights={"sentence": 0, "word": 0})
    start = Scale.initial(settings)

    def loss(images, texts, scale):
        levels = batch.replace(whole=images), others.replace(report=texts)
        return contrastive_losses(*levels, settings, scales={"report": scale}).total

    found, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(jnp.asarray(images), jnp.asarray(texts), start)
    np.testing.assert_allclose(found, expected.item(), rtol=1e-13)
    for one, other in zip(jax.tree.leaves(gradients), (image, text, log_t, bias), strict=True):
        np.testing.assert_allclose(one, other.grad.numpy(), rtol=1e-12, atol=1e-14)
    default = jax.jit(lambda *sides: contrastive_losses(*sides, settings).total)
    levels = batch.replace(whole=jnp.asarray(images)), others.replace(report=jnp.asarray(texts))
    assert default(*levels) == found


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("treatment", ["negative", "mask", "share"])
def test_the_definition_is_that_of_plain_loops(treatment):
    counts = [3, 1, 0, 5, 2]
    regions, units, lengths = random_case(5, 6, 5, 4, counts)
    settings, scale = LossSettings(), Scale(jnp.log(7.0), jnp.asarray(-2.0))
    similarity = local_similarity(regions, units, lengths)
    x = mean_relevance(similarity, lengths)
    assert (np.abs(x) <= 1).all()
    np.testing.assert_allclose(
        similarity[:, 3], settings.contrast_temperature * (settings.pooling_temperature * x[:, 3] + np.log(5))
    )
    rng = np.random.default_rng(2)
    weights, twins = rng.random(5), np.zeros((5, 5), bool)
    np.fill_diagonal(twins, True)
    twins[0, 3] = twins[3, 0] = True
    made = np.where(rng.random((5, 2)) < 0.5, -np.inf, rng.standard_normal((5, 2)))
    q = np.where(np.array(counts) > 0, weights, 0)
    q = q / q.sum()
    expected = 0
    for i in range(5):
        for j in range(5):
            twin = i != j and twins[i, j]
            if counts[i] and counts[j] and not (twin and treatment == "mask"):
                z = 1 if i == j or (twin and treatment == "share") else -1
                expected += (q[i] + q[j]) / 2 * np.log1p(np.exp(-z * (7 * x[i, j] - 2)))
        expected += sum(q[i] * np.log1p(np.exp(7 * value - 2)) for value in made[i])
    included = lengths > 0
    found = sigmoid_contrast(x, scale, jnp.asarray(weights), included, jnp.asarray(twins), treatment, jnp.asarray(made))
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("group", "changes"),
    [
        (0, {}),
        pytest.param(4, {"region_pooling": "logsumexp"}, marks=pytest.mark.slow),
        (8, {"twins": "mask", "hard_negatives": NUMBER}),
        (0, {"twins": "share", "hard_negatives": NUMBER, "tile_memory": "1"}),
    ],
)
def test_tiles_give_the_definition(group, changes):
    """Odd shapes, with weights and pairs that are left out."""
    image, text = made_case()
    text = text if "hard_negatives" in changes else text.replace(made=None, hashes=None)
    weights = jnp.asarray(np.random.default_rng(5).random(BATCH))
    options = {"contrast_group": group, "weights": {"report": 1, "sentence": 0.5, "word": 2}, **changes}
    found, _ = assert_is_the_definition("tiled", image, text, None, weights, **options)
    assert all(loss > 0 for loss in found.levels.values())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("devices", "group", "changes"),
    [
        (8, 0, {}),
        (8, 4, {"region_pooling": "logsumexp"}),
        pytest.param(8, 2, {"twins": "share"}, marks=pytest.mark.slow),
        (2, 0, {"twins": "mask", "hard_negatives": NUMBER}),
        pytest.param(1, 4, {}, marks=pytest.mark.slow),
    ],
)
def test_a_ring_gives_the_definition(devices, group, changes):
    """Rings of all devices, of two, and groups that one device holds alone."""
    if len(jax.devices()) < devices:
        pytest.skip("SKIPPED: needs eight devices, see tests/conftest.py")
    image, text = made_case()
    text = text.replace(sentence_count=text.sentence_count.at[3].set(0), word_count=text.word_count.at[3].set(0))
    text = text if "hard_negatives" in changes else text.replace(made=None)
    weights = jnp.asarray(np.random.default_rng(5).random(BATCH))
    options = {"contrast_group": group, "weights": {"report": 1, "sentence": 0.5, "word": 2}, **changes}
    assert_is_the_definition("ring", image, text, build_mesh(jax.devices()[:devices]), weights, **options)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_the_word_level_in_the_width_of_its_factors(devices):
    """Tiles, and a ring of eight."""
    if len(jax.devices()) < devices:
        pytest.skip("SKIPPED: needs eight devices, see tests/conftest.py")
    image, text = random_levels(BATCH, WORDS, SENTENCES, dtype=np.float64)
    image = with_factors(image, np.float64)
    mesh = build_mesh(jax.devices()[:devices])

    def total(features, kernel, words, low_rank):
        levels = image.replace(shallow=features @ kernel, shallow_factors=(features, kernel))
        weights, name = {"report": 0, "sentence": 0}, "auto" if low_rank else "definition"
        settings = LossSettings(objective="sigmoid", low_rank=low_rank, implementation=name, weights=weights)
        return contrastive_losses(levels, text.replace(words=words), settings, mesh=mesh).total

    step = jax.jit(jax.value_and_grad(total, (0, 1, 2)), static_argnums=3)
    inputs = *image.shallow_factors, text.words
    assert_all_close(step(*inputs, True), step(*inputs, False), rtol=0, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.skipif(jax.device_count() < 8, reason="SKIPPED: needs eight devices, see tests/conftest.py")
def test_captions_go_around_a_ring_of_tpus_once(monkeypatch):
    """With tiles as TPUs compute them: units, norms and whole numbers are a send each, and two bring gradients home."""
    around = sigmoid._around
    monkeypatch.setattr(sigmoid, "_around", lambda settings, ring, _: around(settings, ring, "tpu"))
    image, text = random_levels(BATCH, WORDS, SENTENCES, dtype=np.float64)
    options = {"weights": {"report": 0, "sentence": 0, "word": 1}}
    assert_is_the_definition("ring", image, text, build_mesh(), **options)

    def loss(words):
        settings = LossSettings(objective="sigmoid", **options)
        return contrastive_losses(image, text.replace(words=words), settings, mesh=build_mesh()).total

    program = jax.jit(jax.grad(loss)).lower(text.words).as_text()
    assert program.count("stablehlo.collective_permute") == 3 + 2
    # Where only the value is asked for, two products of features and no gradient.
    assert jax.jit(loss).lower(text.words).as_text().count("stablehlo.collective_permute") == 3


def test_what_the_sigmoid_does_not_go_with_is_said():
    with pytest.raises(UsageError, match=r"'sigmoid': needs loss.contrast_unit = 'caption'"):
        LossSettings(objective="sigmoid", contrast_unit="unit", region_pooling="logsumexp")
    with pytest.raises(UsageError, match=r"'pallas': computes loss.objective = 'softmax', not 'sigmoid'; set"):
        LossSettings(objective="sigmoid", kernel="pallas")
    with pytest.raises(UsageError, match=r"loss\.sigmoid_bias = nan: must be a finite number"):
        LossSettings(objective="sigmoid", sigmoid_bias=float("nan"))
