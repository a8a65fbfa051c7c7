"""The optimisers and schedules against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from afloc_jax.training.optimizer import OptimizerSettings, Plateau, build_optimizer, build_schedule, freeze

STEPS = 12


def settings(**changes):
    values = {"lr": 0.05, "b1": 0.5, "b2": 0.999, "weight_decay": 0.02, "clip_norm": 0.25, "schedule": "constant"}
    return OptimizerSettings(**values | changes)


def gradients():
    """A tree of gradients per step; the last ones are so small that clipping does nothing."""
    rng = np.random.default_rng(0)
    sizes = [1.0] * 8 + [1e-3] * 4
    return [{"w": size * rng.standard_normal((3, 4)), "b": size * rng.standard_normal(5)} for size in sizes]


def start():
    rng = np.random.default_rng(1)
    return {"w": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}


def torch_run(make, config, clip):
    leaves = {name: torch.tensor(value, requires_grad=True) for name, value in start().items()}
    optimizer = make(leaves.values())
    for gradient in gradients():
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(gradient[name])
        if clip:
            torch.nn.utils.clip_grad_norm_(leaves.values(), clip)
        optimizer.step()
    return {name: leaf.detach().numpy() for name, leaf in leaves.items()}


def our_run(config):
    optimizer = build_optimizer(config)
    schedule = build_schedule(config, steps_per_epoch=3, total_steps=STEPS)
    params = jax.tree.map(jnp.asarray, start())
    state = optimizer.init(params)
    for step, gradient in enumerate(gradients()):
        update, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, params)
        rate = float(schedule(jnp.asarray(step)))
        params = {name: params[name] - rate * update[name] for name in params}
    return params


OPTIMIZERS = {
    "adam": lambda leaves, c: torch.optim.Adam(leaves, lr=c.lr, betas=(c.b1, c.b2), weight_decay=c.weight_decay),
    "adamw": lambda leaves, c: torch.optim.AdamW(leaves, lr=c.lr, betas=(c.b1, c.b2), weight_decay=c.weight_decay),
    "sgd": lambda leaves, c: torch.optim.SGD(leaves, lr=c.lr, momentum=c.b1, weight_decay=c.weight_decay),
}


@pytest.mark.parametrize("clip", [0.0, 0.25])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_after_twelve_steps_equal_pytorchs(name, clip):
    config = settings(name=name, clip_norm=clip)
    expected = torch_run(lambda leaves: OPTIMIZERS[name](leaves, config), config, clip)
    with jax.enable_x64(True):
        found = our_run(config)
        for key, value in expected.items():
            # PyTorch divides by norm + 1e-6 when it clips, which shows in the sixth digit of a norm of 0.25.
            np.testing.assert_allclose(found[key], value, rtol=2e-6 if clip else 1e-12)


def test_lion_takes_the_sign_of_a_momentum_and_decays_beside_it():
    """Against the algorithm as the paper states it; every weight moves by the learning rate, but for the decay."""
    config = settings(name="lion", b1=0.9, b2=0.99, lr=1e-3, clip_norm=0.0)
    expected, momentum = start(), dict.fromkeys(start(), 0.0)
    for gradient in gradients():
        for name, leaf in expected.items():
            sign = np.sign(config.b1 * momentum[name] + (1 - config.b1) * gradient[name])
            momentum[name] = config.b2 * momentum[name] + (1 - config.b2) * gradient[name]
            expected[name] = leaf - config.lr * (sign + config.weight_decay * leaf)
    with jax.enable_x64(True):
        found = our_run(config)
        for name, leaf in expected.items():
            np.testing.assert_allclose(found[name], leaf, rtol=1e-12)


def test_l2_and_decoupled_decay_differ():
    with jax.enable_x64(True):
        l2, decoupled = our_run(settings(name="adam")), our_run(settings(name="adamw"))
    assert np.abs(np.asarray(l2["w"]) - np.asarray(decoupled["w"])).max() > 1e-3


def rates(config, steps_per_epoch=3, total_steps=STEPS):
    schedule = build_schedule(config, steps_per_epoch, total_steps)
    return [float(schedule(jnp.asarray(step))) for step in range(total_steps)]


def test_exponential_drops_after_each_epoch_as_pytorchs():
    config = settings(schedule="exponential", decay=0.9)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    expected = []
    for _ in range(4):
        expected += [optimizer.param_groups[0]["lr"]] * 3
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates(config), expected, rtol=1e-6)


def test_warm_up_rises_linearly_and_cosine_ends_at_zero():
    found = rates(settings(schedule="cosine", warmup_steps=4))
    np.testing.assert_allclose(found[:4], [0.0125, 0.025, 0.0375, 0.05], rtol=1e-6)
    np.testing.assert_allclose(found[4:], [0.025 * (1 + np.cos(np.pi * k / 8)) for k in range(8)], rtol=1e-5)


def test_plateau_lowers_the_rate_when_pytorchs_does():
    losses = [5.0, 4.0, *[4.1] * 7, 3.0, *[3.0] * 13]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
    plateau, rate = Plateau(0.5), 1.0
    for loss in losses:
        schedule.step(loss)
        rate *= plateau.factor(loss)
        assert rate == optimizer.param_groups[0]["lr"]
    assert rate == 0.125


def test_frozen_parameters_stay_and_do_not_count_in_the_norm():
    optimizer = freeze(build_optimizer(settings()), {"w": True, "b": False})
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), start())
    state = optimizer.init(params)
    gradient = {"w": jnp.full((3, 4), 1e-3), "b": jnp.full(5, 1e6)}
    update, state = optimizer.update(gradient, state, params)
    assert not np.asarray(update["b"]).any()
    of_w = build_optimizer(settings())
    alone, _ = of_w.update({"w": gradient["w"]}, of_w.init({"w": params["w"]}), {"w": params["w"]})
    np.testing.assert_array_equal(update["w"], alone["w"])
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (5,)]
    assert not moments
