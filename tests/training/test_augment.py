"""Augmentation inside the training step, compared with the host's by OpenCV."""

import jax
import numpy as np
import pytest
from raw_folders import radiograph

from afloc_jax.training.augment import augment
from afloc_jax.training.mesh import batch_sharding, build_mesh, place_batch
from afloc_jax.training.start import first_variables
from data_pipelines import augment as host
from tests.training.conftest import assembled, batches_of, tiny_config


def on_device(images, numbers, limits=host.GENTLE, devices=8):
    mesh = build_mesh(jax.devices()[:devices])
    place = batch_sharding(mesh)
    arrays = jax.device_put(images, place), jax.device_put(numbers.astype(np.float32), place)
    return np.asarray(jax.jit(lambda *given: augment(*given, mesh, limits))(*arrays))


def on_host(images, numbers, limits=host.GENTLE):
    return np.stack([host.augment(image, row, limits) for image, row in zip(images, numbers, strict=True)])


@pytest.mark.parametrize("side", [33, 224])
@pytest.mark.parametrize("limits", [host.GENTLE, host.Limits(0.2, 0.4, 40.0, 0.4, 0.8)])
def test_the_same_numbers_give_the_pixels_of_the_host(side, limits):
    rng = np.random.default_rng(side)
    noise = rng.integers(0, 256, (8, side, side), dtype=np.uint8)  # the hardest case for interpolation
    films = np.stack([radiograph(number, side, side) for number in range(6)])
    black, white = np.zeros_like(films[:1]), np.full_like(films[:1], 255)
    images = np.concatenate([noise, films, black, white])
    numbers = np.stack([host.draw(rng) for _ in images])
    numbers[::7] = np.sign(numbers[::7])  # the limits themselves
    difference = np.abs(on_device(images, numbers, limits).astype(int) - on_host(images, numbers, limits))
    worst = np.argwhere(difference > 3)
    assert difference.max() <= 3 and difference.mean() < 0.01, f"{len(worst)} far off, at {worst[:9].tolist()}"


def test_nothing_changes_where_nothing_is_asked_for():
    images = np.random.default_rng(0).integers(0, 256, (8, 40, 40), dtype=np.uint8)
    np.testing.assert_array_equal(on_device(images, np.zeros((8, 6))), images)


def test_statistics_over_many_draws_are_those_of_the_host():
    """Mean and deviation of every pixel over 4,096 draws each, from numbers of their own, and of the mean grey."""
    image = radiograph(3, 32, 32)
    images = np.broadcast_to(image, (4096, 32, 32))
    drawn = [np.stack([host.draw(rng) for _ in images]) for rng in map(np.random.default_rng, (1, 2))]
    found = on_device(images, drawn[0]).astype(float), on_host(images, drawn[1]).astype(float)
    standard_error = np.sqrt((found[0].var(axis=0) + found[1].var(axis=0)) / len(images))
    assert np.abs(found[0].mean(axis=0) - found[1].mean(axis=0)).max() < 5 * standard_error.max()
    np.testing.assert_allclose(found[0].std(axis=0), found[1].std(axis=0), rtol=0.1, atol=1.0)
    greys = [np.sort(part.mean(axis=(1, 2))) for part in found]
    assert np.abs(greys[0] - greys[1]).mean() < 1.5  # the distributions of the mean grey


def test_the_result_does_not_depend_on_the_devices():
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (136, 24, 24), dtype=np.uint8)  # more than are changed at once
    numbers = np.stack([host.draw(rng) for _ in images])
    np.testing.assert_array_equal(on_device(images, numbers), on_device(images, numbers, devices=1))


@pytest.mark.parametrize("micro_batch", [0, 8])
def test_a_run_has_the_losses_of_augmentation_on_the_host(micro_batch):
    losses = {place: first_losses(place, micro_batch) for place in ("host", "device")}
    np.testing.assert_allclose(losses["device"], losses["host"], rtol=2e-3)


def first_losses(place: str, micro_batch: int) -> list[float]:
    """The losses of three steps on eight devices."""
    config = tiny_config()
    config.data.update(augment=True, augment_on=place)
    config.training.micro_batch = micro_batch
    run, data = assembled(config, 8)
    batches = batches_of(data.training, run.config, data.tokenizer)
    state, losses = run.state(first_variables(run.config)), []
    for step in range(3):
        batch = place_batch(batches.batch_at(step), run.mesh)
        assert batch.keys() == run.batch_like().keys()
        if place == "device":
            assert run.batch_like()["augmentation"].shape == batch["augmentation"].shape == (8, 6)
        state, metrics = run.train_step(state, batch)
        losses.append(float(metrics.loss))
    return losses
