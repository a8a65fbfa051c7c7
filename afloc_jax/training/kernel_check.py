"""One tile of the word and the sentence level by the kernels of the loss and by XLA, before the first step of a run.

The tests of the kernels interpret them, or compile them for devices that are not there. What the devices of a run make
of them is seen here.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from afloc_jax.errors import UserError
from afloc_jax.losses import LossSettings
from afloc_jax.losses.tiled import local_similarity
from afloc_jax.training.assembly import Assembly
from afloc_jax.training.processes import say

PAIRS = 8
TOLERANCE = 0.05  # of the largest value: both sides round to bfloat16, each at other places
SPREAD = 3.0  # standard deviation of a trained model's products of regions and units


def check_kernel(run: Assembly) -> None:
    """Compares similarities and gradients of a tile of random features, of the run's sizes, where kernels are on.

    Raises:
        UserError: they differ from XLA's.
    """
    loss = run.config.loss
    if loss.kernel == "xla":
        return
    image, text = run.embeddings_like()
    shallow = image.shallow_factors[0] if image.shallow_factors else image.shallow
    worst = 0.0
    for level, regions, units in (("word", shallow, text.words), ("sentence", image.deep, text.sentences)):
        size = math.prod(regions.shape[1:-1]), units.shape[1], regions.shape[-1]
        ours, xla = (
            _tile(*size, regions.dtype, dataclasses.replace(loss, kernel=kernel)) for kernel in (loss.kernel, "xla")
        )
        for name, found in ours.items():
            difference = float(np.abs(found - xla[name]).max() / np.abs(xla[name]).max())
            worst = max(worst, difference)
            if not difference <= TOLERANCE:  # nor NaN
                raise UserError(
                    f"loss.kernel = {loss.kernel!r}: {name} of a tile of {level}s differ from XLA's by "
                    f"{difference:.2g} of the largest on this {jax.devices()[0].device_kind}; set it to 'xla'"
                )
    say(f"loss.kernel = {loss.kernel!r}: a tile of each level is XLA's, to {worst:.1g} of the largest value")


def _tile(
    regions: int, slots: int, width: int, dtype: jnp.dtype, loss: LossSettings
) -> dict[str, Float[np.ndarray, "..."]]:
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((PAIRS, regions, width), np.float32), dtype)
    units = jnp.asarray(rng.standard_normal((PAIRS, slots, width), np.float32) * SPREAD / width**0.5)
    d_similarity = jnp.asarray(rng.standard_normal((PAIRS, PAIRS), np.float32))
    counts = jnp.linspace(1, slots, PAIRS).astype(jnp.int32)

    def value(images: Array, units: Array) -> tuple[Array, Array]:
        similarity = local_similarity(images, units, counts, loss)
        return (similarity * d_similarity).sum(), similarity

    (_, similarity), (d_images, d_units) = jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(images, units)
    found = {"similarities": similarity, "gradients of regions": d_images, "gradients of units": d_units}
    return {name: np.asarray(array, np.float32) for name, array in found.items()}
