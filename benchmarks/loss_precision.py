"""Errors of the ring on eight devices against the definition in float64, for each level and each type of inputs.

    python -m benchmarks.loss_precision [--batch 16] [--width 768] [--side 19]

Each level's loss and its gradients with respect to regions and to text, on random features: maps of side x side regions
(the word level's twice as wide), captions of 1 to 60 words. "bfloat16" is what `training.precision = "bfloat16"` gives:
the two maps in it, text and image vector in float32. The definition gets the same features, already rounded to the
type, in float64: what is measured is the computation, the rounding of text for its products included. A gradient's
error is the norm of the difference over the norm of the gradient. Attention takes a softmax over products of features:
`spread` is their standard deviation (the larger, the sharper the softmax). Prints a table.
"""

import argparse
import dataclasses
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import jax.numpy as jnp
import numpy as np

from afloc_jax.levels import LEVELS, ImageLevels, LevelName, TextLevels
from afloc_jax.losses import contrastive_losses
from afloc_jax.losses.settings import LevelWeights, LossSettings
from afloc_jax.training.mesh import batch_sharding, build_mesh

SPREADS = (1.0, 4.0)
TYPES = {  # the two maps', and that of everything else
    "float64": (jnp.float64, jnp.float64),
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.float32),
}
SIDES: dict[LevelName, tuple[str, str]] = {  # for each level the field of the image, and of the text
    "word": ("shallow", "words"),
    "sentence": ("deep", "sentences"),
    "report": ("whole", "report"),
}


def random_levels(batch: int, width: int, side: int, spread: float) -> tuple[ImageLevels, TextLevels]:
    """Random float64 features whose products have the standard deviation `spread`."""
    rng = np.random.default_rng(0)
    scale = (spread / width**0.5) ** 0.5

    def draw(*shape: int) -> Any:
        return scale * rng.standard_normal((batch, *shape, width))

    words: Any = rng.integers(1, 61, batch)
    sentences: Any = rng.integers(1, 9, batch)
    image = ImageLevels(draw(2 * side, 2 * side), draw(side, side), draw())
    return image, TextLevels(draw(60), draw(8), draw(), words.astype(np.int32), sentences.astype(np.int32))


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype if jnp.issubdtype(leaf.dtype, jnp.floating) else None), tree
    )


def loss_and_gradients(
    level: LevelName, implementation: Literal["ring", "definition"], image: ImageLevels, text: TextLevels
) -> tuple[np.ndarray, ...]:
    """The loss of one level and its gradients with respect to image and text, as float64 arrays."""
    weights = LevelWeights(**{name: float(name == level) for name in LEVELS})
    settings = LossSettings(implementation=implementation, weights=weights)
    mesh = build_mesh() if implementation == "ring" else None
    if mesh is not None:
        image, text = jax.device_put((image, text), batch_sharding(mesh))
    image_field, text_field = SIDES[level]

    def loss(regions: Any, units: Any) -> Any:
        changed = dataclasses.replace(image, **{image_field: regions}), dataclasses.replace(text, **{text_field: units})
        return contrastive_losses(*changed, settings, mesh=mesh).total

    inputs = getattr(image, image_field), getattr(text, text_field)
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(*inputs)
    return tuple(np.asarray(array, np.float64) for array in (value, *gradients))


def errors(level: LevelName, name: str, levels: tuple[ImageLevels, TextLevels]) -> list[float]:
    """The relative errors of the loss, of the image's gradient and of the text's gradient."""
    with jax.enable_x64(name == "float64"):
        of_maps, other = TYPES[name]
        image, text = cast(levels, other)
        rounded = image.replace(shallow=image.shallow.astype(of_maps), deep=image.deep.astype(of_maps)), text
        found = loss_and_gradients(level, "ring", *rounded)
    with jax.enable_x64(True):
        exact = loss_and_gradients(level, "definition", *cast(jax.device_get(rounded), jnp.float64))
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(found, exact, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="pairs, a multiple of 8")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--side", type=int, default=19, help="side of the deep map, in cells")
    given = parser.parse_args()
    print("| level | inputs | spread | loss | gradient, image | gradient, text |")
    print("|---" * 6 + "|")
    for spread in SPREADS:
        levels = random_levels(given.batch, given.width, given.side, spread)
        for level in SIDES:
            for name in TYPES:
                cells = " | ".join(f"{error:.1e}" for error in errors(level, name, levels))
                print(f"| {level} | {name} | {spread:g} | {cells} |", flush=True)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "numpy"))
    print(f"{datetime.now(UTC):%Y-%m-%d}, python {platform.python_version()}, {libraries}, batch {given.batch}")


if __name__ == "__main__":
    main()
