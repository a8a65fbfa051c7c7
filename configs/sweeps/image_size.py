"""The paper's ablation of image size: the side that the tower reads, from records of that side. Run:

afloc sweep --config=published --sweep=image_size --workdir=runs/image_size [--dry-run]

Every side has records of its own, which are built from --config.data.raw. Phantoms are drawn at 224 pixels only.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from afloc_jax.settings import Json

SIDES = (192, 224, 299, 384, 512)  # pixels; a vision transformer needs multiples of its patch


def sweep(_: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    for side in SIDES:
        yield {"name": f"{side}_pixels", "model.image.input_size": side, "data.builder.image_size": side}
