"""Ours: the published attention over regions against a soft maximum, at three sharpnesses. Run:

afloc sweep --config=published --sweep=pooling --workdir=runs/pooling [--dry-run]
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from afloc_jax.settings import Json


def sweep(config: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    yield {"name": "attention", "loss.region_pooling": "attention"}
    for factor in (0.5, 1.0, 2.0):
        sharpness = factor * config.loss.region_sharpness
        yield {
            "name": f"logsumexp{sharpness:g}",
            "loss.region_pooling": "logsumexp",
            "loss.region_sharpness": sharpness,
        }
