"""Warnings of spikes and of collapse: numbers that jump, embeddings that are made equal on purpose."""

import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.levels import ImageLevels, TextLevels
from afloc_jax.losses import LossSettings, contrastive_losses
from afloc_jax.training.alarms import CALM, EQUAL_STEPS, FEWEST, Alarms

PAIRS = 8


def noisy(step: int) -> dict[str, float]:
    return {"loss": 5 + 0.5 * np.sin(step), "grad_norm": 1 + 0.2 * np.cos(step)}


def test_a_spike_is_told_once_an_episode_and_counted():
    alarms, warnings = Alarms(LossSettings(), PAIRS), []
    jumps = {50: 30.0, 52: 30.0, 53 + CALM: 30.0}  # of the loss; the last one is another episode
    for step in range(100):
        warnings += alarms.see(step, noisy(step) | ({"loss": jumps[step]} if step in jumps else {}))
    assert [warning.split(":")[0] for warning in warnings] == ["step 50", f"step {53 + CALM}"]
    assert "loss 30 is " in warnings[0] and "its median over the last 50 steps" in warnings[0]
    assert alarms.interval() == {"spikes": 3, "collapsed_levels": 0} and alarms.interval()["spikes"] == 0
    assert "gradient norm 9 is " in alarms.see(100, noisy(100) | {"grad_norm": 9.0})[0]


def test_the_first_steps_and_steady_falls_raise_no_alarm():
    alarms = Alarms(LossSettings(), PAIRS)
    assert not [line for step in range(FEWEST) for line in alarms.see(step, {"loss": 9.0**step, "grad_norm": 1.0})]
    alarms = Alarms(LossSettings(), PAIRS)
    falling = [{"loss": 9 * 0.98**step, "grad_norm": 1.02**step} for step in range(300)]
    assert not [line for step, values in enumerate(falling) for line in alarms.see(step, values)]


def losses(kind: str) -> dict[str, float]:
    """The losses of 8 pairs with embeddings that are random, all the same vector, or its multiples."""
    rng = np.random.default_rng(0)

    def made(*shape):
        size = rng.uniform(0.5, 2, (*shape, 1)) if kind != "constant" else np.ones((*shape, 1))
        vector = rng.normal(size=(*shape, 4)) if kind == "random" else np.array([0.3, -1, 2, 0.5])
        return jnp.asarray(size * vector, jnp.float32)

    image = ImageLevels(made(PAIRS, 2, 2), made(PAIRS, 2, 2), made(PAIRS))
    counts = jnp.full(PAIRS, 3)
    found = contrastive_losses(image, TextLevels(made(PAIRS, 4), made(PAIRS, 4), made(PAIRS), counts, counts), PLAIN)
    return {"loss": 5.0, "grad_norm": 1.0} | {f"loss/{name}": float(loss) for name, loss in found.levels.items()}


PLAIN = LossSettings()


@pytest.mark.parametrize(("kind", "levels"), [("random", 0), ("constant", 3), ("multiples", 3)])
def test_equal_similarities_are_a_collapse_of_every_level(kind, levels):
    alarms, values = Alarms(PLAIN, PAIRS), losses(kind)
    warnings = [line for step in range(2 * EQUAL_STEPS) for line in alarms.see(step, values)]
    assert len(warnings) == levels and alarms.interval()["collapsed_levels"] == levels
    for warning in warnings:
        assert warning.startswith(f"step {EQUAL_STEPS - 1}: loss/") and "equal similarities, 4.159," in warning
    alarms.see(100, losses("random"))
    assert alarms.interval()["collapsed_levels"] == 0, "the episode has ended"
