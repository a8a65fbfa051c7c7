"""Ours: captions against single sentences and words as what has to find its image; three seeds. Run:

afloc sweep --config=published --sweep=unit --workdir=runs/unit [--dry-run]
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from afloc_jax.settings import Json


def sweep(_: ConfigDict) -> Iterator[dict[str, Json]]:
    """The overrides of each run, by dotted key; `name` is the folder of the run."""
    for seed in (1, 2, 3):
        for unit in ("caption", "unit"):
            yield {
                "name": f"{unit}_seed{seed}",
                "loss.contrast_unit": unit,
                "loss.region_pooling": "logsumexp",
                "seed": seed,
            }
