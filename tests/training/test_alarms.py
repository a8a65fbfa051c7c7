"""Warnings of spikes and of collapse: numbers that jump, embeddings that are made alike on purpose."""

import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.levels import LEVELS, ImageLevels, TextLevels
from afloc_jax.losses import LossSettings, contrastive_losses
from afloc_jax.training.alarms import CALM, COLLAPSED_STEPS, FEWEST, Alarms
from afloc_jax.training.ranks import ranks

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


def values_of(kind: str) -> dict[str, float]:
    """Losses and ranks of 8 pairs with embeddings that are random, all the same vector, or its multiples (of any sign
    for "lines"); with "images" those of the images alone are the same.
    """
    rng = np.random.default_rng(0)

    def made(*shape, kind=kind):
        size = rng.uniform(0.5, 2, (*shape, 1)) if kind in ("multiples", "lines") else np.ones((*shape, 1))
        size *= rng.choice([-1, 1], size.shape) if kind == "lines" else 1
        vector = rng.normal(size=(*shape, 4)) if kind == "random" else np.array([0.3, -1, 2, 0.5])
        return jnp.asarray(size * vector, jnp.float32)

    of_text = {"kind": "random"} if kind == "images" else {}
    image = ImageLevels(made(PAIRS, 2, 2), made(PAIRS, 2, 2), made(PAIRS))
    counts = jnp.full(PAIRS, 3)
    text = TextLevels(made(PAIRS, 4, **of_text), made(PAIRS, 4, **of_text), made(PAIRS, **of_text), counts, counts)
    found = contrastive_losses(image, text, PLAIN)
    numbers = {f"loss/{name}": loss for name, loss in found.levels.items()}
    numbers |= {f"rank/{name}": rank for name, rank in ranks(image, text, PLAIN).items()}
    return {"loss": 5.0, "grad_norm": 1.0} | {name: float(number) for name, number in numbers.items()}


PLAIN = LossSettings()


@pytest.mark.parametrize(
    ("kind", "sides", "equal"),
    [("random", (), False), ("constant", ("image", "text"), True), ("multiples", ("image", "text"), True),
     ("lines", ("image", "text"), False), ("images", ("image",), False)],
)  # fmt: skip
def test_embeddings_that_are_alike_are_a_collapse_of_every_level(kind, sides, equal):
    alarms, values = Alarms(PLAIN, PAIRS), values_of(kind)
    warnings = [line for step in range(2 * COLLAPSED_STEPS) for line in alarms.see(step, values)]
    levels = len(LEVELS) if sides else 0
    assert len(warnings) == levels and alarms.interval()["collapsed_levels"] == levels
    for level, warning in zip(LEVELS, warnings, strict=False):
        assert warning.startswith(f"step {COLLAPSED_STEPS - 1}: the embeddings of the {level} level have collapsed")
        assert [side for side in ("image", "text") if f"rank/{side}/{level} is 1," in warning] == list(sides)
        assert (f"loss/{level} is that of equal similarities, 4.159" in warning) == equal
    alarms.see(100, values_of("random"))
    assert alarms.interval()["collapsed_levels"] == 0, "the episode has ended"
